"""`metrics.jsonl`: one line per logged step, written by rank 0 in the job's folder."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends lines, each flushed whole, so that a reader that follows the file sees complete steps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")

    def write(self, step: int, tokens: int, values: dict[str, float]) -> None:
        line = {
            "step": step,
            "tokens": tokens,
            **{key: value for key, value in values.items() if math.isfinite(value)},
        }
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()

    def contents(self) -> bytes:
        self._file.flush()
        return self.path.read_bytes()


def read_line(line: bytes) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`: numbers by name, its step among them. None where it is cut off, or damaged."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_whole = isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())
    return values if is_whole and isinstance(values.get("step"), int) else None


def keep_until(content: bytes, step: int) -> bytes:
    """The lines of `metrics.jsonl` up to a step: what a run resumed there has behind it.

    One that cannot be read is left out: the last one, mostly, of a run that was killed while writing it.
    """
    lines = content.splitlines()
    return b"".join(line + b"\n" for line in lines if (values := read_line(line)) and values["step"] <= step)


class MetricsFollower:
    """Reads what was appended to `metrics.jsonl` since the last look, complete lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def poll(self) -> list[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                block = file.read()
        except FileNotFoundError:
            return []
        complete = block[: block.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [values for line in complete.splitlines() if (values := read_line(line))]


def memory_megabytes() -> float:
    """Peak memory of this process so far, in MB (of the GPU where there is one)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path(f"/proc/{os.getpid()}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
