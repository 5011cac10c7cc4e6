"""The nights of a period as a picture: the loss of each, and how it compared with the champion of its night."""

from __future__ import annotations

from datetime import UTC, datetime

from gptpipe.tracking.history import History
from gptpipe.tracking.plots import BASELINE, TRAIN, png_of


def history_picture(told: History) -> bytes:
    """A PNG: the loss of each night's model by date, filled where it became champion, and below it the difference from
    the champion of its night with its 95 % interval."""
    from matplotlib.figure import Figure

    nights = [entry for entry in told.entries if entry.loss is not None]
    dates = [datetime.fromtimestamp(entry.began, UTC) for entry in nights]
    figure = Figure(figsize=(9, 5.5), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    serves = [entry.became_champion for entry in nights]
    losses = [(date, entry.loss) for date, entry in zip(dates, nights, strict=True)]
    for is_champion, label, face in ((True, "became champion", TRAIN), (False, "did not", "#ffffff")):
        points = [point for point, is_it in zip(losses, serves, strict=True) if is_it == is_champion]
        if points:
            xs, ys = zip(*points, strict=True)
            above.plot(xs, ys, "o", markerfacecolor=face, markeredgecolor=TRAIN, label=label)
            if is_champion:
                above.step(xs, ys, where="post", color=TRAIN, linewidth=1, alpha=0.5)
    above.set_ylabel("loss (nats per token)")
    for date, entry, is_it in zip(dates, nights, serves, strict=True):
        compared = entry.comparison
        if compared is None or compared.interval is None or compared.unit != "token":
            continue
        reach = [[compared.difference - compared.interval.low], [compared.interval.high - compared.difference]]
        face = TRAIN if is_it else "#ffffff"
        below.errorbar(
            [date],
            [compared.difference],
            reach,
            fmt="o",
            color=TRAIN,
            markerfacecolor=face,
            capsize=3,
        )
    below.axhline(0, color=BASELINE, linewidth=1, linestyle="--")
    below.set_ylabel("from the champion")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(frameon=False)
    figure.autofmt_xdate()
    return png_of(figure)
