"""Where a model comes from, and what a text went into: a graph from source files to registered versions.

Nothing keeps this graph: it is read from what is there, the manifests in the store and the tags of MLflow's runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from gptpipe.tracking.client import Tracking
from gptpipe.tracking.provenance import Node, Provenance


@dataclass(frozen=True)
class Lineage:
    """All that some things were made from, and all that was made from them.

    Attributes:
        subjects: keys of what was asked for. nodes: by key, `kind:id`.
        edges: (key of what something was made from, key of what was made).
    """

    subjects: list[str]
    nodes: dict[str, Node]
    edges: list[tuple[str, str]]

    def parents(self, key: str) -> list[str]:
        """What it was made from."""
        return self._before.get(key, [])

    def children(self, key: str) -> list[str]:
        """What was made from it."""
        return self._after.get(key, [])

    @cached_property
    def _before(self) -> dict[str, list[str]]:
        return _grouped((child, parent) for parent, child in self.edges)

    @cached_property
    def _after(self) -> dict[str, list[str]]:
        return _grouped(self.edges)

    def as_dict(self) -> dict[str, Any]:
        nodes = {key: asdict(node) for key, node in self.nodes.items()}
        return {"subjects": self.subjects, "nodes": nodes, "edges": [list(edge) for edge in self.edges]}


def lineage(name: str, store: str, tracking: Tracking) -> Lineage:
    """The lineage of a registered version, a run, a checkpoint, a dataset, or a file of text.

    Args:
        name: an alias, `models:/…` or the name of a registered model (its newest version); a URL, an id or the
            beginning of one; the name of a run; a file, which is known by its content, or the path of one in a dataset.
        store: folder or URL of everything that is made.

    Raises:
        UserError: nothing is called that, or several things are; MLflow or the store does not answer.
    """
    known = Provenance(store, tracking)
    subjects = list(dict.fromkeys(known.subjects(name)))
    edges: dict[tuple[str, str], None] = {}
    for neighbours, upward in ((known.parents, True), (known.children, False)):
        seen, ahead = set[str](), list(subjects)
        while ahead:
            key = ahead.pop()
            if key in seen:
                continue
            seen.add(key)
            for other in neighbours(key):
                edges[(other, key) if upward else (key, other)] = None
                ahead.append(other)
    keys = [*subjects, *(key for edge in edges for key in edge)]
    return Lineage(subjects, {key: known.nodes[key] for key in dict.fromkeys(keys)}, list(edges))


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
