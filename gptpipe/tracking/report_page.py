"""The report of a retraining as one page of HTML, and as Markdown for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from gptpipe.evaluation.html import document, grid, link, picture
from gptpipe.tracking.plots import loss_curve
from gptpipe.tracking.report import Report

_COST = (
    "training",
    "device hours",
    "energy, Wh",
    "FLOPs",
    "tokens",
    "tokens/s",
    "memory per rank, GB",
    "device",
    "checkpoints",
)
_LOSS = ("cross-entropy, nats per token", "perplexity", "bits per byte", "samples degenerate")


def report_page(report: Report) -> str:
    """The page: it opens offline, prints, and is readable on a phone."""
    links = " · ".join(link(url, name) for name, url in report.links.items())
    body = [f"<h1>{escape(report.sentence)}</h1>", f'<p class="quiet">{escape(report.name)}<br>{links}</p>']
    for title, content in _sections(report):
        body.append(f"<h2>{title}</h2>{content}")
    return document(report.name, body)


def _sections(report: Report) -> Iterator[tuple[str, str]]:
    """Titles and their HTML, in the order of what decides."""
    facts, night = dict(report.facts), report.night
    facts["checkpoints"] = f"{night.stored / 1e6:,.1f} MB" if night else ""
    if report.decision is not None and report.decision.checks:
        against = f"against version {report.champion}" if report.champion else "there was no champion"
        rows = (
            [escape(each) for each in (check.needed, "yes" if check.passed else "NO", check.measured, check.otherwise)]
            for check in report.decision.checks
        )
        yield f"The decision, {against}", grid(["needed", "holds", "measured", "it would be otherwise"], rows)
    if losses := {name: points for name, points in report.losses.items() if points}:
        yield "Loss", _pairs(facts, _LOSS) + picture(_curve(losses, facts), "Losses by tokens")
    if report.samples:
        rows = (_samples(pair.prompt, pair.before, pair.now) for pair in report.samples)
        before = f"version {report.champion} continues" if report.champion else ""
        head = ["prompt", *([before] if before else []), "this model continues"]
        yield "What it says", grid(head, (row if before else [row[0], row[2]] for row in rows))
    yield "The text", _text(report, facts)
    yield "Cost", _pairs(facts, _COST)
    if night:
        skipped = ", ".join(night.skipped) or "nothing: every stage was new"
        yield "What was done before and not again", f"<p>{escape(skipped)}</p>"
    rest = {name: value for name, value in facts.items() if name not in (*_COST, *_LOSS, "data", "decision")}
    rest["differs from the preset"] = report.changed or "nothing"
    yield "The run", _pairs(rest, tuple(rest))


def _curve(losses: Mapping[str, list[tuple[int, float]]], facts: Mapping[str, str]) -> bytes:
    """The picture of training and validation, as Prefect shows it."""
    lines = [{"tokens": tokens, key: loss} for key, points in losses.items() for tokens, loss in points]
    return loss_curve(lines, ended=facts.get("status") != "running")


def _text(report: Report, facts: Mapping[str, str]) -> str:
    """The dataset, and how what was new in it differs from what the champion had seen."""
    parts = [f"<p>{escape(facts.get('data', ''))}</p>"]
    if report.night and report.night.news:
        parts.append(f"<p>{escape(report.night.news)}</p>")
    if report.night and report.night.measures:
        rows = (
            [escape(each) for each in (item.name, item.before, item.now, item.bound, "yes" if item.passed else "NO")]
            for item in report.night.measures
        )
        parts.append(grid(["", "before", "new", "bound", "within"], rows))
    return "".join(parts)


def _pairs(facts: Mapping[str, str], names: tuple[str, ...]) -> str:
    return grid([], ([escape(name), escape(facts[name])] for name in names if facts.get(name)))


def _samples(*texts: str) -> list[str]:
    return [f"<pre>{escape(text)}</pre>" for text in texts]


def report_text(report: Report) -> str:
    """For a terminal."""
    lines = [report.sentence, "", f"{report.name}"]
    facts = {**report.facts, "differs from the preset": report.changed or "nothing"}
    if report.night:
        facts["what was new"] = report.night.news
        facts["done before"] = ", ".join(report.night.skipped) or "nothing"
        facts["checkpoints"] = f"{report.night.stored / 1e6:,.1f} MB"
    width = max(len(name) for name in facts)
    lines += [f"  {name:<{width}}  {value}" for name, value in facts.items() if value]
    if report.decision is not None:
        lines += ["", f"decided against version {report.champion}" if report.champion else "decided without a champion"]
        for check in report.decision.checks:
            lines.append(f"  {'yes' if check.passed else 'NO ':3}  {check.measured}   needed: {check.needed}")
    for pair in report.samples[:2]:
        lines += ["", f"> {pair.prompt}", *(f"  {line}" for line in pair.now.splitlines()[:4])]
    return "\n".join(lines)
