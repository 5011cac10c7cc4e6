"""Generation against transformers, against itself in batches, and its draws against their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptpipe import GPT, ModelConfig, generate, load
from gptpipe.config import SampleConfig
from gptpipe.generation.cpu import PackedDecoder
from gptpipe.generation.decoder import Decoder, Row
from gptpipe.generation.generate import (
    Sample,
    generate_ids,
    python_line_share,
    sample_once,
    window_start,
)
from gptpipe.generation.gpu import GraphedDecoder
from gptpipe.generation.sampling import candidates, choose, penalized, seen_mask
from gptpipe.model.precision import to_precision
from gptpipe.tokenizer import get_tokenizer
from gptpipe.weights.commit import write_checkpoint
from gptpipe.weights.huggingface import hf_config, hf_tensors
from tests.fixtures.qwen3 import SHAPES, ours, write


def config(**given: object) -> SampleConfig:
    return SampleConfig.model_validate({"temperature": 0, "top_k": 0, "max_new_tokens": 12, **given})


ARCHITECTURES: dict[str, dict[str, Any]] = {"gpt2": {}, "qwen3": {"architecture": "qwen3", "n_kv_head": 2}}
STEPS = 25  # of rows side by side: most of them come past a context of 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, GPT2LMHeadModel]:
    torch.manual_seed(1)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=500,
            n_positions=32,
            n_embd=48,
            n_layer=3,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.3,
        )
    ).eval()
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return load(str(folder)), theirs


def their_greedy(theirs: GPT2LMHeadModel, prompt: torch.Tensor, **more: float) -> list[int]:
    """Twenty new tokens."""
    found = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=None,
        pad_token_id=0,
        **more,
    )
    ids: list[int] = found[0, prompt.shape[1] :].tolist()
    return ids


def test_greedy_agrees_with_transformers_token_for_token(pair: tuple[GPT, GPT2LMHeadModel]) -> None:
    model, theirs = pair
    for seed in range(8):
        prompt = torch.randint(1, 500, (1, 3 + seed), generator=torch.Generator().manual_seed(seed))
        found = generate_ids(model, prompt.tolist(), config(max_new_tokens=20))
        assert found[0] == their_greedy(theirs, prompt)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_agrees_with_transformers_qwen3_and_past_the_context(shape: dict[str, Any], tmp_path: Path) -> None:
    model = ours(vocabulary=500, context=80, **shape)
    theirs = Qwen3ForCausalLM.from_pretrained(write(model, tmp_path)).eval()
    prompts = [torch.randint(1, 500, (3 + 6 * seed,), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    found = generate_ids(model, [prompt.tolist() for prompt in prompts], config(max_new_tokens=100))
    for prompt, ids in zip(prompts, found, strict=True):
        given = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0}
        expected = theirs.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None], **given)
        assert ids[:64] == expected[0, len(prompt) :].tolist()
        assert ids == recomputed(model, prompt.tolist(), 100)


def recomputed(model: GPT, prompt: list[int], new: int, slide: str = "one") -> list[int]:
    """The plain way: the window is computed anew for every token, as the book does it, or from where `half` begins."""
    ids, context, start = list(prompt), model.config.context_length, 0
    with torch.no_grad():
        for _ in range(new):
            while len(ids) - start > context:
                start += 1 if slide == "one" else context // 2
            ids.append(int(model(torch.tensor([ids[start:]]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("slide", ["one", "half"])
def test_batches_of_different_lengths_and_past_the_context(pair: tuple[GPT, GPT2LMHeadModel], slide: str) -> None:
    model, _ = pair
    prompts = [[5], [7, 8, 9], list(range(20, 45)), list(range(1, 60))]
    for batch in (prompts[:2], prompts[:3], prompts):
        found = generate_ids(model, batch, config(max_new_tokens=45, slide=slide))
        assert found == [recomputed(model, prompt, 45, slide) for prompt in batch]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_more_prompts_than_are_continued_at_once(
    pair: tuple[GPT, GPT2LMHeadModel], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One begins where another ends; what each is continued with and its log-probabilities are as all at once."""
    model, _ = pair
    prompts = [[5], [7, 8, 9], list(range(20, 45)), list(range(1, 60)), [9, 9], [3], [4] * 30]
    lengths = [3, 40, 1, 12, 40, 2, 25]
    at_once: list[int] = []
    whole = PackedDecoder.logits

    def looked_at(self: PackedDecoder, rows: Sequence[Row]) -> torch.Tensor:
        at_once.append(len(rows))
        return whole(self, rows)

    def ended(row: int, ids: list[int]) -> bool:
        return len(ids) == lengths[row]

    def made(size: int) -> tuple[list[list[int]], list[list[float]]]:
        scores: list[list[float]] = [[] for _ in prompts]
        given = config(max_new_tokens=40, temperature=1.0, batch_size=size)
        return generate_ids(model, prompts, given, ended=ended, logprobs=scores), scores

    together = made(len(prompts))
    monkeypatch.setattr(PackedDecoder, "logits", looked_at)
    assert made(batch_size) == together
    assert [len(ids) for ids in together[0]] == lengths
    assert max(at_once) == batch_size
    assert sum(at_once) == sum(lengths)
    assert at_once == sorted(at_once, reverse=True)  # no place is empty while prompts wait


def test_half_a_context_is_computed_anew_once_every_half_context(
    pair: tuple[GPT, GPT2LMHeadModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = pair
    read: list[int] = []
    whole = PackedDecoder.read

    def counted(self: PackedDecoder, row: Row) -> torch.Tensor:
        read.append(len(row.tokens) - row.start)
        return whole(self, row)

    monkeypatch.setattr(PackedDecoder, "read", counted)
    generate_ids(model, [[5]], config(max_new_tokens=100, slide="half"))
    assert read == [1, *[17] * 5]  # of a context of 32, in the step after it is full


@pytest.mark.parametrize(
    ("precision", "slide", "architecture"),
    [
        ("float32", "half", "gpt2"),
        ("float32", "one", "qwen3"),
        pytest.param("bfloat16", "one", "gpt2", marks=pytest.mark.slow),
        pytest.param("float32", "one", "gpt2", marks=pytest.mark.slow),
        pytest.param("bfloat16", "half", "gpt2", marks=pytest.mark.slow),
        pytest.param("bfloat16", "half", "qwen3", marks=pytest.mark.slow),
    ],
)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(precision: str, slide: str, architecture: str) -> None:
    """Rows of other lengths, rows that end, rows past the context; every logit of every step is looked at."""
    torch.manual_seed(6)
    shape = ModelConfig(
        vocab_size=700, n_layer=3, n_head=4, n_embd=256, context_length=40, **ARCHITECTURES[architecture]
    )
    model = to_precision(GPT(shape), precision).eval()
    lengths = (1, 17, 3, 16, 39, 55, 2)
    prompts = [[(7 * i + j * j) % 700 for j in range(length)] for i, length in enumerate(lengths)]
    generator = torch.Generator().manual_seed(1)
    added = torch.randint(0, 700, (len(prompts), STEPS), generator=generator).tolist()
    until = [STEPS, 12, STEPS, 20, STEPS, STEPS, 7]

    def logits_of(numbers: list[int]) -> dict[int, list[torch.Tensor]]:
        decoder = PackedDecoder(model, STEPS, consume=False)
        found: dict[int, list[torch.Tensor]] = {number: [] for number in numbers}
        for step in range(STEPS):
            rows = []
            for number in numbers:
                if step < until[number]:
                    tokens = prompts[number] + added[number][:step]
                    rows.append(Row(number, window_start(len(tokens), 40, slide), tokens))
            if rows:
                for row, line in zip(rows, decoder.logits(rows), strict=True):
                    found[row.number].append(line)
        return found

    with torch.inference_mode():
        together = logits_of(list(range(len(prompts))))
        for number in range(len(prompts)):
            for others in ([], [4], [2, 1, 6]):
                alone = logits_of(list(dict.fromkeys([*others, number])))[number]
                assert len(alone) == len(together[number]) == until[number]
                assert all(torch.equal(a, b) for a, b in zip(alone, together[number], strict=True))
        tokens = prompts[4] + added[4][:20]
        whole = model.float()(torch.tensor([tokens[-40:]]))[0, -1] if slide == "one" else None
    if whole is not None:
        close = {"float32": 1e-4, "bfloat16": 0.05}[precision]
        assert torch.allclose(together[4][20], whole, atol=close)


@torch.inference_mode()
def test_in_half_precision_the_cache_is_as_long_as_its_longest_row() -> None:
    """What is longer is copied by the products at every step; what was taken once is not taken again."""
    shape = ModelConfig(vocab_size=50, n_layer=2, n_head=2, n_embd=32, context_length=100)
    decoder = PackedDecoder(to_precision(GPT(shape), "bfloat16"), 60, consume=False)
    rows = {0: [1] * 3, 1: [2] * 20}
    lengths, places = [], set()
    for step in range(50):
        if step == 25:
            del rows[1]
        decoder.logits([Row(number, 0, tokens) for number, tokens in rows.items()])
        lengths.append(decoder._keys[0].shape[2])
        assert all(held.is_contiguous() for held in (*decoder._keys, *decoder._values))
        places.add(decoder._keys[1].data_ptr())
        for tokens in rows.values():
            tokens.append(3)
    alone = [-(-(3 + step) // 16) * 16 for step in range(25, 50)]
    assert lengths == [-(-(20 + step) // 16) * 16 for step in range(25)] + alone
    assert len(places) == 1


@torch.inference_mode()
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("slide", "architecture"), [("one", "gpt2"), ("half", "gpt2"), ("half", "qwen3")])
def test_the_decoder_of_other_devices_comes_to_the_same(
    device: str, precision: str, slide: str, architecture: str
) -> None:
    """Each token and its log-probability against the model, which reads the whole row; rows come, end and slide."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU is here: a step is computed, and not captured as a graph")
    torch.manual_seed(7)
    shape = ModelConfig(
        vocab_size=300,
        n_layer=2,
        n_head=4,
        n_embd=64,
        context_length=70,
        tie_weights=False,
        **ARCHITECTURES[architecture],
    )
    whole = to_precision(GPT(shape), precision).eval()
    decoder = GraphedDecoder(to_precision(GPT(shape), precision).to(device).eval(), 60)
    decoder._model.load_state_dict(whole.state_dict())
    whole = whole.float()
    sampling = config(temperature=1.0, top_k=50, repetition_penalty=1.3, seed=5)
    texts = [torch.randint(0, 300, (length,)).tolist() for length in (1, 40, 7, 69, 3)]
    until = [61, 49, 67, 129, 43]  # tokens at which a row ends
    far, step = [], 0
    while numbers := [n for n in range(5) if n * 3 <= step and len(texts[n]) < until[n]]:
        rows = [Row(n, window_start(len(texts[n]), 70, slide), texts[n]) for n in numbers]
        steady = min(row.start + 71 - len(row.tokens) for row in rows)
        count = min(1 + step % decoder.ahead, steady, *(until[n] - len(texts[n]) for n in numbers))
        made = decoder.continued(rows, sampling, count, logprobs=True)
        assert 1 <= len(made.tokens) == len(made.logprobs) <= count
        for tokens, scores in zip(made.tokens, made.logprobs, strict=True):
            for n, token, logprob in zip(numbers, tokens, scores, strict=True):
                start = window_start(len(texts[n]), 70, slide)
                logits = whole(torch.tensor([texts[n][start:]]))[:, -1]
                far.append(abs(float(torch.log_softmax(logits.double(), -1)[0, token]) - logprob))
                if precision == "float32":
                    assert choose(logits, sampling, rows=[n], positions=[len(texts[n])], seen=[texts[n]]) == [token]
                texts[n].append(token)
        step += 1
    assert max(far) < {"float32": 1e-5, "bfloat16": 0.03}[precision]
    assert [len(text) for text in texts] == until
    assert step < len(far) / 2  # the host did not look at each


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.4},
        {"temperature": 1.2, "min_p": 0.05, "batch_size": 3},
    ],
)
def test_tokens_do_not_depend_on_the_decoder(pair: tuple[GPT, GPT2LMHeadModel], given: dict[str, float]) -> None:
    """Rows that end while the decoder goes on are cut off; what waited takes their places."""
    model, _ = pair
    prompts = [[5], [7, 8, 9], list(range(20, 45)), list(range(1, 60)), [9, 9], [3], [4] * 30]
    lengths = [3, 40, 1, 12, 40, 17, 25]

    def ended(row: int, ids: list[int]) -> bool:
        return len(ids) == lengths[row]

    def made(decoder: Decoder) -> tuple[list[list[int]], list[list[float]]]:
        scores: list[list[float]] = [[] for _ in prompts]
        settings = config(max_new_tokens=40, slide="half", **given)
        ids = generate_ids(model, prompts, settings, ended=ended, end_of_text=7, logprobs=scores, decoder=decoder)
        return ids, scores

    first, first_scores = made(PackedDecoder(model, 40, consume=False))
    other, other_scores = made(GraphedDecoder(model, 40))
    assert other == first
    for mine, theirs in zip(other_scores, first_scores, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_a_decoder_that_is_used_again_knows_nothing_of_before(pair: tuple[GPT, GPT2LMHeadModel]) -> None:
    model, _ = pair
    for decoder in (GraphedDecoder(model, 9), PackedDecoder(model, 9, consume=False)):
        generate_ids(model, [[1, 2, 3]], config(max_new_tokens=4), decoder=decoder)
        longer = [9, 8, 7, 6, 5, 4, 3]  # as long as what the decoder holds, and one
        assert generate_ids(model, [longer], config(max_new_tokens=4), decoder=decoder) == generate_ids(
            model, [longer], config(max_new_tokens=4)
        )


def test_each_row_stops_at_its_own_end_of_text(pair: tuple[GPT, GPT2LMHeadModel]) -> None:
    model, _ = pair
    prompts = [[5], [7, 8, 9], list(range(20, 30))]
    free = generate_ids(model, prompts, config(max_new_tokens=40))
    end = free[1][4]
    stopped = generate_ids(model, prompts, config(max_new_tokens=40), end_of_text=end)
    for with_end, without in zip(stopped, free, strict=True):
        assert with_end == (without[: without.index(end)] if end in without else without)
    assert len(stopped[1]) <= 4


def test_draws_depend_on_seed_row_and_position_alone(pair: tuple[GPT, GPT2LMHeadModel]) -> None:
    model, _ = pair
    sampling = config(temperature=1.0, max_new_tokens=30)
    together = generate_ids(model, [[5, 6], [7, 8, 9]], sampling)
    assert generate_ids(model, [[5, 6]], sampling)[0] == together[0]
    assert generate_ids(model, [[5, 6]], config(temperature=1.0, max_new_tokens=30, seed=2))[0] != together[0]


def draws(logits: list[float], count: int = 4000, **given: object) -> torch.Tensor:
    table = torch.tensor([logits]).expand(count, -1)
    chosen = choose(table, config(**{"temperature": 1.0, **given}), rows=[0] * count, positions=list(range(count)))
    return torch.bincount(torch.tensor(chosen), minlength=len(logits)) / count


def test_frequencies_of_draws_follow_the_softmax() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    for temperature in (0.7, 1.0, 1.5):
        wanted = torch.softmax(torch.tensor(logits) / temperature, dim=0)
        assert (draws(logits, temperature=temperature) - wanted).abs().max() < 0.03


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.06, 0.04])).tolist()
    assert draws(logits, top_k=2)[[0, 3, 4]].sum() == 0
    # 0.5 + 0.3 reaches 0.75, the rest is cut
    nucleus = draws(logits, top_p=0.75)
    assert nucleus[[0, 3, 4]].sum() == 0
    assert nucleus[1].item() == pytest.approx(0.5 / 0.8, abs=0.03)
    assert draws(logits, top_p=1e-9)[1] == 1


def test_an_empty_prompt_begins_a_document(writer: GPT) -> None:
    empty, begun = generate(writer, ["", "<|endoftext|>"], config(max_new_tokens=4, temperature=0))
    assert empty.tokens == begun.tokens
    assert empty.prompt == ""
    assert empty.text == empty.continuation


def test_a_prompt_longer_than_the_context_is_read_from_its_end_and_says_so(
    writer: GPT, caplog: pytest.LogCaptureFixture
) -> None:
    long = "one two " * 60
    [sample] = generate(writer, [long], config(max_new_tokens=3))
    assert sample.prompt == long
    assert "it is read from its end" in caplog.text
    caplog.clear()
    generate(writer, ["one"], config(max_new_tokens=1))
    assert not caplog.text


def test_share_of_python_lines() -> None:
    def sample(text: str) -> Sample:
        return Sample("def f(", text, [])

    assert python_line_share([sample("def f(x):\n    return 'x'\n    oops ` $\ncut off")]) == pytest.approx(2 / 3)
    assert python_line_share([sample("def f(no newline")]) is None
    assert python_line_share([Sample("", ".\n   \n...\n)\n, ,\n", [])]) is None  # nothing is said
    assert python_line_share([Sample("", ".\nx = 1\n)\n", [])]) == 1


def test_generate_from_a_checkpoint_gives_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8))
    write_checkpoint(str(tmp_path), 1, model=hf_tensors(model), config=hf_config(model.config, "gpt2", 50256), state={})
    sample = generate(str(tmp_path), ["Every effort"], config(max_new_tokens=5))[0]
    assert sample.text.startswith("Every effort")
    assert len(sample.tokens) == 5


def warped(logits: torch.Tensor, given: SampleConfig) -> torch.Tensor:
    """The distribution that is drawn from, (B, V)."""
    probabilities, indices = candidates(logits, given)
    found = torch.zeros(logits.shape, dtype=torch.float64).scatter(1, indices, probabilities)
    return found / found.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 40},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.9, "min_p": 0.1},
        {"temperature": 1.1, "top_k": 60, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_it_draws_from_the_distribution_that_transformers_draws_from(given: dict[str, float]) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(3)) * 3
    processors = LogitsProcessorList([TemperatureLogitsWarper(given["temperature"])])
    if "top_k" in given:
        processors.append(TopKLogitsWarper(int(given["top_k"])))
    if "top_p" in given:
        processors.append(TopPLogitsWarper(given["top_p"]))
    if "min_p" in given:
        processors.append(MinPLogitsWarper(given["min_p"]))
    wanted = torch.softmax(processors(torch.zeros(6, 1, dtype=torch.long), logits.double()), dim=-1)
    assert (warped(logits, config(**given)) - wanted).abs().max() < 1e-9


def test_the_repetition_penalty_is_that_of_transformers(pair: tuple[GPT, GPT2LMHeadModel]) -> None:
    ids = [[1, 5, 5, 9], [2, 3, 4, 299]]
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(4))
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(ids), logits.clone())
    assert torch.equal(penalized(logits, seen_mask(ids, logits), 1.7), wanted)
    model, theirs = pair
    prompt = torch.tensor([[7, 8, 9]])
    found = generate_ids(model, prompt.tolist(), config(max_new_tokens=20, repetition_penalty=1.5))
    assert found[0] == their_greedy(theirs, prompt, repetition_penalty=1.5)


@pytest.fixture(scope="module")
def writer() -> GPT:
    """A model of GPT-2's vocabulary whose continuations are arbitrary."""
    torch.manual_seed(2)
    model = GPT(ModelConfig(vocab_size=50257, context_length=64, n_layer=1, n_head=2, n_embd=32))
    with torch.no_grad():
        model.wte.weight.mul_(20)
    return model.eval()


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_stop_text_ends_a_row_wherever_tokens_end(writer: GPT, length: int) -> None:
    free = generate(writer, ["import os", "def f("], config(max_new_tokens=30, temperature=1, seed=3))
    for row, sample in enumerate(free):
        for start in (4, 11):  # characters, not tokens: it may begin and end inside of one
            stop = sample.continuation[start : start + length]
            found = generate(
                writer, ["import os", "def f("], config(max_new_tokens=30, temperature=1, seed=3, stop=[stop])
            )[row]
            cut = sample.continuation.find(stop)
            assert found.continuation == sample.continuation[:cut]
            assert found.ended == "stop"
            assert found.tokens == sample.tokens[: len(found.tokens)]
            assert len(get_tokenizer("gpt2").decode(found.tokens)) <= cut


def test_log_probabilities_are_the_models_own(writer: GPT) -> None:
    (sample,) = generate(writer, ["import os"], config(max_new_tokens=6, temperature=2, seed=1), logprobs=True)
    ids = get_tokenizer("gpt2").encode("import os")
    with torch.no_grad():
        scores = torch.log_softmax(writer(torch.tensor([ids + sample.tokens]))[0].double(), dim=-1)
    wanted = [float(scores[len(ids) - 1 + place, token]) for place, token in enumerate(sample.tokens)]
    assert sample.logprobs == pytest.approx(wanted, abs=1e-4)
    assert generate(writer, ["import os"], config(max_new_tokens=2))[0].logprobs is None


def test_tokens_are_told_as_they_come(writer: GPT) -> None:
    told: list[tuple[int, bytes]] = []
    made = generate(
        writer, ["a", "b c"], config(max_new_tokens=7), on_token=lambda row, piece: told.append((row, piece))
    )
    for row, sample in enumerate(made):
        assert b"".join(piece for who, piece in told if who == row).decode(errors="replace") == sample.continuation


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ValueError, match="an empty text is everywhere"):
        config(stop=["x", ""])


def test_samples_that_are_known_name_the_checkpoint_that_was_asked_for(tmp_path: Path) -> None:
    """The same weights may lie in two attempts of one training."""
    torch.manual_seed(2)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=16))
    made = [
        write_checkpoint(
            str(tmp_path / name), 3, model=hf_tensors(model), config=hf_config(model.config, "gpt2", 50256), state={}
        ).url
        for name in ("first", "second")
    ]
    given = config(prompts=["a"], max_new_tokens=2)
    first, second = (sample_once(url, given, out=str(tmp_path / "out")) for url in made)
    assert (first.already_done, second.already_done) == (False, True)
    assert [first.weights, second.weights] == made
    assert first.samples == second.samples


def test_samples_are_made_in_the_precision_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=32, context_length=16))
    made = write_checkpoint(
        str(tmp_path / "made"), 1, model=hf_tensors(model), config=hf_config(model.config, "gpt2", 50256), state={}
    ).url
    kinds: list[torch.dtype] = []
    whole = PackedDecoder.__init__

    def looked_at(self: PackedDecoder, model: GPT, new_tokens: int, *, consume: bool) -> None:
        kinds.append(model.lm_head.weight.dtype)
        whole(self, model, new_tokens, consume=consume)

    monkeypatch.setattr(PackedDecoder, "__init__", looked_at)
    for precision in ("float32", "bfloat16"):
        given = config(prompts=["It was"], max_new_tokens=2, precision=precision)
        assert not sample_once(made, given, out=str(tmp_path / "out")).already_done
    assert kinds == [torch.float32, torch.bfloat16]


def test_a_tiny_temperature_takes_the_likeliest(pair: tuple[GPT, GPT2LMHeadModel]) -> None:
    model, _ = pair
    prompts = [[5], [7, 8, 9]]
    assert generate_ids(model, prompts, config(temperature=1e-320)) == generate_ids(model, prompts, config())
