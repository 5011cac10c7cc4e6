"""`gptpipe lineage`: what something was made from, and what it went into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from gptpipe.cli.options import Json, PictureOption, print_answer, tracking
from gptpipe.config.settings import settings
from gptpipe.wording import counted

if TYPE_CHECKING:
    from gptpipe.tracking.lineage import Lineage

_MOST = 8  # of the same kind, beside one another
_SHOWN = ("alias", "cross-entropy", "documents", "tokens", "status", "removed", "unreadable", "imported from")


def lineage(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|DATASET|CHECKPOINT|FILE",
            help="Alias, models:/…, a registered model; id or URL of a run, checkpoint or dataset; a file of text.",
        ),
    ],
    picture: PictureOption = None,
    as_json: Json = False,
) -> None:
    """From a registered version to its run, checkpoint, dataset, shards and source files, and back."""
    from gptpipe import storage
    from gptpipe.tracking.lineage import lineage as trace
    from gptpipe.tracking.lineage_picture import lineage_picture

    traced = trace(name, settings().storage_url, tracking())
    answer, lines = traced.as_dict(), list(_lines(traced))
    if picture:
        place = storage.normalize(picture)
        storage.write_bytes(place, lineage_picture(traced))
        answer["picture"] = place
        lines.append(f"picture: {place}")
    print_answer(answer, as_json, "\n".join(lines))


def _lines(traced: Lineage) -> Iterator[str]:
    """The subjects, and below each heading a tree."""
    yield from (_described(traced, key) for key in traced.subjects[:_MOST])
    if len(traced.subjects) > _MOST:
        yield f"and {len(traced.subjects) - _MOST:,} more"
    for head, neighbours in (("made from", traced.parents), ("went into", traced.children)):
        tree = list(_tree(traced, traced.subjects, neighbours, 1, set()))
        yield from ("", head, *(tree or ["  nothing that is known here"]))


def _tree(
    traced: Lineage, keys: list[str], neighbours: Callable[[str], list[str]], depth: int, seen: set[str]
) -> Iterator[str]:
    """What the neighbours of some things are, and theirs; each is told once, many of a kind as a number."""
    indent = "  " * depth
    groups: dict[str, list[str]] = {}
    for other in dict.fromkeys(other for key in keys for other in neighbours(key)):
        if other not in seen:
            groups.setdefault(traced.nodes[other].kind, []).append(other)
    for kind, group in groups.items():
        members = [key for key in group if key not in seen]  # one that stands below another of these is told there
        if not members:
            continue
        seen.update(members)
        if kind in ("shard", "source") or len(members) > _MOST:
            names = ", ".join(traced.nodes[key].name for key in members[: _MOST // 2])
            more = f", and {len(members) - _MOST // 2:,} more" if len(members) > _MOST // 2 else ""
            yield f"{indent}{counted(len(members), kind)}: {names}{more}"
            yield from _tree(traced, members, neighbours, depth + 1, seen)
        else:
            for key in members:
                yield indent + _described(traced, key)
                yield from _tree(traced, [key], neighbours, depth + 1, seen)


def _described(traced: Lineage, key: str) -> str:
    node = traced.nodes[key]
    facts = ", ".join(f"{name} {value}" for name, value in node.facts.items() if name in _SHOWN)
    return f"{node.kind} {node.name}" + (f" ({facts})" if facts else "")
