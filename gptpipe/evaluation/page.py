"""The page of an evaluation: its numbers, where the loss is, and excerpts with every token marked by what it cost.

One file that needs nothing else, in light and dark. Marks differ in their underline too, so that no colour is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from html import escape
from typing import Any

from gptpipe.evaluation.documents import Documents
from gptpipe.evaluation.excerpts import Excerpt, excerpts
from gptpipe.evaluation.html import document, packaged
from gptpipe.evaluation.tally import Tally
from gptpipe.model.gpt import GPT
from gptpipe.wording import counted, figure

_LEVELS = (1.0, 2.5, 4.5, 7.0)  # nats: the least of each mark
_TITLES = {
    "corpus": "Corpus",
    "length": "Tokens of the document",
    "position": "Tokens seen before",
    "frequency": "Rank of the token by frequency",
}


def loss_page(
    evaluation: dict[str, Any], numbers: dict[str, Any], model: GPT, documents: Documents, tally: Tally
) -> str:
    """The page as HTML.

    Args:
        evaluation: what `Evaluation.as_dict` gives. numbers: what stands in the first table.
    """
    shown = excerpts(model, documents, tally)
    looks = [
        [look.text, round(look.nats, 4), look.probability, look.rank, look.alternatives]
        for excerpt in shown
        for look in excerpt.looks
    ]
    how = f"Scored: {evaluation['scored']}, {evaluation['windows']}, {evaluation['precision']}. "
    how += ", ".join(counted(evaluation[f"{noun}s"], noun) for noun in ("token", "byte", "document")) + "."
    body = [
        f"<h1>{escape(_capital(evaluation['sentence']))}</h1>",
        f'<p class="quiet">{escape(how)}<br>Weights: {escape(evaluation["weights"])}</p>',
        '<div class="side">',
        f"<div><h2>Numbers</h2>{_numbers(numbers)}</div>",
        f"<div><h2>How sure, how right</h2>{_calibration(evaluation['calibration'])}</div>",
        f"<div><h2>Does longer context help?</h2>{_position_curve(evaluation['parts']['position'])}</div>",
        *(f"<div><h2>{_TITLES[name]}</h2>{_part(rows)}</div>" for name, rows in evaluation["parts"].items()),
        "</div>",
        "<h2>The loss, token by token</h2>",
        '<p class="quiet">Each excerpt is read from its document\'s beginning. Point at a token, tap it, or walk with '
        "the arrow keys: its probability, its rank and the five likeliest appear at the bottom.</p>",
        _legend(),
        *(_excerpt(each) for each in shown),
        '<div class="side">',
        f"<div><h2>Documents that cost most</h2>{_documents(evaluation['costliest']['documents'])}</div>",
        f"<div><h2>Tokens that cost most together</h2>{_tokens(evaluation['costliest']['tokens'])}</div>",
        "</div>",
        '<div id="panel" aria-live="polite" hidden><div></div></div>',
        f'<script type="application/json" id="looks">{_json(looks)}</script>',
        f"<script>{packaged('page.js')}</script>",
    ]
    title = f"{evaluation['cross_entropy']:.3f} nats per token"
    return document(title, body)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table whose columns after the first are numbers."""
    marks = ["", *[' class="number"'] * 9]
    lines = ["".join(f"<th{mark}>{escape(head)}</th>" for mark, head in zip(marks, heads, strict=False))]
    lines += ["".join(f"<td{m}>{escape(str(cell))}</td>" for m, cell in zip(marks, row, strict=False)) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _numbers(numbers: dict[str, Any]) -> str:
    return _table(("", ""), ((name, figure(value, "only of a whole text")) for name, value in numbers.items()))


def _part(rows: list[dict[str, Any]]) -> str:
    cells = ((r["name"], f"{r['tokens']:,}", f"{r['cross_entropy']:.3f}", f"{r['share']:.1%}") for r in rows)
    return _table(("", "tokens", "nats per token", "of all nats"), cells)


def _documents(rows: list[dict[str, Any]]) -> str:
    cells = ((r["document"], f"{r['tokens']:,}", f"{r['cross_entropy']:.3f}") for r in rows)
    return _table(("document", "tokens", "nats per token"), cells)


def _tokens(rows: list[dict[str, Any]]) -> str:
    cells = ((_visible(r["token"]), f"{r['times']:,}", f"{r['cross_entropy']:.3f}", f"{r['share']:.1%}") for r in rows)
    return _table(("token", "times", "nats each", "of all nats"), cells)


def _visible(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace(" ", "␣")


def _level(nats: float) -> int:
    return sum(nats >= least for least in _LEVELS)


def _legend() -> str:
    edges = (0.0, *_LEVELS)
    names = [f"{low:g} to {high:g} nats" for low, high in zip(edges, _LEVELS, strict=False)] + [
        f"{_LEVELS[-1]:g} and more"
    ]
    return f'<div class="legend">{"".join(f"<span class=l{i}>{name}</span>" for i, name in enumerate(names))}</div>'


def _excerpt(excerpt: Excerpt) -> str:
    spans = []
    for number, look in enumerate(excerpt.looks):
        text = escape(look.text).replace("\n", "↵\n") or "·"
        tab = ' tabindex="0"' if number == 0 else ' tabindex="-1"'
        spans.append(f'<span class="l{_level(look.nats)}"{tab}>{text}</span>')
    more = f", the first {len(excerpt.looks):,} shown" if len(excerpt.looks) < excerpt.tokens else ""
    name = f"{escape(excerpt.name)}: " if excerpt.name else ""
    about = f"{excerpt.tokens:,} tokens{more}, {excerpt.cross_entropy:.3f} nats per token, {excerpt.why}"
    return f'<h3>{name}{about}</h3><div class="text">{"".join(spans)}</div>'


_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 420, 300, 66, 48, 14


def _chart(content: str, x_title: str, y_title: str, label: str) -> str:
    right, base = _WIDTH - 12, _HEIGHT - _BOTTOM
    middle = (_TOP + base) / 2
    axes = f'<path class="axis" d="M{_LEFT},{_TOP}V{base}H{right}"/>'
    titles = f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>'
    titles += f'<text transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{content}{axes}{titles}</svg></figure>"
    )


def _scale(low: float, high: float, start: float, end: float, value: float) -> float:
    return round(start + (value - low) / max(high - low, 1e-9) * (end - start), 1)


def _x(value: float, low: float, high: float) -> float:
    return _scale(low, high, _LEFT + 8, _WIDTH - 30, value)


def _y(value: float, low: float, high: float) -> float:
    return _scale(low, high, _HEIGHT - _BOTTOM - 4, _TOP + 4, value)


def _calibration(rows: list[dict[str, Any]]) -> str:
    """Points below the line: surer than it may be."""
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    content = "".join(
        f'<path class="guide" d="M{_LEFT},{_y(t, 0, 1)}H{_WIDTH - 12}"/>'
        f'<text x="{_LEFT - 6}" y="{_y(t, 0, 1) + 5}" text-anchor="end">{t:.0%}</text>'
        f'<text x="{_x(t, 0, 1)}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{t:.0%}</text>'
        for t in ticks
    )
    content += f'<path class="ideal" d="M{_x(0, 0, 1)},{_y(0, 0, 1)}L{_x(1, 0, 1)},{_y(1, 0, 1)}"/>'
    points = [(_x(r["probability"], 0, 1), _y(r["right"], 0, 1), r["tokens"]) for r in rows]
    content += _line(points)
    most = max((tokens for *_, tokens in points), default=1)
    content += "".join(
        f'<circle class="dot" cx="{x}" cy="{y}" r="{2 + 4 * math.sqrt(n / most):.1f}"/>' for x, y, n in points
    )
    chart = _chart(content, "probability of the likeliest token", "how often it was right", "calibration curve")
    return f'{chart}<p class="quiet">On the dashed line it is right as often as it is sure; below, it is too sure.</p>'


def _position_curve(rows: list[dict[str, Any]]) -> str:
    values = [r["cross_entropy"] for r in rows]
    low, high = min(values), max(values)
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-6 else (low, high)
    last = max(1, len(rows) - 1)
    content = "".join(
        f'<path class="guide" d="M{_LEFT},{_y(v, low, high)}H{_WIDTH - 12}"/>'
        f'<text x="{_LEFT - 6}" y="{_y(v, low, high) + 5}" text-anchor="end">{v:.2f}</text>'
        for v in (low, (low + high) / 2, high)
    )
    every = 1 + len(rows) // 6
    for i, row in enumerate(rows):
        if i % every == 0:
            first = row["name"].split()[0]
            content += f'<text x="{_x(i, 0, last)}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{first}</text>'
    points = [(_x(i, 0, last), _y(v, low, high), 1) for i, v in enumerate(values)]
    content += _line(points) + "".join(f'<circle class="dot" cx="{x}" cy="{y}" r="4"/>' for x, y, _ in points)
    return _chart(content, "tokens seen before, from", "nats per token", "loss by tokens seen before")


def _line(points: list[tuple[float, float, int]]) -> str:
    return f'<polyline class="curve" points="{" ".join(f"{x},{y}" for x, y, _ in points)}"/>' if points else ""
