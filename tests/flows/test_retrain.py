"""The whole pipeline as a person runs it: `gptpipe run`, on a folder and on a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, Qwen3ForCausalLM, pipeline

from gptpipe import load
from gptpipe.dataset.dataset import open_dataset
from gptpipe.services.ports import free_ports
from gptpipe.tokenizer import get_tokenizer
from tests.tokenizer.test_huggingface import german
from tests.weights.test_weights import reference

GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))
TINY = [
    "model.n_layer=1",
    "model.n_embd=16",
    "model.n_head=2",
    "model.context_length=32",
    "train.steps=6",
    "train.batch_size=4",
    "train.warmup_steps=2",
    "train.validate_every=3",
    "train.checkpoint_every=2",
    "train.log_every=1",
    "train.precision=float32",
    "sample.max_new_tokens=8",
    "data.shard_megabytes=1",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        (folder / f"{i:02}.py").write_text("\n".join(f"def f{i}_{j}(x):\n    return x + {i * j}" for j in range(30)))
    return folder


def start(corpus: Path, *more: str) -> subprocess.Popen[str]:
    command = [GPTPIPE, "run", "--json", "--corpus", str(corpus)]
    for text in TINY:
        command += ["--set", text]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=corpus)


def run(corpus: Path, *more: str) -> tuple[dict[str, Any], str]:
    process = start(corpus, *more)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer, err


def ask(api: str, path: str, **body: Any) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{api}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer: list[dict[str, Any]] = json.load(urllib.request.urlopen(request, timeout=20))
    return answer


def test_text_in_registered_model_out_and_nothing_twice(
    corpus: Path, database: None, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    others = {found["id"] for found in ask(prefect_api, "/flow_runs/filter")}
    first, log = run(corpus)
    checkpoint = first["training"]["best_checkpoint"]
    assert Qwen3ForCausalLM.from_pretrained(checkpoint).config.num_hidden_layers == 1
    assert load(checkpoint).config.n_embd == 16
    assert first["dataset"]["dataset"].startswith(str(Path(os.environ["GPTPIPE_HOME"]) / "storage"))
    assert first["model"] == {**first["model"], "version": "1", "champion": True}
    assert first["evaluation"]["cross_entropy"] == pytest.approx(first["training"]["validation_loss"], abs=1e-4)
    assert "Traceback" not in log
    flows = {run["name"]: run for run in ask(prefect_api, "/flows/filter")}
    assert {"retrain", "tokenize", "train", "evaluate", "sample"} <= flows.keys()
    mine = [found for found in ask(prefect_api, "/flow_runs/filter") if found["id"] not in others]
    assert {found["state_type"] for found in mine} == {"COMPLETED"}
    artifacts = {artifact["key"]: artifact for artifact in ask(prefect_api, "/artifacts/filter")}
    assert {"dataset", "training", "training-results", "evaluation", "samples", "retrain"} <= artifacts.keys()
    assert first["model"]["uri"] in artifacts["retrain"]["data"]
    assert "data:image/png;base64," in artifacts["retrain"]["data"]
    steps = [each["step"] for each in first["samples"]["through"]]
    assert steps == sorted({2, 4, 6} & set(steps))
    assert len(steps) > 1
    table = [json.loads(each["data"]) for each in ask(prefect_api, "/artifacts/filter") if each["key"] == "samples"]
    assert [row["step"] for row in table[0]] == steps * len(first["samples"]["samples"])
    again, log = run(corpus)
    assert log.count("already done") == 4
    assert again["training"] == {**first["training"], "already_done": True}
    assert again["model"]["version"] == "1"
    ended = {run["id"]: run["state_name"] for run in ask(prefect_api, "/flow_runs/filter") if run["id"] not in others}
    assert [name for name in ended.values() if name != "Completed"] == ["Skipped"]
    # one more file, and weights to start from: a new dataset, a new training, a second version
    (corpus / "new.py").write_text("def g(y):\n    return y\n" * 20)
    tuned, log = run(corpus, "--init", "champion", "--export", str(corpus.parent / "exported"))
    assert tuned["dataset"]["id"] != first["dataset"]["id"]
    assert "import weights:" in log
    assert tuned["model"]["version"] == "2"
    assert "too few documents to be sure" in tuned["model"]["decision"]  # on the new text, both of them
    before = tuned["evaluation"]["against"]
    assert before["weights"] != tuned["evaluation"]["weights"]
    assert before["comparison"]["difference"] == pytest.approx(
        tuned["evaluation"]["cross_entropy"] - before["cross_entropy"]
    )
    exported = AutoModelForCausalLM.from_pretrained(tuned["export"])
    assert isinstance(exported, Qwen3ForCausalLM)
    trained = load(tuned["training"]["best_checkpoint"]).state_dict()
    assert exported.model.embed_tokens.weight.equal(trained["wte.weight"])
    page = tuned["evaluation"]["page"]
    assert "nats per token" in Path(page).read_text("utf-8")
    said = [str(artifact["data"]) for artifact in ask(prefect_api, "/artifacts/filter")]
    assert any("/artifacts/evaluation.html" in text and before["comparison"]["sentence"] in text for text in said)
    assert any("| before |" in text for text in said)


@pytest.mark.slow
def test_a_hugging_face_folder_in_and_one_out(corpus: Path, tmp_path: Path) -> None:
    """Fine-tuning as one command; the weights' shape is taken, whatever the preset's is."""
    reference(2, 2, 32, 24, 50257).save_pretrained(tmp_path / "in")
    more = ["--init", str(tmp_path / "in"), "--export", str(tmp_path / "out"), "--set", "init_context_length=16"]
    made, _ = run(corpus, *more, "--set", "train.steps=30", "--set", "train.learning_rate=1e-3")
    assert made["evaluation"]["against"]["comparison"]["difference"] < -0.1
    card = (tmp_path / "out" / "README.md").read_text()
    assert made["evaluation"]["against"]["comparison"]["sentence"] in card
    assert "| | this model | before |" in card
    generate = pipeline("text-generation", str(tmp_path / "out"))
    assert generate.model.config.n_positions == 16
    assert generate("def f", max_new_tokens=5, do_sample=False)[0]["generated_text"].startswith("def f")
    again, _ = run(corpus, *more, "--set", "train.steps=30", "--set", "train.learning_rate=1e-3")
    assert again["training"]["already_done"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    refused = start(corpus, "--export", str(tmp_path / "other"))
    assert "the folder holds something else" in json.loads(refused.communicate(timeout=900)[0])["error"]["message"]
    assert refused.returncode == 2


@pytest.mark.slow
def test_a_model_of_another_language_keeps_its_tokenizer_from_night_to_night(corpus: Path, tmp_path: Path) -> None:
    german(tmp_path / "in")
    theirs = GPT2Tokenizer.from_pretrained(tmp_path / "in")
    reference(2, 2, 32, 24, len(theirs)).save_pretrained(tmp_path / "in")
    more = ["--set", "train.steps=20", "--set", "promote.model_name=deutsch"]
    first, _ = run(corpus, "--init", str(tmp_path / "in"), *more)
    # of the same nature as the text that is there: another one would stop the second night
    old = "".join(file.read_text("utf-8") for file in sorted(corpus.glob("*.*"))[:6])
    (corpus / "neu.txt").write_text(f"{old}Die Straße ist größer, als die Übung war.\n")
    second, _ = run(corpus, "--init", "champion", "--export", str(tmp_path / "out"), *more)
    tokenizers = {open_dataset(made["dataset"]["dataset"]).tokenizer["name"] for made in (first, second)}
    assert tokenizers == {get_tokenizer(str(tmp_path / "in")).name}
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported("Die Straße")["input_ids"] == theirs("Die Straße")["input_ids"]
    refused = start(corpus, "--set", f"data.tokenizer={tmp_path}/in")
    error = json.loads(refused.communicate(timeout=900)[0])["error"]
    assert (refused.returncode, error["hint"]) == (2, f"set model.vocab_size={len(theirs)}")
    adapted, _ = run(corpus, "--init", str(tmp_path / "in"), "--set", "data.tokenizer=gpt2", *more)
    assert open_dataset(adapted["dataset"]["dataset"]).tokenizer["name"] == "gpt2"


@pytest.mark.slow
@pytest.mark.stack
def test_two_ranks_on_object_storage_do_the_same_as_on_a_folder(
    corpus: Path, s3_storage: str, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    (corpus / "new.py").unlink(missing_ok=True)
    more = ["--set", "train.nproc=2", "--set", "train.threads=1"]
    remote, _ = run(corpus, *more, "--storage", s3_storage)
    local, _ = run(corpus, *more, "--storage", str(Path(os.environ["GPTPIPE_HOME"]) / "folder"))
    assert remote["training"]["best_checkpoint"].startswith(s3_storage)
    assert remote["dataset"]["id"] == local["dataset"]["id"]
    assert remote["training"]["id"] == local["training"]["id"]
    for (name, mine), (_, other) in zip(
        load(remote["training"]["checkpoint"]).state_dict().items(),
        load(local["training"]["checkpoint"]).state_dict().items(),
        strict=True,
    ):
        assert mine.equal(other), name
    files = [[(f.path, f.sha256) for f in open_dataset(r["dataset"]["dataset"]).index()] for r in (remote, local)]
    assert files[0] == files[1]
    assert remote["evaluation"]["cross_entropy"] == local["evaluation"]["cross_entropy"]
    assert [s["tokens"] for s in remote["samples"]["samples"]] == [s["tokens"] for s in local["samples"]["samples"]]


@pytest.mark.slow
def test_a_preempted_run_goes_on_where_it_was(corpus: Path) -> None:
    (corpus / "new.py").unlink(missing_ok=True)
    process = start(corpus, "--set", "train.steps=100000", "--set", "train.checkpoint_every=0")
    home = Path(os.environ["GPTPIPE_HOME"])
    until = time.monotonic() + 120
    while not any(file.stat().st_size for file in home.glob("jobs/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 75, err
    assert "run again to go on" in json.loads(out)["error"]["message"]
    (folder,) = (home / "storage" / "trainings").glob("*/step-*")
    assert (folder / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.stack
def test_a_model_that_mlflow_was_away_for_is_said_to_be_not_registered(
    corpus: Path, s3_storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTPIPE_MLFLOW_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    words = [word for text in TINY for word in ("--set", text)]
    command = [GPTPIPE, "run", "--corpus", str(corpus), "--storage", s3_storage, *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=corpus, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert "is        not registered: MLflow was away; run the same again once it is back" in ended.stdout
    assert "cannot be reached yet (connection refused)" in ended.stderr
    assert "HTTPConnection" not in ended.stderr
