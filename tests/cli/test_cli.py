"""The command line: answers as JSON, and bad input as one line with exit code 2."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gptpipe import GPT, ModelConfig
from gptpipe.cli.entry import run as main
from gptpipe.weights.commit import write_checkpoint
from gptpipe.weights.huggingface import hf_config, hf_tensors

GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))


def gptpipe(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([GPTPIPE, *arguments], capture_output=True, text=True, timeout=120, input=stdin)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=16))
    folder = tmp_path_factory.mktemp("weights")
    config = hf_config(model.config, "gpt2", 50256)
    return write_checkpoint(str(folder), 7, model=hf_tensors(model), config=config, state={}).url


BAD = {
    "no such command": (["trian"], "trian"),
    "missing option": (["generate"], "--weights"),
    "no corpus": (["tokenize", "--out", "{tmp}/out"], "no corpus"),
    "no file matches": (["tokenize", "--corpus", "{tmp}/none-*.txt", "--out", "{tmp}/out"], "no file matches"),
    "empty corpus": (["tokenize", "--corpus", "{tmp}/empty", "--out", "{tmp}/out"], "every file of it is empty"),
    "not UTF-8": (["tokenize", "--corpus", "{tmp}/latin.txt", "--out", "{tmp}/out"], "latin.txt: byte 3 is not UTF-8"),
    "JSONL without the field": (["tokenize", "--corpus", "{tmp}/a.jsonl", "--out", "{tmp}/out"], "a.jsonl, line 2"),
    "empty validation": (
        ["tokenize", "--corpus", "{tmp}/same", "--out", "{tmp}/out"],
        "validation split would be empty: all of 2 documents are the same text",
    ),
    "nothing to evaluate on": (
        ["run", "--corpus", "{tmp}/two", "--set", "data.validation=0"],
        "data.validation=0: nothing is kept for validation",
    ),
    "no such dataset to evaluate on": (
        ["run", "--corpus", "{tmp}/two", "--set", "evaluate.data={tmp}/none"],
        "no dataset: nothing there",
    ),
    "no such task": (
        ["run", "--corpus", "{tmp}/two", "--set", "evaluate.tasks=[lambada:{tmp}/none.jsonl]"],
        "none.jsonl: no such file",
    ),
    "a window longer than the context": (
        ["run", "--corpus", "{tmp}/two", "--set", "evaluate.context_length=4096"],
        "evaluate.context_length: a window of 4096 tokens, the model's context is",
    ),
    "no champion yet": (["generate", "--weights", "champion", "--prompt", "a"], "models:/gpt"),
    "a link to itself as a corpus": (
        ["tokenize", "--corpus", "{tmp}/links/loop", "--out", "{tmp}/out"],
        "loop: Too many",
    ),
    "a link to itself to write to": (["tokenize", "--corpus", "{tmp}/two", "--out", "{tmp}/links/loop"], "loop"),
    "a link to itself as weights": (["generate", "--weights", "{tmp}/links/loop", "--prompt", "a"], "loop"),
    "a link to itself as a dataset": (["inspect", "{tmp}/links/loop"], "loop"),
    "a link to itself as a task": (
        ["evaluate", "--weights", "{weights}", "--text", "{tmp}/two/a.txt", "--task", "lambada:{tmp}/links/loop"],
        "loop",
    ),
    "a name that is too long": (["tokenize", "--corpus", "x" * 5000, "--out", "{tmp}/out"], "File name too long"),
    "built-in": (["tokenize", "--corpus", "stdlibb:", "--out", "{tmp}/out"], "no built-in corpus"),
    "tokenizer": (["tokenize", "--corpus", "{tmp}/two", "--out", "{tmp}/out", "--tokenizer", "gpt-2"], "known:"),
    "preset": (["run", "--preset", "gpt2-124"], "did you mean gpt2-124m?"),
    "key": (["run", "--set", "train.lerning_rate=1"], "did you mean train.learning_rate?"),
    "value": (["run", "--set", "train.steps=-1"], "--set train.steps=-1: input"),
    "a value of a sweep": (["sweep", "--trials", "-1"], "--trials -1: input"),
    "a value of a tokenization": (
        ["tokenize", "--corpus", "{tmp}/two", "--out", "{tmp}/x", "--validation", "7"],
        "--validation 7.0: input",
    ),
    "a value of a training": (["train", "--data", "x", "--out", "y", "--nproc", "0"], "--nproc 0: input"),
    "a value of an evaluation": (["evaluate", "--weights", "{weights}", "--context", "-1"], "--context -1: input"),
    "a preset": (["run", "--preset", "none"], "--preset none: no preset"),
    "a number outside JSON's": (["run", "--set", f"train.validate_tokens={10**30}"], "train.validate_tokens"),
    "a number that is none": (["run", "--set", "train.grad_clip=.inf"], "train.grad_clip"),
    "config file": (["run", "--config", "{tmp}/none.yaml"], "none.yaml"),
    "s3 without credentials": (["run", "--corpus", "{tmp}/two", "--storage", "s3://bucket/x"], "credentials"),
    "no dataset": (["train", "--data", "{tmp}/two", "--out", "{tmp}/out"], "no dataset"),
    "no weights": (["generate", "--weights", "{tmp}/two", "--prompt", "a"], "no weights there"),
    "no such model": (["generate", "--weights", "models:/none@champion", "--prompt", "a"], "models:/none@champion"),
    "temperature": (["generate", "--weights", "{weights}", "--prompt", "a", "--temperature", "-1"], "temperature"),
    "no prompt": (["generate", "--weights", "{weights}"], "--prompt: no prompt"),
    "a file of no prompt": (
        ["generate", "--weights", "{weights}", "--prompts", "{tmp}/empty/a.txt"],
        "a.txt: no prompt",
    ),
    "log-probabilities that nobody sees": (
        ["generate", "--weights", "{weights}", "--prompt", "a", "--logprobs"],
        "--logprobs: text shows no log-probabilities",
    ),
    "not a prompt": (
        ["generate", "--weights", "{weights}", "--prompts", "{tmp}/a.jsonl"],
        "a.jsonl, line 1: not an object with a `prompt`",
    ),
    "min-p": (["generate", "--weights", "{weights}", "--prompt", "a", "--min-p", "2"], "--min-p:"),
    "temperature that is no number": (
        ["generate", "--weights", "{weights}", "--prompt", "a", "--temperature", "nan"],
        "--temperature:",
    ),
    "empty stop": (
        ["generate", "--weights", "{weights}", "--prompt", "a", "--stop", ""],
        "an empty text is everywhere",
    ),
    "slide": (["generate", "--weights", "{weights}", "--prompt", "a", "--slide", "two"], "--slide:"),
    "export type": (["export", "{weights}", "--out", "{tmp}/x", "--dtype", "int8"], "--dtype: 'int8' is not one of"),
    "export type of another format": (
        ["export", "{weights}", "--out", "{tmp}/x", "--dtype", "q8_0"],
        "--dtype: 'q8_0' is not one of float32, bfloat16, float16",
    ),
    "export to a GGUF folder": (["export", "{weights}", "--out", "{tmp}/x", "--format", "gguf"], "GGUF is one file"),
    "half of a character": (["generate", "--weights", "{weights}", "--prompt", "a", "--stop", "a\udcff"], "half of a"),
    "several values of one option": (
        ["generate", "--weights", "{weights}", "--prompt", "a", "b"],
        "before every value",
    ),
    "nowhere": (["import", "{weights}", "--out", ""], "an empty name"),
    "a GPU that is not there": (
        ["evaluate", "--weights", "{weights}", "--text", "{tmp}/two/a.txt", "--set", "evaluate.device=cuda"],
        "this torch is the build for CPUs",
    ),
    "weights to start from": (["run", "--corpus", "{tmp}/two", "--init", "{tmp}/two"], "no weights there"),
    "an export that cannot be": (["run", "--corpus", "{tmp}/two", "--export", "{tmp}/two"], "holds something else"),
    "top-p": (["generate", "--weights", "{weights}", "--prompt", "a", "--top-p", "0"], "--top-p:"),
    "both": (
        ["evaluate", "--weights", "{weights}", "--data", "x", "--text", "{tmp}/two/a.txt"],
        "either a dataset or a text",
    ),
    "short text": (["evaluate", "--weights", "{weights}", "--text", "-"], "standard input: there is no text"),
    "empty text": (["evaluate", "--weights", "{weights}", "--text", "{tmp}/empty/a.txt"], "a.txt: there is no text"),
    "a page that is none": (
        ["evaluate", "--weights", "{weights}", "--text", "{tmp}/two/a.txt", "--page", "{tmp}/page.txt"],
        "give one that ends in .html",
    ),
    "a page where none can be": (
        ["evaluate", "--weights", "{weights}", "--text", "{tmp}/two/a.txt", "--page", "{tmp}/latin.txt/a.html"],
        "latin.txt: cannot be written",
    ),
    "samples where none can be": (
        ["generate", "--weights", "{weights}", "--prompt", "a", "--out", "{tmp}/latin.txt/a.jsonl"],
        "latin.txt: cannot be written",
    ),
    "nothing to hold it against": (
        ["evaluate", "--weights", "{weights}", "--text", "{tmp}/two/a.txt", "--against", "{tmp}/two"],
        "no weights there",
    ),
    "context": (
        ["evaluate", "--weights", "{weights}", "--text", "{tmp}/two/a.txt", "--context", "17"],
        "context is 16",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str,
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    for name in ("two", "same"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / "same" / f"{name}.txt").write_text("some text")
    (tmp_path / "two" / "a.txt").write_text("some text")
    (tmp_path / "two" / "b.txt").write_text("other text")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "loop").symlink_to("loop")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    arguments, message = BAD[case]
    monkeypatch.setattr(sys, "argv", ["gptpipe", *(a.format(tmp=tmp_path, weights=weights) for a in arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit) as ended:  # in this process: each of its own would load torch again
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2, said.err
    assert message in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1, said.err
    assert said.out == ""
    assert not list(tmp_path.glob("out/**/manifest.json"))


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_ends_nothing(closed: str) -> None:
    done = subprocess.run(["sh", "-c", f"{GPTPIPE} presets {closed}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("gpt2-124m" in done.stdout) == (not closed.startswith(">"))


def test_a_full_disk_under_json_is_one_line() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{GPTPIPE} presets --json >/dev/full"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: cannot be written")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.4])
def test_ctrl_c_at_the_start_leaves_no_trace(seconds: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [GPTPIPE, "run", "--corpus", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in (75, 2)  # 2: it was quicker, and there is no file


def test_errors_as_json() -> None:
    done = gptpipe("run", "--set", "train.stepz=3", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "error": {"message": "unknown key", "where": "--set train.stepz=3", "hint": "did you mean train.steps?"}
    }


def test_tokenize_train_evaluate_generate_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(*arguments: str, stdin: str = "") -> str:
        """What a command prints in this process: each of its own would load torch again."""
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["gptpipe", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out

    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.md").write_text(f"Chapter {i}. " + "It was a dark and stormy night. " * 20)
    made = json.loads(
        gptpipe("tokenize", "--corpus", str(tmp_path / "text"), "--out", str(tmp_path / "data"), "--json").stdout
    )
    assert {"dataset", "id", "documents", "tokens", "shards", "megabytes_per_second"} <= made.keys()
    done = here("tokenize", "--corpus", str(tmp_path / "text"), "--out", str(tmp_path / "data"))
    assert done == f"already done: {made['dataset']}\n"
    shape = [f"--set=model.{k}" for k in ("n_layer=1", "n_head=1", "n_embd=8", "context_length=16")]
    training = gptpipe(
        "train",
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
        *shape,
        "--set=train.steps=3",
        "--set=train.warmup_steps=1",
        "--set=train.batch_size=2",
        "--json",
    )
    trained = json.loads(training.stdout)
    assert {"steps", "tokens", "checkpoint", "train_loss", "validation_loss", "tokens_per_second"} <= trained.keys()
    scored = json.loads(here("evaluate", "--weights", trained["training"], "--data", made["dataset"], "--json"))
    assert {"cross_entropy", "perplexity", "bits_per_byte", "tokens", "bytes"} <= scored.keys()
    piped = json.loads(here("evaluate", "--weights", trained["checkpoint"], "--text", "-", "--json", stdin="two words"))
    assert piped["tokens"] == 1
    said = json.loads(
        here(
            "generate",
            "--weights",
            trained["checkpoint"],
            "--prompt",
            "It was",
            "--prompt",
            "Chapter",
            "--max-new-tokens",
            "4",
            "--temperature",
            "0",
            "--json",
        )
    )
    assert [sample["prompt"] for sample in said["samples"]] == ["It was", "Chapter"]
    assert all(sample["text"].startswith(sample["prompt"]) for sample in said["samples"])
    (tmp_path / "prompts.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "It was", "id": 7}\r\n\r\n{"prompt": "Chapter"}\r\n'
    )
    given = ["--prompts", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "samples.jsonl"), "--logprobs"]
    greedy = ["--max-new-tokens", "4", "--temperature", "0"]
    here("generate", "--weights", trained["checkpoint"], *given, *greedy)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [sample["text"] for sample in said["samples"]]
    assert [line.get("id") for line in lines] == [7, None]
    assert all(line["prompt"] + line["continuation"] == line["text"] for line in lines)
    assert all(len(line["logprobs"]) == len(line["tokens"]) for line in lines)
    folder = here("export", trained["checkpoint"], "--out", str(tmp_path / "hf")).strip()
    again = here("generate", "--weights", folder, "--prompt", "It was", *greedy)
    assert again == said["samples"][0]["text"] + "\n"
    brought = json.loads(here("import", trained["checkpoint"], "--out", str(tmp_path / "imported"), "--json"))
    assert (Path(brought["checkpoint"]) / "model.safetensors").exists()


def test_what_there_is() -> None:
    assert "nano" in {row["name"] for row in json.loads(gptpipe("presets", "--json").stdout)["presets"]}
    (corpus,) = json.loads(gptpipe("corpora", "--json").stdout)["corpora"]
    assert corpus["url"] == "stdlib:"
    assert corpus["megabytes"] > 10
    checks = {c["name"]: c for c in json.loads(gptpipe("doctor", "--json").stdout)["checks"]}
    assert checks["storage"]["ok"] is True
    assert checks["tokenizer"]["ok"] is True
    assert "torch" in checks["versions"]["detail"]


def test_doctor_says_what_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTPIPE_MLFLOW_URI", "http://127.0.0.1:9")
    done = gptpipe("doctor")
    assert done.returncode == 1
    assert "FAIL tracking" in done.stdout
    assert "GPTPIPE_MLFLOW_URI" in done.stdout


def test_a_reader_that_goes_away_is_no_failure_to_tell() -> None:
    with subprocess.Popen([GPTPIPE, "presets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_line_that_holds_no_prompt_is_named_by_its_place(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ('{"prompt": null}', "[1]", '"a"', "[" * 100_000):
        (tmp_path / "a.jsonl").write_text(f'\n{{"prompt": "a"}}\n\n{wrong}\n')
        arguments = ["generate", "--weights", weights, "--prompts", str(tmp_path / "a.jsonl")]
        monkeypatch.setattr(sys, "argv", ["gptpipe", *arguments])
        with pytest.raises(SystemExit):
            main()
        assert "a.jsonl, line 4: not an object with a `prompt`" in capsys.readouterr().err


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUTF8"}
    command = command.replace("gptpipe ", f"'{GPTPIPE}' ")
    return subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, env=kept | environment)


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}])
def test_a_terminal_that_is_not_utf_8_ends_nothing(tmp_path: Path, locale: dict[str, str]) -> None:
    folder = tmp_path / "é té"
    folder.mkdir()
    for number in range(3):
        (folder / f"naïve-{number}.txt").write_text(f"text {number}")
    made = shell(f"gptpipe tokenize --corpus '{folder}' --out '{folder}/out'", **locale)
    assert made.returncode == 0, made.stderr
    assert b" -> " in made.stdout
    assert (b"\\xe9 t\\xe9" if "LC_ALL" in locale else "é té".encode("latin-1")) in made.stdout
    wrong = shell(f"gptpipe tokenize --corpus '{folder}/none-ü' --out '{folder}/out'", **locale)
    assert wrong.returncode == 2
    assert b"no file matches - give a file" in wrong.stderr
    assert b"Traceback" not in wrong.stderr


def test_an_answer_that_cannot_be_written_is_a_line() -> None:
    full = shell("gptpipe presets > /dev/full")
    assert full.returncode == 2
    assert full.stderr == b"error: standard output: cannot be written (No space left on device)" + (
        " — write it to another disk\n".encode()
    )
    assert shell("gptpipe presets | head -c 1").returncode == 0


@pytest.mark.parametrize("command", ["gptpipe doctor", "gptpipe presets", "gptpipe run"])
def test_a_folder_that_was_deleted_under_the_process_is_a_line(tmp_path: Path, command: str) -> None:
    ended = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; {command}")
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: the current folder: cannot be used")
    assert ended.stderr.count(b"\n") == 1


def test_a_home_that_cannot_be_written_is_a_line() -> None:
    ended = shell("gptpipe run", GPTPIPE_HOME="/proc/nothing")
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: /proc/nothing: cannot be written")
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "command", [pytest.param("generate --prompt def --max-new-tokens 2", marks=pytest.mark.slow), "evaluate --text -"]
)
def test_what_needs_no_local_folder_makes_none(weights: str, tmp_path: Path, command: str) -> None:
    for home in ("/proc/nothing", str(tmp_path / "home")):
        ended = shell(f"echo some words of text | gptpipe {command} --weights {weights}", GPTPIPE_HOME=home)
        assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("value", ["http:/x", "127.0.0.1:9000", "ftp://x"])
def test_an_s3_endpoint_without_its_scheme_is_a_line(value: str) -> None:
    ended = shell("gptpipe doctor", GPTPIPE_S3_ENDPOINT=value)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: GPTPIPE_S3_ENDPOINT")
    assert ended.stderr.count(b"\n") == 1


AT_THE_END = """
import atexit, sys, threading, time

import pyarrow.parquet  # its threads are there to the end
from gptpipe.cli import main


def late():
    threading.main_thread().join()  # the command is done
    time.sleep(0.3)
    print("a thread of Python's own")


class Never:
    def __del__(self):
        print("taken apart")


kept = Never()
atexit.register(print, "registered for the end")
threading.Thread(target=late).start()
sys.argv = ["gptpipe", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("words", "code"), [(["presets", "--json"], 0), (["evaluate"], 2)])
def test_a_command_ends_with_its_code_once_all_is_said_and_takes_nothing_apart(words: list[str], code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", AT_THE_END, *words], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert ended.stdout.splitlines()[-2:] == ["a thread of Python's own", "registered for the end"]


def test_a_pool_that_is_just_closing_its_pipe_ends_no_command() -> None:
    """As Python's own process pools do now and then: they are told to end through a pipe that closes meanwhile."""
    told = AT_THE_END.replace(
        "sys.argv =", "faults = [OSError(9, 'Bad file descriptor')]\n" + FAREWELL + "sys.argv =", 1
    )
    ended = subprocess.run([sys.executable, "-c", told, "presets"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-2:] == ["a thread of Python's own", "registered for the end"]


FAREWELL = """

def farewell():
    if faults:
        raise faults.pop()


threading._register_atexit(farewell)
"""
