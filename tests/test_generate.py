"""Generation against transformers, against itself in batches, and its draws against their distribution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptpipe import GPT, ModelConfig, UserError, generate, load
from gptpipe.config import SampleConfig
from gptpipe.generate import Sample, choose, generate_ids, python_line_share


def config(**given: object) -> SampleConfig:
    return SampleConfig.model_validate({"temperature": 0, "top_k": 0, "max_new_tokens": 12, **given})


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


def test_greedy_agrees_with_transformers_token_for_token(pair: tuple[GPT, GPT2LMHeadModel]) -> None:
    model, theirs = pair
    for seed in range(8):
        prompt = torch.randint(1, 500, (1, 3 + seed), generator=torch.Generator().manual_seed(seed))
        wanted = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=None,
            pad_token_id=0,
        )
        found = generate_ids(model, prompt.tolist(), config(max_new_tokens=20))
        assert found[0] == wanted[0, prompt.shape[1] :].tolist()


def recomputed(model: GPT, prompt: list[int], new: int) -> list[int]:
    """The plain way, as the book does it: the window is computed anew for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            window = torch.tensor([ids[-model.config.context_length :]])
            ids.append(int(model(window)[0, -1].argmax()))
    return ids[len(prompt) :]


def test_batches_of_different_lengths_and_past_the_context(pair: tuple[GPT, GPT2LMHeadModel]) -> None:
    model, _ = pair
    prompts = [[5], [7, 8, 9], list(range(20, 45)), list(range(1, 60))]
    for batch in (prompts[:2], prompts[:3], prompts):
        found = generate_ids(model, batch, config(max_new_tokens=45))
        assert found == [recomputed(model, prompt, 45) for prompt in batch]


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


def test_an_empty_prompt_is_refused() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8))
    with pytest.raises(UserError, match="a prompt of zero tokens"):
        generate(model, ["fine", ""])


def test_share_of_python_lines() -> None:
    def sample(text: str) -> Sample:
        return Sample("def f(", text, [])

    assert python_line_share([sample("def f(x):\n    return 'x'\n    oops ` $\ncut off")]) == pytest.approx(2 / 3)
    assert python_line_share([sample("def f(no newline")]) is None


def test_generate_from_a_checkpoint_gives_text(tmp_path: Path) -> None:
    from gptpipe.checkpoint import write_checkpoint
    from gptpipe.hf import hf_config, hf_tensors

    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8))
    write_checkpoint(str(tmp_path), 1, model=hf_tensors(model), config=hf_config(model.config, "gpt2", 50256), state={})
    sample = generate(str(tmp_path), ["Every effort"], config(max_new_tokens=5))[0]
    assert sample.text.startswith("Every effort")
    assert len(sample.tokens) == 5
