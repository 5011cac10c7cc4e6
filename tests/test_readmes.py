"""The READMEs: short where people start, and no link or file in them leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    p for folder in ("", ".github", "flows", "gptpipe", "gptpipe/config", "infra") for p in (ROOT / folder).glob("*.md")
)
MOST_LINES = 200


def anchors(page: Path) -> set[str]:
    """The names that a heading can be linked by, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} is not there"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`((?:tests|infra|flows|gptpipe)/[\w./-]+)`", page.read_text("utf-8"))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_first_page_is_short_and_begins_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    first = [line.split("#")[0].strip() for line in lines[3:5]]
    assert first == ["infra/run.sh", "infra/test.sh"]
