"""Computing on a machine that does other work: how long threads spin while they wait for one another.

Usage: python tests/benchmarks/busy.py [--works training scoring generating] [--spin default 1000] [--rounds 3]
           [--precision bfloat16] [--seconds 8] [--layers 4] [--width 256] [--batch 8] [--context 256]

Work of ours alone, beside one busy loop per core, and twice at once, for each value of GOMP_SPINCOUNT in turn: a
training step (`step.py`), scoring windows (`evaluating.py`) and generating for 16 prompts (`decoding.py`), the last two
with GPT-2 124M. Printed are medians of tokens/s, for two at once their sum, and the ratio to the first value alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weights import write

HERE = Path(__file__).parent
SITUATIONS = ("alone", "beside busy loops", "two at once")
WORKS = ("training", "scoring", "generating")
_PROMPTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--spin", nargs="+", default=["default", "1000"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="bfloat16")
    for name, default in (("seconds", 8), ("layers", 4), ("width", 256), ("batch", 8), ("context", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), "gpt2-124m")
        for work in options.works:
            report(work, command(work, Path(name), options), options)


def report(work: str, words: list[str], options: argparse.Namespace) -> None:
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for situation in SITUATIONS:
            for spin in options.spin:
                found.setdefault((situation, spin), []).append(measure(situation, spin, words))
    base = statistics.median(found["alone", options.spin[0]])
    for (situation, spin), speeds in found.items():
        middle = statistics.median(speeds)
        each = ", ".join(f"{speed:,.1f}" for speed in speeds)
        print(
            f"{work:10} {situation:18} spin {spin:8} {middle:9,.1f} tokens/s  {middle / base:.3f}  ({each})", flush=True
        )


def command(work: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """What does the work once and says how fast it was."""
    if work == "training":
        names = ("seconds", "layers", "width", "batch", "context", "precision")
        words = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
        return [str(HERE / "step.py"), "--variant", "ours", *words]
    if work == "scoring":
        words = ["--work", f"ours {options.precision}", "--windows", "4", "--batch", "4"]
        return [str(HERE / "evaluating.py"), *words, "--folder", str(folder)]
    words = ["--work", "ours", "--precisions", options.precision, "--prompts", str(_PROMPTS), "--new", "32"]
    return [str(HERE / "decoding.py"), *words, "--folder", str(folder)]


def measure(situation: str, spin: str, words: list[str]) -> float:
    """Tokens/s of all that works."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {} if spin == "default" else {"GOMP_SPINCOUNT": spin}
    with busy(len(os.sched_getaffinity(0)) if situation == "beside busy loops" else 0):
        running = [
            subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(2 if situation == "two at once" else 1)
        ]
        said = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    return sum(speed(each) for each in said)


def speed(said: dict[str, float]) -> float:
    """Tokens/s of what a benchmark said: as such, or as milliseconds per step of all prompts."""
    if "step" in said:
        return 1000 * _PROMPTS / said["step"]
    return float(said["tokens_per_second"] if "tokens_per_second" in said else said["speed"])


@contextmanager
def busy(cores: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
