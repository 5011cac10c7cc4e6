"""The nights of a period as one page of HTML, and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from gptpipe.evaluation.html import document, grid, link, picture
from gptpipe.tracking.history import History
from gptpipe.tracking.history_picture import history_picture


def history_page(told: History) -> str:
    """The page: the champion's history as a picture, and a row per night with its reason, the newest first."""
    body = [f"<h1>{escape(told.sentence)}</h1>"]
    if any(entry.loss is not None for entry in told.entries):
        body.append(picture(history_picture(told), "Loss and difference from the champion by night"))
        body.append(
            '<p class="quiet">Above: each model on the text of its own night, which is not the same every night. '
            "Below: each model against the champion of its night on the same documents, with 95 % intervals; "
            "below 0 it is better.</p>"
        )
    rows = (
        [
            f'<span class="date">{escape(entry.date)}</span>',
            escape(entry.verdict),
            f"{entry.loss:.4f}" if entry.loss is not None else "",
            escape(entry.difference),
            f'<div class="why">{escape(entry.reason)}</div>',
            f"{entry.device_hours:.3g}" if entry.device_hours else "",
            link(entry.url, entry.name),
        ]
        for entry in reversed(told.entries)
    )
    head = ["night (UTC)", "result", "nats per token", "from the champion", "why", "device hours", "run"]
    return document(f"{told.model}: its nights", [*body, grid(head, rows)])


def history_lines(told: History) -> Iterator[str]:
    """The sentence, and a line per night or sweep."""
    yield told.sentence
    for entry in told.entries:
        loss = f"{entry.loss:.4f}" if entry.loss is not None else "–"
        subject = f"version {entry.version}" if entry.version else entry.name if entry.is_sweep else ""
        yield f"{entry.date}  {entry.verdict:<15}  {subject:<12}  {loss:>8}  {entry.reason or entry.name}"
