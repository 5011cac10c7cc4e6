"""Runs side by side as one page of HTML that needs nothing else: the sentence, the table, the losses."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from gptpipe.evaluation.html import document, grid, link, picture
from gptpipe.tracking.comparison import SideBySide
from gptpipe.tracking.plots import loss_curves


def comparison_page(compared: SideBySide, curves: Mapping[str, Mapping[str, list[tuple[int, float]]]]) -> str:
    """The page.

    Args:
        curves: losses by tokens, of each run by its id.
    """
    names = {column.run_id: column.name for column in compared.columns}
    losses = loss_curves({names[run]: each for run, each in curves.items()})
    head = ["", *(link(column.url, column.name) for column in compared.columns)]
    rows = ([escape(each) for each in (name, *values)] for name, values in compared.rows.items())
    body = [f"<h1>{escape(compared.sentence)}</h1>", grid(head, rows), picture(losses, "Losses by tokens")]
    return document("Runs side by side", body)
