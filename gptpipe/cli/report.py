"""`gptpipe report`: what a retraining came to, and the nights of a period."""

from __future__ import annotations

import logging
import os
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from gptpipe.cli.options import ConfigFile, HtmlOption, Json, Overrides, print_answer, tracking
from gptpipe.config import PipelineConfig, PromoteConfig, load_config
from gptpipe.config.settings import settings
from gptpipe.errors import UserError

log = logging.getLogger(__name__)
_UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def report(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Id or its beginning, name, alias, models:/…; by default the last."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="30d", help="The nights since then: 12h, 30d, 4w, or a date, 2026-11-01.")
    ] = None,
    html: HtmlOption = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """What a retraining came to: loss, decision, samples, text, cost. With --since the champion's history."""
    if run and since:
        raise UserError("a run or a period, not both", where=f"{run} --since {since}", hint="leave one of them out")
    from gptpipe import storage

    loaded = load_config(file=config, overrides=overrides)
    answer, text, page = _period(since, loaded.promote) if since else _one(run, loaded)
    if html:
        place = storage.normalize(html)
        storage.write_bytes(place, page.encode())
        answer["page"] = place
        text += f"\npage: {place}"
    print_answer(answer, as_json, text)


def _one(run: str | None, config: PipelineConfig) -> tuple[dict[str, Any], str, str]:
    """A retraining as JSON, text and page."""
    from gptpipe.tracking.comparison import last_run
    from gptpipe.tracking.report import report_of
    from gptpipe.tracking.report_page import report_page, report_text

    told = report_of(tracking(), run or last_run(tracking()), config)
    return told.as_dict(), report_text(told), report_page(told)


def _period(since: str, promote: PromoteConfig) -> tuple[dict[str, Any], str, str]:
    """The nights of a period as JSON, text and page."""
    from gptpipe.tracking.history import history
    from gptpipe.tracking.history_page import history_lines, history_page

    begin = moment(since, time.time())
    told = history(tracking(), promote.model_name, begin, _untracked(begin), promote.alias)
    return told.as_dict(), "\n".join(history_lines(told)), history_page(told)


def _untracked(begin: float) -> list[Any]:
    """Nights that only Prefect knows of; none where no server is named, or it does not answer."""
    if not settings().prefect_host:
        if os.environ.get("PREFECT_API_URL"):
            log.warning("PREFECT_API_URL is no address: nights that were skipped or refused are missing")
        return []
    from flows.server.nights import AWAY, nights_without_training

    try:
        return nights_without_training(begin, os.environ["PREFECT_API_URL"].rstrip("/").removesuffix("/api"))
    except AWAY as error:
        log.warning("Prefect does not answer (%s): nights that were skipped or refused are missing", error)
        return []


def moment(text: str, now: float) -> float:
    """Seconds since 1970, not before, of `12h`, `30d` or `4w` before now, or of the beginning of a day in UTC.

    Raises:
        UserError: it is neither.
    """
    if span := re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip()):
        return max(0.0, now - float(span[1]) * _UNITS[span[2]])
    try:
        return max(0.0, datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        hint = "give 12h, 30d or 4w, or a date such as 2026-11-01"
        raise UserError("not a period", where=f"--since {text}", hint=hint) from None
