"""Everything that is asked of a GPU, part by part, each in processes of its own and with a limit; the table comes last.

Usage: python tests/benchmarks/gpu.py [--quick] [--parts step decoding …] [--wheels FOLDER] [--other NAME=model.py]
           [--out FOLDER] [--device cpu]

Needs a plain Python 3.12 with torch 2.11 or newer, pyarrow, tiktoken, transformers and pytest, and this checkout; what
else gptpipe imports is taken from the wheels in FOLDER (pydantic, pydantic-core, pydantic-settings, python-dotenv,
typing-inspection, annotated-types). No Prefect, no MLflow, no network. It ends within 7 minutes, with `--quick` within
3: a part for which no time is left says so. `--other` names a nanoGPT-like `model.py` to hold the step against. Without
a GPU it runs at a toy size: that shows that the script works, and the numbers mean nothing. `--out` keeps the parts'
whole outputs. What is measured stands in `gpu_work.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_work import Sizes

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
# a part, and the seconds that it may take: whole, and quick
LIMITS = {
    "device": (25, 20),
    "agreement": (20, 15),
    "tests": (60, 30),
    "step": (100, 40),
    "trainer": (110, 50),
    "decoding": (50, 35),
    "scoring": (40, 25),
    "loss": (30, 20),
    "profile": (25, 20),
    "resume": (90, 50),
}
SECONDS = (410, 175)  # in all
Row = tuple[str, str, str, str]  # what, ours, the reference, the ratio and what is asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--other", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        environment = _environment(Path(name), options.wheels)
        options.device = options.device or _device(environment)
        run_all(options, environment, Path(name))


def _environment(folder: Path, wheels: Path | None) -> dict[str, str]:
    """That of the parts: this checkout and the wheels can be imported, and what is made goes into a folder."""
    paths = [str(ROOT)]
    for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
        zipfile.ZipFile(wheel).extractall(folder / "wheels")
        paths[1:] = [str(folder / "wheels")]
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *([before] if before else [])]),
        "GPTPIPE_HOME": str(folder / "home"),
        "GPTPIPE_WORK": str(folder),
        "HF_HUB_OFFLINE": "1",
    }


def _device(environment: dict[str, str]) -> str:
    asked = [sys.executable, "-c", "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def run_all(options: argparse.Namespace, environment: dict[str, str], folder: Path) -> None:
    rows: list[Row] = []
    began = time.perf_counter()
    for part in options.parts:
        start = time.perf_counter()
        limit = min(LIMITS[part][options.quick], SECONDS[options.quick] - (start - began))
        if limit < 5:
            rows.append((part, "no time was left", "", ""))
            continue
        runner = Runner(options, environment, start + limit, folder / f"{part}.log")
        try:
            rows += PARTS[part](runner, Sizes.of(options.device, options.quick))
        except subprocess.TimeoutExpired:
            rows.append((part, f"took more than {limit:.0f} s", "", ""))
        except Exception as error:  # whatever a part stumbles over, the others' figures are shown
            rows.append((part, f"failed: {runner.last_words() or error}"[:110], "", ""))
        print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / f"{part}.log", options.out)
    print(f"\n{time.perf_counter() - began:.0f} s in all\n")
    for row in [("what", "ours", "reference", "ratio (asked)"), *rows]:
        print(f"{row[0]:44} {row[1]:>34} {row[2]:>26}  {row[3]}".rstrip())


class Runner:
    """Starts the processes of a part, and ends them at its limit."""

    def __init__(self, options: argparse.Namespace, environment: dict[str, str], until: float, log: Path) -> None:
        self.options, self._environment, self._until, self._log = options, environment, until, log
        log.write_text("")

    def __call__(self, work: str, **variables: str) -> Any:
        """What a work of `gpu_work.py` comes to, in a process of its own."""
        options = self.options
        words = [work, "--device", options.device, *["--quick"] * options.quick, "--other", options.other]
        return json.loads(self.run(str(HERE / "gpu_work.py"), *words, **variables).splitlines()[-1])

    def run(self, *words: str, **variables: str) -> str:
        """The output of a Python program."""
        left = max(1.0, self._until - time.perf_counter())
        with self._log.open("a") as log:
            log.write(f"$ {' '.join(words)} {variables}\n")
            log.flush()
            done = subprocess.run(
                [sys.executable, *words], cwd=ROOT, env={**self._environment, **variables}, stdout=subprocess.PIPE,
                stderr=log, text=True, timeout=left,
            )  # fmt: skip
            log.write(done.stdout)
        done.check_returncode()
        return done.stdout

    def last_words(self) -> str:
        lines = [line for line in self._log.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else ""


def ratio(ours: float, theirs: float, asked: str = "") -> str:
    return f"{ours / theirs:.2f} x" + (f" ({asked})" if asked else "")


def device_part(run: Runner, sizes: Sizes) -> list[Row]:
    made = run("device")
    return [
        ("device", made["name"], f"torch {made['torch']}", ""),
        (f"product of {sizes.square}² in bfloat16", f"{made['product'] / 1e12:.0f} TFLOP/s", "", ""),
        ("copy", f"{made['copy'] / 1e9:.0f} GB/s", "", ""),
    ]


def loss_part(run: Runner, _sizes: Sizes) -> list[Row]:
    made = run("loss")
    rows: list[Row] = [("loss and gradient of a chunk, torch's own", f"{made['torch'] * 1e3:.2f} ms", "", "")]
    if "fused" not in made:
        return [*rows, ("the same, fused", "does not run here", "", "")]
    floor = f"floor {made['floor'] * 1e3:.2f} ms"
    rows.append(("the same, fused", f"{made['fused'] * 1e3:.2f} ms", floor, ratio(made["torch"], made["fused"])))
    best = min(made["others"], key=lambda each: float(each[1]))
    rows.append(("the best of other tiles", f"{best[1] * 1e3:.2f} ms", best[0], ratio(made["fused"], best[1])))
    rows.append(("its distance from float64", f"{made['distance']:.1e}", "", "(asked < 1e-2: bfloat16)"))
    return rows


def step_part(run: Runner, sizes: Sizes) -> list[Row]:
    others = [run.options.other.partition("=")[0]] if run.options.other else []
    made: dict[str, dict[str, float]] = {}
    variants = ["ours", "transformers", *others, *([] if run.options.quick else ["ours, not compiled"])]
    for who in variants:
        made[who] = run("step", GPTPIPE_WHO=who)
    ours, rows = made["ours"], []
    for who, each in made.items():
        asked = {"transformers": "asked 1.5", **dict.fromkeys(others, "asked 1.15")}.get(who, "")
        said = f"{each['speed'] / 1e3:,.1f} k tokens/s, {each['peak'] / 1e9:.1f} GB"
        label = "" if who == "ours" else ratio(ours["speed"], each["speed"], asked)
        memory = "" if who == "ours" else f"{ours['peak'] / each['peak']:.2f} x its memory (asked 0.7)"
        rows.append(
            (f"step of {sizes.batch} windows, {who}", said, f"MFU {each['mfu']:.3f}", f"{label} {memory}".strip())
        )
    return rows


def profile_part(run: Runner, _sizes: Sizes) -> list[Row]:
    made = run("profile")
    return [(f"  {name[:40]}", f"{share:.1%} of a step", f"{count} kernels", "") for name, share, count in made]


def trainer_part(run: Runner, sizes: Sizes) -> list[Row]:
    first, second = run("trainer", GPTPIPE_OUT="first"), run("trainer", GPTPIPE_OUT="second")
    rows: list[Row] = []
    for name, made, asked in (("the first time", first, 40), ("the second", second, 20)):
        rows.append((f"call to first step, {name}", f"{made['start']:.1f} s", "", f"(asked {asked})"))
        rows.append(("  of these", made["phases"][:110], "", ""))
    best = max(first, second, key=lambda made: float(made["speed"]))
    speed, mfu = f"{best['speed'] / 1e3:,.1f} k tokens/s", f"MFU {best['mfu']:.3f}"
    rows.append((f"trainer, {15 * sizes.batch} windows", speed, mfu, "(asked 0.50)"))
    shares = f"{best['wait']:.2%}, {best['stall']:.2%}"
    rows.append(("  wait for data, stall of checkpoints", shares, "", "(asked 1 %, 3 %)"))
    how = f"{best['micro_batch']}, {best['compiled']}"
    rows.append(("  micro-batch, compiled", how, f"{second['seconds']:.0f} s in all", ""))
    return rows


def decoding_part(run: Runner, _sizes: Sizes) -> list[Row]:
    rows: list[Row] = []
    made = run("decoding")
    for precision in ("bfloat16", "float32"):
        for prompts in (1, 16):
            step, floor, theirs = (made[f"{who} {precision} {prompts}"] for who in ("ours", "floor", "transformers"))
            half = precision == "bfloat16"
            said = f"{step / floor:.1f} x the floor" + (" (asked 4)" if half and prompts == 1 else "")
            if prompts > 1:
                said += f", {step / made[f'ours {precision} 1']:.2f} x one prompt's" + (" (asked 2)" if half else "")
            said += f", {theirs / step:.1f} x its speed"
            label = f"token of {prompts} prompt{'s' * (prompts > 1)}, {precision}"
            rows.append((label, f"{step:.3f} ms, floor {floor:.3f}", f"transformers {theirs:.2f} ms", said))
    return rows


def scoring_part(run: Runner, _sizes: Sizes) -> list[Row]:
    rows: list[Row] = []
    made = run("scoring")
    for precision in ("bfloat16", "float32"):
        ours, theirs = (made[f"{who} {precision}"] for who in ("ours", "transformers"))
        asked = "asked 1.6" if precision == "bfloat16" else ""
        said = [f"{each['speed'] / 1e3:,.1f} k tokens/s, {each['peak'] / 1e9:.1f} GB" for each in (ours, theirs)]
        rows.append((f"scoring, {precision}", said[0], said[1], ratio(ours["speed"], theirs["speed"], asked)))
    return rows


def agreement_part(run: Runner, _sizes: Sizes) -> list[Row]:
    made = run("agreement")
    said = f"{made['far']:.1e} nats, of {made['first']:.2f} to {made['last']:.2f}"
    return [("losses of a training, beside the CPU's", said, "", "(asked < 2e-2)")]


def resume_part(run: Runner, _sizes: Sizes) -> list[Row]:
    made = run("resume")
    same = "the same bits" if made["same"] else "other bits"
    rows: list[Row] = [("resumed with deterministic=true", same, "", "(asked the same)")]
    if made["free"]:
        said = [f"{made[kind] / 1e3:,.1f} k tokens/s" for kind in ("deterministic", "free")]
        rows.append(("  its speed, and without", *said, ratio(made["deterministic"], made["free"])))
    return rows


def tests_part(run: Runner, sizes: Sizes) -> list[Row]:
    """The tests that concern CUDA; without a GPU those that have Python run the kernels."""
    which = "on_a_gpu or decoder_of_other_devices" if sizes.device == "cuda" else "by_python"
    files = ["tests/model/test_kernels.py", "tests/generation/test_kernels.py", "tests/generation/test_generate.py"]
    made = run.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--noconftest", *files, "-k", which
    )
    return [("tests that concern it", made.splitlines()[-1][:60], "", "")]


PARTS: dict[str, Callable[[Runner, Sizes], list[Row]]] = {
    "device": device_part,
    "loss": loss_part,
    "step": step_part,
    "profile": profile_part,
    "trainer": trainer_part,
    "decoding": decoding_part,
    "scoring": scoring_part,
    "agreement": agreement_part,
    "resume": resume_part,
    "tests": tests_part,
}


if __name__ == "__main__":
    main()
