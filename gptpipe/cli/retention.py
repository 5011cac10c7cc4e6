"""`gptpipe clean`: old versions, checkpoints, datasets and leftovers that nothing refers to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gptpipe.cli.options import Json, print_answer, tracking
from gptpipe.config.settings import settings
from gptpipe.wording import counted

if TYPE_CHECKING:
    from gptpipe.pipeline.retention import Removal


def clean(
    older_than: Annotated[float, typer.Option(metavar="DAYS", min=0, help="What is younger stays.")] = 30.0,
    keep_versions: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            min=1,
            help="Of each registered model this many versions stay, and those with an alias. [default: all, or "
            "GPTPIPE_KEEP_VERSIONS]",
            show_default=False,
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; without this it is only listed.")] = False,
    as_json: Json = False,
) -> None:
    """Old trainings and datasets that no registered version, kept or running run refers to, and leftovers."""
    from gptpipe.pipeline import retention

    store, track = settings().storage_url, tracking()
    most = keep_versions or settings().keep_versions
    do = retention.clean if apply else retention.removals
    listed = do(store, track, older_than, keep_versions=most)
    lines = [_line(each) for each in listed]
    size = sum(each.bytes for each in listed) / 1e6
    if not listed:
        lines.append(f"nothing to remove that is older than {older_than:g} days")
    else:
        said = f"{counted(len(listed), 'thing')}, {size:,.1f} MB"
        lines.append(f"removed {said}" if apply else f"{said}; --apply removes them")
    print_answer({"applied": apply, "removals": [each.as_dict() for each in listed]}, as_json, "\n".join(lines))


def _line(each: Removal) -> str:
    return f"{each.kind:9} {each.bytes / 1e6:10,.1f} MB  {each.age:6.1f} days  {each.place}  ({each.reason})"
