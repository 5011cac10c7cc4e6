"""What runs say together, and which version serves: `compare`, `reproduce`, `fit-scaling`, `rollback`, `approve`."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptpipe.cli.options import (
    ConfigFile,
    HtmlOption,
    Json,
    Overrides,
    PictureOption,
    named,
    print_answer,
    token_cache,
    tracking,
)
from gptpipe.config import PromoteConfig, load_config
from gptpipe.config.settings import settings
from gptpipe.errors import UserError

if TYPE_CHECKING:
    from gptpipe.tracking.registry import Registered

_WIDTH = 28  # characters of a value in a terminal


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Id or its beginning, name, alias, models:/NAME@ALIAS."),
    ] = None,
    html: HtmlOption = None,
    score: Annotated[
        bool, typer.Option("--score", help="Score runs on the first one's text where they were scored on another.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Runs side by side, by default the last five: what differs, which is better and how surely, at what cost."""
    from gptpipe import storage
    from gptpipe.tracking.comparison import curves, score_again, side_by_side
    from gptpipe.tracking.comparison_page import comparison_page

    out = storage.join(settings().storage_url, "evaluations")
    compared = side_by_side(tracking(), runs or [], score_again(out, token_cache()) if score else None)
    answer = compared.as_dict()
    lines = [compared.sentence, "", *_table(compared.rows, [column.name for column in compared.columns])]
    if html:
        place = storage.normalize(html)
        storage.write_bytes(place, comparison_page(compared, curves(tracking(), compared)).encode())
        answer["page"] = place
        lines.append(f"page: {place}")
    print_answer(answer, as_json, "\n".join(lines))


def _table(rows: dict[str, list[str]], names: list[str]) -> list[str]:
    """Columns called 1, 2, …, with what they are above; a long value is cut."""
    cells = {name: [value[:_WIDTH] for value in values] for name, values in rows.items()}
    widths = [max(len(values[i]) for values in cells.values()) for i in range(len(names))]
    first = max(map(len, cells))
    lines = [f"{number}  {name}" for number, name in enumerate(names, 1)]
    lines += ["", "  ".join([" " * first, *(f"{i + 1:<{width}}" for i, width in enumerate(widths))]).rstrip()]
    for name, values in cells.items():
        columns = (f"{value:<{width}}" for value, width in zip(values, widths, strict=True))
        lines.append("  ".join([f"{name:<{first}}", *columns]).rstrip())
    return lines


def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id or its beginning, name, alias, models:/NAME@ALIAS.")],
    out: Annotated[
        str | None, typer.Option(callback=named, help="Folder or URL for the training; by default one in GPTPIPE_HOME.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train again what a run has trained, and say whether the numbers agree, and to which digit."""
    from gptpipe import storage
    from gptpipe.pipeline.reproduce import reproduce as train_again

    found = train_again(run, tracking(), out or str(storage.reproductions_home()), token_cache())
    lines = [found.sentence, f"checkpoint  {found.checkpoint}"]
    if found.changed:
        lines.append(f"changed     {', '.join(found.changed[:5])}" + (", …" if len(found.changed) > 5 else ""))
    print_answer(found.as_dict(), as_json, "\n".join(lines))


def fit_scaling(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="By default all finished runs of the experiment.")
    ] = None,
    flops: Annotated[float | None, typer.Option(help="Budget: what to train with this many FLOPs.")] = None,
    hours: Annotated[float | None, typer.Option(help="Budget in hours, at the speed that the runs had.")] = None,
    picture: PictureOption = None,
    as_json: Json = False,
) -> None:
    """Fit loss = E + A/N^alpha + B/D^beta to finished runs, and say what to train next for a budget."""
    for name, value in (("--flops", flops), ("--hours", hours)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError("a budget is more than 0", where=f"{name} {value:g}", hint="for example --flops 1e18")
    from gptpipe import storage
    from gptpipe.tracking.plots import law_picture
    from gptpipe.tracking.scaling import fit
    from gptpipe.tracking.scaling_runs import scaling_points

    fitted = fit(scaling_points(tracking(), runs or []))
    budgets = [flops] if flops else []
    budgets += [hours * 3600 * fitted.flops_per_second] if hours else []
    if not budgets:
        budgets = [10 * max(point.flops for point in fitted.points)]
    advice = [fitted.advice(each) for each in budgets]
    lines = [fitted.sentence, *(f"{name:<12} {each.shown()}" for name, each in fitted.ranges.items())]
    lines += [text for text in (fitted.caution, *(each.sentence for each in advice)) if text]
    answer = {**fitted.as_dict(), "advice": [{**asdict(each), "sentence": each.sentence} for each in advice]}
    if picture:
        place = storage.normalize(picture)
        storage.write_bytes(place, law_picture(fitted))
        answer["picture"] = place
        lines.append(f"picture: {place}")
    print_answer(answer, as_json, "\n".join(lines))


def rollback(
    to: Annotated[str, typer.Option(metavar="VERSION", help="By default the one that was champion before.")] = "",
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Make an earlier version of the registered model champion again."""
    from gptpipe.tracking.aliases import rollback as move_back

    promote = load_config(file=config, overrides=overrides).promote
    before, now = move_back(promote, tracking(), to)
    _announce(now, promote)
    text = f"{promote.model_name}: version {now.version} is {promote.alias}, version {before} was"
    print_answer({"model": promote.model_name, "champion": now.version, "previous": before}, as_json, text)


def approve(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Number of the version that waits.")],
    refuse: Annotated[bool, typer.Option("--refuse", help="It does not become champion.")] = False,
    note: Annotated[str, typer.Option(help="Why; kept with the decision.")] = "",
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Agree that a version that waits for a person becomes champion, or refuse it."""
    from gptpipe.tracking.aliases import answer

    promote = load_config(file=config, overrides=overrides).promote
    registered = answer(promote, tracking(), version, agreed=not refuse, note=note)
    _announce(registered, promote)
    verdict = f"is {promote.alias} now" if registered.decision.promote else "is refused"
    text = f"{promote.model_name}: version {registered.version} {verdict}: {registered.decision.reason}"
    values = {"model": promote.model_name, "version": registered.version, "champion": registered.decision.promote}
    print_answer({**values, "decision": registered.decision.reason}, as_json, text)


def _announce(registered: Registered, promote: PromoteConfig) -> None:
    """Tell what a person has decided: to the webhook, and to Prefect where there is a server that lasts."""
    from gptpipe.tracking.announcement import announce

    def emit(event: str, payload: dict[str, Any]) -> None:
        if os.environ.get("PREFECT_API_URL"):
            from flows.server.report import emit as to_prefect

            to_prefect(registered.name, event, payload)

    announce(registered, promote.alias, emit, settings().webhook_url)
