"""Two evaluations compared: on the same prompts, figure by figure, with the difference's interval. It opens no model.

A resample draws the same prompts from both, so what makes a prompt easy or hard for both does not widen the interval.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...common.errors import ConfigError, UserError
from ...common.files import read_json
from .bootstrap import LEAST, Interval, Sums, interval, resampled
from .fields import DAMAGED, text
from .method import Method
from .row import FIGURES, SCHEMA, Row

Verdict = Literal["better", "worse", "no difference shown"]

_SETTINGS = (
    "max_new_tokens", "sampling", "seed", "threads", "runtime", "repeats", "bundle", "base", "weights",
)  # fmt: skip
"""What may differ; a file may be older than the last ones."""
_UNTOLD = "untold"
"""The digest of an adapter in a file that is older than its digests."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One of ``FIGURES`` in both. bounds: of ``after - before``; None of too few prompts."""

    figure: str
    before: float
    after: float
    bounds: Interval | None

    @property
    def verdict(self) -> Verdict:
        """``better`` or ``worse`` only where the whole interval is on one side of 0."""
        low, high = self.bounds or (0.0, 0.0)
        return "better" if low > 0 else "worse" if high < 0 else "no difference shown"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"difference": self.after - self.before, "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One target, task and temperature with a method of each evaluation. prompts: how many both have.

    left_out: how many only one of them has.
    """

    target: str
    task: str
    temperature: float
    before: str
    after: str
    prompts: int
    left_out: int
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"changes": [change.to_json() for change in self.changes]}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All cells that both have, and the others in a line each: lost ones of the first, new ones of the second."""

    cells: tuple[Compared, ...]
    lost: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def unmatched(self) -> tuple[str, ...]:
        """The lines of all that is not compared."""
        return *self.lost, *self.new

    def worse(self, figures: Sequence[str]) -> list[str]:
        """A line for each change for the worse among ``figures``."""
        return [
            f"{change.figure} {change.before:.3f} -> {change.after:.3f} on {_place(cell)}"
            for cell in self.cells
            for change in cell.changes
            if change.figure in figures and change.verdict == "worse"
        ]

    def unjudged(self, figures: Sequence[str]) -> list[str]:
        """A line for each result of the first that none of the second was held against, or on too few prompts."""
        few = [
            f"{_place(cell)} has {cell.prompts} prompts in both, expected at least {LEAST}"
            for cell in self.cells
            if any(change.bounds is None for change in cell.changes if change.figure in figures)
        ]
        return [*self.lost, *few] if figures else []

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "cells": [cell.to_json() for cell in self.cells],
            "unmatched": list(self.unmatched),
        }


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation as it was written. settings: how texts were written, and on which machine.

    adapters: digests by ``Method.place``; none in a file that is older than they are.
    """

    rows: Sequence[Row]
    settings: Mapping[str, Any]
    adapters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Evaluated":
        """Reads an evaluation's JSON, or that of the folder at ``path``.

        Raises:
          UserError: it is none, or of another schema.
        """
        path = path / "eval.json" if path.is_dir() else path
        value = read_json(path)
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise UserError(f"{path}: schema is {schema!r}, expected {SCHEMA}, as 'fleetdraft eval --json' writes it")
        try:
            rows = [Row.from_json(row) for row in value["results"]]
            settings = {name: value["settings"].get(name) for name in _SETTINGS} | {"cpu": value["machine"]["cpu"]}
            adapters = {place: text(digest) for place, digest in value["settings"].get("adapters", {}).items()}
        except (*DAMAGED, ConfigError) as error:
            raise UserError(f"{path} is no evaluation: {error!r}") from error
        if not rows or not all(row.prompts for row in rows):
            raise UserError(f"{path} holds no results")
        return cls(rows=rows, settings=settings, adapters=adapters)


def unlike(before: Evaluated, after: Evaluated, methods: Mapping[str, str]) -> list[str]:
    """A line for each setting in which they differ, so that their figures may differ for no other reason.

    Args:
      methods: which are compared; the settings of those of one name are held against each other too.
    """
    pairs = [(name, value, after.settings[name]) for name, value in before.settings.items()]
    ours, theirs = ({row.method.name: row.method for row in each.rows} for each in (before, after))
    for name in (name for name, other in methods.items() if name == other):
        their = theirs[name].to_json()
        pairs += [(f"{key} of method {name}", value, their[key]) for key, value in ours[name].to_json().items()]
        pairs += [(f"adapter digest of method {name}", *_adapters(ours[name], before, after))]
    return [line for name, our, their in pairs if our != their for line in _told(name, our, their)]


def _told(name: str, our: object, their: object) -> Iterator[str]:
    """A line for a setting that differs, or for each part of it where it has parts."""
    if isinstance(our, Mapping) and isinstance(their, Mapping):
        for key in dict.fromkeys((*our, *their)):
            if key not in our or key not in their:
                yield f"only {'A' if key in our else 'B'} has {name} of {key}"
            elif our[key] != their[key]:
                yield from _told(f"{name} of {key}", our[key], their[key])
    elif isinstance(our, Mapping) or isinstance(their, Mapping):
        yield f"only {'B' if isinstance(their, Mapping) else 'A'} tells its {name}"
    else:
        yield f"{name} is {our} in A and {their} in B"


def _adapters(method: Method, before: Evaluated, after: Evaluated) -> tuple[str, str]:
    """The digests, in each, of a method's adapters that differ where both measured it; nothing where all agree."""
    ours, theirs = ({method.place(row.target, row.task): None for row in each.rows} for each in (before, after))
    both = [place for place in ours if place in theirs]
    pairs = [(before.adapters.get(place, _UNTOLD), after.adapters.get(place, _UNTOLD)) for place in both]
    differ = [(own, other) for own, other in pairs if own != other]
    return ", ".join(dict.fromkeys(own for own, _ in differ)), ", ".join(dict.fromkeys(other for _, other in differ))


def compare_rows(before: Sequence[Row], after: Sequence[Row], methods: Mapping[str, str], seed: int = 0) -> Comparison:
    """Compares the rows that belong together.

    Args:
      before, after: of two evaluations, or of one twice.
      methods: which method of ``before`` is compared with which of ``after``.
      seed: of the resamples.
    """
    theirs = {_key(row, row.method.name): row for row in after}
    cells, lost, met = list[Compared](), list[str](), set[tuple[Any, ...]]()
    for row in before:
        key = _key(row, methods.get(row.method.name, ""))
        if row.method.name not in methods:
            continue
        if key in theirs and (cell := _compared(row, theirs[key], seed)) is not None:
            cells.append(cell)
            met.add(key)
        else:
            why = "has no prompt in common" if key in theirs else "is in the first only"
            lost.append(f"{_row_place(row)} {why}")
            met.add(key)
    chosen = set(methods.values())
    new = [
        f"{_row_place(row)} is in the second only"
        for key, row in theirs.items()
        if key not in met and row.method.name in chosen
    ]
    return Comparison(cells=tuple(cells), lost=tuple(lost), new=tuple(new))


def paired_methods(before: Sequence[Row], after: Sequence[Row], given: Sequence[str]) -> dict[str, str]:
    """Which methods are compared: as given, else those of the same name, else the only one of each.

    Args:
      given: ``NAME`` or ``NAME=NAME``, the first evaluation's before the second's.

    Raises:
      UserError: there is no such method, or none can be paired.
    """
    ours, theirs = ({row.method.name: None for row in rows} for rows in (before, after))
    if given:
        pairs = {(text.partition("=")[0]): text.rpartition("=")[2] for text in given}
        for which, name, known in (("first", pairs.keys(), ours), ("second", pairs.values(), theirs)):
            if missing := sorted(set(name) - known.keys()):
                raise UserError(f"no method {missing[0]!r} in the {which}, expected one of {', '.join(known)}")
        return pairs
    if same := {name: name for name in ours if name in theirs}:
        return same
    if len(ours) == len(theirs) == 1:
        return {next(iter(ours)): next(iter(theirs))}
    raise UserError(f"no method is in both ({', '.join(ours)}; {', '.join(theirs)}); name two with --method NAME=NAME")


def _compared(before: Row, after: Row, seed: int) -> Compared | None:
    """None where they have no prompt in common."""
    ours, theirs = before.by_prompt, after.by_prompt
    both = [digest for digest in ours if digest in theirs]
    if not both:
        return None
    pair = [np.array([side[digest] for digest in both]) for side in (ours, theirs)]
    return Compared(
        target=before.target,
        task=before.task,
        temperature=before.temperature,
        before=before.method.name,
        after=after.method.name,
        prompts=len(both),
        left_out=len(ours) + len(theirs) - 2 * len(both),
        changes=tuple(_change(name, pair[0], pair[1], seed) for name in FIGURES),
    )


def _change(name: str, before: Sums, after: Sums, seed: int) -> Change:
    figure = FIGURES[name]
    differences = figure(resampled(after, seed)) - figure(resampled(before, seed))
    return Change(
        figure=name,
        before=float(figure(before.sum(axis=0))),
        after=float(figure(after.sum(axis=0))),
        bounds=interval(differences) if len(before) >= LEAST else None,
    )


def _key(row: Row, method: str) -> tuple[str, str, float, str]:
    return row.target, row.task, row.temperature, method


def _row_place(row: Row) -> str:
    return f"{row.target}, {row.task}, temperature {row.temperature:g}, {row.method.name}"


def _place(cell: Compared) -> str:
    return f"{cell.target}, {cell.task}, temperature {cell.temperature:g}, {cell.before} -> {cell.after}"
