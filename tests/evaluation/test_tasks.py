"""Proves the tasks: by hand, and against lm-evaluation-harness on the same files with transformers' model in it."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from gptpipe import GPT, UserError, load
from gptpipe.config import DataConfig, EvaluateConfig
from gptpipe.corpus.build import tokenize
from gptpipe.evaluation.continuations import encode_pair, likelihoods
from gptpipe.evaluation.evaluate import evaluate
from gptpipe.evaluation.once import evaluate_once
from gptpipe.evaluation.tasks import score_task
from gptpipe.export.folder import export_hf
from gptpipe.tokenizer import get_tokenizer
from tests.weights.test_weights import reference

CONTEXT = 32
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "rain",
    "fell",
    "over",
    "quiet",
    "hills",
    "and",
    "nobody",
    "knew",
    "why",
]
LAMBADA = [{"text": " ".join(WORDS[i : i + 3 + i % 9] * (1 + i % 6))} for i in range(12)]
HELLASWAG = [
    {
        "activity_label": "Roof [title] work",
        "ctx_a": f"A man [step] climbs  {WORDS[i]}.",
        "ctx_b": "he then" if i % 2 else "",
        "endings": [
            " ".join(WORDS[j : j + 2 + (i + j) % 6]) + (" [title] end" if j % 3 else "") for j in range(i, i + 4)
        ],
        "label": str(i % 4),
    }
    for i in range(10)
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose logits are far enough apart for its choices to depend on the text."""
    model = reference(2, 2, 32, CONTEXT, 50257)
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(8)
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("lambada", LAMBADA), ("hellaswag", HELLASWAG)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: folder / f"{name}.jsonl" for name in ("lambada", "hellaswag")}


@torch.no_grad()
def by_hand(model: GPT, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    ids = (context + continuation)[-(CONTEXT + 1) :]
    logprobs = torch.log_softmax(model(torch.tensor([ids[:-1]]))[0].double(), -1)[-len(continuation) :]
    targets = torch.tensor(ids[-len(continuation) :])
    own = logprobs.gather(1, targets[:, None])
    return float(own.sum()), bool((logprobs.argmax(-1) == targets).all())


def test_a_continuation_costs_what_its_tokens_cost_whatever_the_batch(weights: str) -> None:
    model, tokenizer = load(weights), get_tokenizer()
    pairs = [encode_pair(tokenizer, row["text"], " of course it is") for row in LAMBADA]
    assert max(len(context) for context, _ in pairs) > CONTEXT  # so that one is cut at its beginning
    expected = [by_hand(model, *pair) for pair in pairs]
    for batch_tokens in (1, 100, 10_000):
        found = likelihoods(model, pairs, batch_tokens=batch_tokens)
        assert [each.logprob for each in found] == pytest.approx([logprob for logprob, _ in expected], rel=1e-6)
        assert [each.greedy for each in found] == [greedy for _, greedy in expected]


def test_a_pair_is_cut_where_its_whole_is() -> None:
    tokenizer = get_tokenizer()
    assert encode_pair(tokenizer, "", " a b") == ([50256], tokenizer.encode(" a b"))
    for context, continuation in (("the cat ", "sat"), ("the cat", " sat"), ("the c", "at sat")):
        before, after = encode_pair(tokenizer, context, continuation)
        assert tokenizer.decode(before) == context.rstrip()
        assert tokenizer.decode(before + after)[: len(context)] == context


def test_a_word_that_the_model_would_write_is_right(weights: str, tmp_path: Path) -> None:
    model, tokenizer = load(weights), get_tokenizer()
    texts = []
    for i in range(40):  # what the model writes itself after half of them
        context = f"{WORDS[i % 13]} {WORDS[i % 11]} {i}"
        with torch.no_grad():
            token = int(model(torch.tensor([tokenizer.encode(context)]))[0, -1].argmax())
        said = tokenizer.decode([token])
        wanted = said if i % 2 and re.fullmatch(r" \w+", said) else " qqq"
        texts.append({"text": context + wanted})
    right = sum(not row["text"].endswith(" qqq") for row in texts)
    assert right
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in texts))
    found = score_task(f"lambada:{file}", model, tokenizer, batch_tokens=64, precision="float32")
    assert (found.questions, found.accuracy) == (40, right / 40)
    assert found.standard_error == pytest.approx(math.sqrt(found.accuracy * (1 - found.accuracy) / 39))


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("piqa", "", "'piqa:.*' is no task"),
        ("lambada", "", "no question in it"),
        ("lambada", '{"text": "a b"}\n{"txt": "a b"}\n', "line 2 is not of lambada: no 'text'"),
        ("lambada", "plain text\n", "line 1 is not of lambada"),
        ("hellaswag", json.dumps({**HELLASWAG[0], "label": 7}), "label 7 of 4 endings"),
        ("hellaswag", "[]", "line 1 is not of hellaswag"),
        ("hellaswag", json.dumps({**HELLASWAG[0], "endings": "ab"}), "endings are no list"),
        ("hellaswag", json.dumps({**HELLASWAG[0], "label": math.inf}), "line 1 is not of hellaswag"),
        ("lambada", "[" * 100_000, "line 1 is not of lambada"),
    ],
)
def test_what_is_no_task_is_one_line(task: str, content: str, message: str, weights: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        score_task(
            f"{task}:{tmp_path / 'a.jsonl'}", load(weights), get_tokenizer(), batch_tokens=64, precision="float32"
        )
    assert "\n" not in str(caught.value)


def test_an_evaluation_holds_its_tasks_and_knows_another_file(
    weights: str, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(" ".join(WORDS) * 40)
    data = tokenize(DataConfig(corpus=[str(tmp_path / "a.txt")]), str(tmp_path / "data")).dataset
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(files["lambada"].read_bytes())
    config = EvaluateConfig(tasks=[f"lambada:{copy}"])
    first = evaluate_once(weights, data=data, config=config, out=str(tmp_path / "out"))
    again = evaluate_once(weights, data=data, config=config, out=str(tmp_path / "out"))
    assert (first.already_done, again.already_done) == (False, True)
    assert again.tasks == first.tasks
    copy.write_bytes(b'{"text": "the cat"}\n')
    other = evaluate_once(weights, data=data, config=config, out=str(tmp_path / "out"))
    assert not other.already_done
    assert other.tasks[0].questions == 1


def write_tasks(folder: Path, files: dict[str, Path]) -> list[str]:
    """The harness's own definitions of its tasks, on these files."""
    import lm_eval.tasks

    there = Path(lm_eval.tasks.__file__).parent
    sources = {
        "lambada": there / "lambada" / "lambada_openai.yaml",
        "hellaswag": there / "hellaswag" / "hellaswag.yaml",
        "rolling": there / "wikitext" / "wikitext.yaml",
    }
    folder.mkdir()
    for name, source in sources.items():
        lines = [f"include: {source}", f"task: our_{name}", "tag: []", "dataset_path: json", "dataset_name: null"]
        lines += ["training_split: null", "validation_split: null", "test_split: test", "dataset_kwargs:"]
        lines += ["  data_files:", f"    test: {files[name]}"]
        if name == "rolling":  # the page as it is, not as WikiText's is tidied
            lines += ["doc_to_target: '{{page}}'"]
        (folder / f"our_{name}.yaml").write_text("\n".join(lines) + "\n")
    return [f"our_{name}" for name in sources]


@pytest.mark.slow
def test_lm_eval_counts_the_same_on_the_same_files(weights: str, files: dict[str, Path], tmp_path: Path) -> None:
    """transformers' model in the harness, our weights in the harness, and our own count."""
    pytest.importorskip("lm_eval", reason="infra/test.sh --all installs it")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from gptpipe.harness import GptpipeLM

    pages = [f"{' '.join(WORDS[i:])}\n{' '.join(WORDS) * i} naïve 東京  \n" for i in range(4)]
    (tmp_path / "texts").mkdir()
    for i, page in enumerate(pages):
        (tmp_path / "texts" / f"{i}.txt").write_text(page)
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
    names = write_tasks(tmp_path / "yaml", {**files, "rolling": tmp_path / "pages.jsonl"})
    (folder := tmp_path / "with-tokenizer").mkdir()
    for model in (HFLM(export_hf(weights, str(folder)), device="cpu", batch_size=3), GptpipeLM(weights)):
        manager = TaskManager(include_path=str(tmp_path / "yaml"))
        counted = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
        data = tokenize(DataConfig(corpus=[str(tmp_path / "texts")], validation=0), str(tmp_path / "data")).dataset
        tasks = [f"{name}:{file}" for name, file in files.items()]
        found = evaluate(weights, data=data, config=EvaluateConfig(split="train", documents="apart", tasks=tasks))
        lambada, hellaswag = found.tasks
        close = partial(pytest.approx, rel=1e-5)
        assert counted["our_lambada"]["acc,none"] == lambada.accuracy
        assert counted["our_lambada"]["perplexity,none"] == close(lambada.perplexity)
        assert counted["our_hellaswag"]["acc,none"] == hellaswag.accuracy
        assert counted["our_hellaswag"]["acc_norm,none"] == hellaswag.accuracy_per_character
        assert counted["our_rolling"]["word_perplexity,none"] == close(found.word_perplexity)
        assert counted["our_rolling"]["byte_perplexity,none"] == close(found.byte_perplexity)
        assert counted["our_rolling"]["bits_per_byte,none"] == close(found.bits_per_byte)


@pytest.mark.slow
def test_lm_eval_generates_the_same_with_our_weights(weights: str, tmp_path: Path) -> None:
    """Prompts with different options, in one call, in transformers' model and in ours."""
    pytest.importorskip("lm_eval", reason="infra/test.sh --all installs it")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from gptpipe.harness import GptpipeLM

    options = [{"until": ["\n\n"], "max_gen_toks": 9}, {"until": [" the", "a"], "max_gen_toks": 20, "do_sample": False}]
    texts = [" ".join(WORDS[:i]) for i in range(1, 6)]
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(text, options[i % 2]), idx=0)
        for i, text in enumerate(texts)
    ]
    folder = Path(export_hf(weights, str(tmp_path / "hf")))
    (folder / "generation_config.json").unlink()  # its max_new_tokens would win over what the requests say
    theirs = HFLM(str(folder), device="cpu", batch_size=1).generate_until(requests)
    assert GptpipeLM(weights, batch_size=2).generate_until(requests) == theirs
    assert len(set(theirs)) == len(theirs)


def test_an_ending_may_be_empty(weights: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**HELLASWAG[0], "endings": ["", "[x]", "runs off"], "label": 2}))
    task = f"hellaswag:{tmp_path / 'a.jsonl'}"
    found = score_task(task, load(weights), get_tokenizer(), batch_tokens=64, precision="float32")
    assert found.questions == 1
    assert found.numbers.keys() == {
        "hellaswag, right of 1",
        "hellaswag, standard error",
        "hellaswag, right a character",
    }
