"""A lineage as a picture: a column for each step of the making, from source files to registered versions."""

from __future__ import annotations

from itertools import pairwise

from gptpipe.tracking.layers import layers
from gptpipe.tracking.lineage import Lineage
from gptpipe.tracking.plots import png_of
from gptpipe.wording import counted

_COLORS = {
    "source": "#e8e8e8",
    "shard": "#dce7f5",
    "dataset": "#cfe3d4",
    "run": "#f6e3c5",
    "checkpoint": "#ecd9ee",
    "version": "#f4cccc",
}
_MOST = 4  # of one kind that stand at the same place; more are one box with their number
_WIDTH, _HEIGHT = 2.6, 0.75  # inches of a column and a row


def lineage_picture(traced: Lineage) -> bytes:
    """A PNG. What was asked for has a thick frame; many of a kind between the same neighbours are one box."""
    from matplotlib.figure import Figure

    labels, members, edges = _boxes(traced)
    columns, ways = layers(list(labels), edges)
    rows = max(len(column) for column in columns)
    size = (max(4.0, _WIDTH * len(columns)), max(2.0, _HEIGHT * (rows + 1)))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.add_subplot()
    places = {
        box: (float(x), (rows - len(column)) / 2 + y)
        for x, column in enumerate(columns)
        for y, box in enumerate(column)
    }
    texts = {}
    for box in labels:
        x, y = places[box]
        kind = traced.nodes[members[box][0]].kind
        width = 2.2 if set(members[box]) & set(traced.subjects) else 0.6
        frame = {"boxstyle": "round,pad=0.45", "facecolor": _COLORS[kind], "edgecolor": "#333", "linewidth": width}
        texts[box] = axes.text(x, y, labels[box], ha="center", va="center", fontsize=7, bbox=frame)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.axis("off")
    png_of(figure)  # frames have their sizes once they were drawn, and arrows end at them
    for (before, after), between in ways.items():
        line = [places[stop] for stop in (before, *between, after)]
        for place, end in pairwise(line):
            # a straight line through each stop; the frames cut its two ends, and the last part has the head
            frames = {
                "patchA": texts[before].get_bbox_patch() if place is line[0] else None,
                "patchB": texts[after].get_bbox_patch() if end is line[-1] else None,
            }
            style = {"arrowstyle": "-|>" if end is line[-1] else "-", "color": "#888", "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", end, place, arrowprops={**style, **frames}, zorder=1)
    return png_of(figure)


def _boxes(traced: Lineage) -> tuple[dict[str, str], dict[str, list[str]], set[tuple[str, str]]]:
    """Labels and members of the boxes, by box, and the arrows between them."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for key, node in traced.nodes.items():
        # shards by their dataset, sources by the datasets that their shards belong to
        around = traced.children(key) if node.kind == "shard" else []
        if node.kind == "source":
            around = [dataset for shard in traced.children(key) for dataset in traced.children(shard)]
        groups.setdefault((node.kind, tuple(sorted(set(around)) or (key,))), []).append(key)
    labels, members, box_of = dict[str, str](), dict[str, list[str]](), dict[str, str]()
    for (kind, _), keys in groups.items():
        for part in [keys] if len(keys) > _MOST else [[key] for key in keys]:
            box = part[0]
            members[box] = part
            labels[box] = counted(len(part), kind) if len(part) > 1 else f"{kind}\n{_cut(traced, box)}"
            box_of |= dict.fromkeys(part, box)
    edges = {(box_of[before], box_of[after]) for before, after in traced.edges}
    return labels, members, edges


def _cut(traced: Lineage, key: str) -> str:
    """A name that fits a box, with the alias of a version and the loss of a run."""
    node = traced.nodes[key]
    name = node.name if len(node.name) <= 26 else f"{node.name[:12]}…{node.name[-12:]}"
    facts = [node.facts[each] for each in ("alias", "cross-entropy") if each in node.facts]
    return "\n".join([name, *facts])
