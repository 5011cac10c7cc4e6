"""What is not in a dataset, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_PLACES = 100  # of what was skipped, named a source


@dataclass
class LeftOut:
    """The documents of one source that are not in the dataset.

    Attributes:
        counts: reason → documents.
        places: the first records that could not be read, with the reason.
        duplicates: positions of the copies of documents that are elsewhere.
    """

    counts: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, reason: str, place: str = "") -> None:
        self.counts[reason] += 1
        if place and len(self.places) < _PLACES:
            self.places.append(place)

    def as_dict(self) -> dict[str, Any]:
        return {"counts": dict(sorted(self.counts.items())), "places": self.places, "duplicates": self.duplicates}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LeftOut:
        return cls(Counter(values["counts"]), list(values["places"]), list(values["duplicates"]))
