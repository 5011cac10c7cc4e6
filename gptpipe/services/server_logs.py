"""Tracebacks in the servers' logs."""

from __future__ import annotations


def traceback_ends(text: str) -> list[str]:
    """The line that ends each traceback of a log: the exception and its message."""
    ends: list[str] = []
    inside = False
    for line in text.splitlines():
        bare = line.strip(" |+-\t")
        if bare.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and bare and not line.startswith((" ", "\t", "|")):
            ends.append(bare[:200])
            inside = False
    return ends + ["it is cut off"] * inside
