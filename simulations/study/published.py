"""Figures that others published, by target, method and task; they are data (``published.toml``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...common.toml import read_toml

_FILE = Path(__file__).with_name("published.toml")
_NAMES = ("target", "method")


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """speedup: over the target alone; None where it was not given."""

    acceptance: float
    speedup: float | None


@dataclass(frozen=True, kw_only=True)
class Published:
    """figures: by target, method and task, under the names of ``published.toml``."""

    source: str
    figures: Mapping[tuple[str, str, str], PublishedFigure]

    @property
    def names(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """Of targets, methods and tasks."""
        targets, methods, tasks = (frozenset(key[place] for key in self.figures) for place in range(3))
        return targets, methods, tasks

    def figure(self, target: str, methods: Sequence[str], task: str) -> PublishedFigure | None:
        """The figure of the first of ``methods`` that there is one of."""
        found = (self.figures.get((target, method, task)) for method in methods)
        return next(filter(None, found), None)


@cache
def published() -> Published:
    """What the data file holds."""
    table = read_toml(_FILE, "published figures")
    figures = {
        (row["target"], row["method"], task): PublishedFigure(acceptance=value[0], speedup=(*value, None)[1])
        for row in table["rows"]
        for task, value in row.items()
        if task not in _NAMES
    }
    return Published(source=table["source"], figures=figures)
