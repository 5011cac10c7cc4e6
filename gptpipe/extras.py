"""How an extra is installed where this package is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def install_hint(extra: str) -> str:
    """The command that installs an extra: from the checkout that this runs from, with its pinned versions."""
    root = Path(__file__).resolve().parents[1]
    pinned = root / "infra" / "constraints.txt"
    if not pinned.is_file():
        return f"pip install 'gptpipe[{extra}]'"
    python, constraints, package = (_short(place) for place in (Path(sys.executable), pinned, root))
    return f"{python} -m pip install -c {constraints} -e {package}'[{extra}]'"


def _short(place: Path) -> str:
    here = Path.cwd()
    return shlex.quote(str(place.relative_to(here) if place.is_relative_to(here) else place))
