"""Computing on a machine that does other work: how long OpenMP's threads spin while they wait for one another.

Usage: python tests/benchmarks/busy.py [--spin default 1000] [--seconds 8] [--rounds 3] [--layers 4] [--width 256]
           [--batch 8] [--context 256] [--precision bfloat16]

A training step of ours (`step.py`), alone, beside one busy loop per core, and twice at once, for each value of
GOMP_SPINCOUNT in turn. Printed are medians of tokens/s, for two at once their sum, and the ratio to the first value
alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEP = Path(__file__).with_name("step.py")
SITUATIONS = ("alone", "beside busy loops", "two at once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spin", nargs="+", default=["default", "1000"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="bfloat16")
    for name, default in (("seconds", 8), ("layers", 4), ("width", 256), ("batch", 8), ("context", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for situation in SITUATIONS:
            for spin in options.spin:
                found.setdefault((situation, spin), []).append(measure(situation, spin, options))
    base = statistics.median(found["alone", options.spin[0]])
    for (situation, spin), speeds in found.items():
        middle = statistics.median(speeds)
        each = ", ".join(f"{speed:,.0f}" for speed in speeds)
        print(f"{situation:18} spin {spin:8} {middle:7,.0f} tokens/s  {middle / base:.3f}  ({each})")


def measure(situation: str, spin: str, options: argparse.Namespace) -> float:
    """Tokens/s of all that trains."""
    with busy(len(os.sched_getaffinity(0)) if situation == "beside busy loops" else 0):
        running = [start(spin, options) for _ in range(2 if situation == "two at once" else 1)]
        said = [process.communicate()[0] for process in running]
    return sum(float(json.loads(text.splitlines()[-1])["tokens_per_second"]) for text in said)


def start(spin: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    names = ("seconds", "layers", "width", "batch", "context", "precision")
    words = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {} if spin == "default" else {"GOMP_SPINCOUNT": spin}
    command = [sys.executable, str(STEP), "--variant", "ours", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


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
