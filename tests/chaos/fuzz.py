"""Files and words that nobody would write, read by what reads them: each is taken, or refused in a line.

`python -m tests.chaos.fuzz --seconds 60` gives every target its share; `--only TARGET --seed 7` repeats one. Inputs are
good ones with bits flipped, pieces cut, doubled and joined, numbers made large, and values of JSON changed for others.
What ends in anything but a `UserError`, or takes more than seconds, is written to a file and named.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gptpipe.errors import UserError
from tests.chaos.fuzz_targets import Targets

_SECONDS_EACH = 5
_MEMORY = 12 << 30
_NUMBERS = [0, 1, -1, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 1e308, 0.5]
_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    2**70,
    "",
    "x",
    "../..",
    "\x00",
    "\ud800",
    [],
    {},
    [[]],
    {"a": None},
]
_WORDS = [
    b"\xff",
    b"\x00" * 16,
    b"[" * 5000,
    b"{}",
    b"null",
    b"NaN",
    b"-0",
    b"1e999",
    b"\xef\xbb\xbf",
    b"..",
    b"\r\n",
    b"\x1b[2J",
]


class Slow(BaseException):
    """One input took too long."""


def mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    """A good input, changed in one to six ways."""
    data = bytearray(draw.choice(seeds))
    if draw.random() < 0.3:
        with suppress(ValueError, UnicodeDecodeError, RecursionError):
            data = bytearray(_changed_json(draw, json.loads(data)))
    for _ in range(draw.randint(0, 6)):
        place = draw.randrange(len(data) + 1)
        length = min(len(data) - place, draw.choice([1, 2, 4, 8, 64, 1000]))
        match draw.randrange(8):
            case 0 if length:
                data[draw.randrange(place, place + length)] ^= 1 << draw.randrange(8)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                data[place:place] = draw.choice(_WORDS)
            case 4:
                number = draw.choice([value for value in _NUMBERS if isinstance(value, int)])
                size = draw.choice([1, 2, 4, 8])
                data[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
            case 5:
                other = draw.choice(seeds)
                cut = draw.randrange(len(other) + 1)
                data[place:] = other[cut:]
            case 6:
                data[place : place + length] = bytes(draw.randrange(256) for _ in range(length))
            case 7:
                data[place : place + length] = str(draw.choice(_NUMBERS)).encode()
    return bytes(data[: 1 << 20])


def _changed_json(draw: random.Random, value: Any) -> bytes:
    """JSON with one of its values, however deep, another one, gone, or doubled."""
    places = list(_places(value))
    if places:
        holder, key = draw.choice(places)
        match draw.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice(["", "x", str(key) * 2])] = holder.pop(key)
            case _:
                holder[key] = draw.choice(_VALUES)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def fuzz(
    name: str, target: Callable[[bytes], object], seeds: list[bytes], seconds: float, seed: int, kept: Path
) -> tuple[int, int, dict[str, Path]]:
    """Executions, those that were refused in a line, and by what else they ended in a file of one."""
    draw = random.Random(f"{name} {seed}")
    done, refused, faults = 0, 0, dict[str, Path]()
    for data in seeds:
        with suppress(UserError):
            target(data)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        data = mutated(draw, seeds)
        done += 1
        try:
            with within(_SECONDS_EACH):
                target(data)
        except UserError as error:
            refused += 1
            if "\n" in str(error):
                faults.setdefault("more than a line", _keep(kept, name, data))
        except (Exception, Slow) as error:
            last = error.__traceback__
            while last and last.tb_next:
                last = last.tb_next
            place = f"{last.tb_frame.f_code.co_filename.rpartition('/')[2]}:{last.tb_lineno}" if last else ""
            kind = f"{type(error).__name__} at {place}"
            if kind not in faults:
                faults[kind] = _keep(kept, name, data)
    return done, refused, faults


def _keep(folder: Path, name: str, data: bytes) -> Path:
    file = folder / f"{name.replace(' ', '-').strip('-')}-{zlib.crc32(data):08x}"
    file.write_bytes(data)
    return file


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos.fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="this target")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    kept = Path(tempfile.mkdtemp(prefix="gptpipe-fuzz-"))
    total, went_wrong = 0, False
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        targets = Targets(Path(folder)).all()
        chosen = {name: each for name, each in targets.items() if given.only in (None, name)}
        print("| target | executions | refused in a line | faults |\n| --- | ---: | ---: | --- |")
        for name, (target, seeds) in chosen.items():
            done, refused, faults = fuzz(name, target, seeds, given.seconds / len(chosen), given.seed, kept)
            total += done
            went_wrong |= bool(faults)
            told = "; ".join(f"{kind} ({file})" for kind, file in faults.items())
            print(f"| {name} | {done:,} | {refused:,} | {told or '–'} |", flush=True)
    print(f"\n{total:,} executions")
    return int(went_wrong)


if __name__ == "__main__":
    sys.exit(main())
