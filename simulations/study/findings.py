"""What a study found: the arms' results as cells of a table, with spread over seeds, gains and published figures."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import fmean, stdev
from typing import Any

from ...common.machine import Machine
from .arm import Arm, ArmResult, after, before
from .course import Course, courses
from .method import Method
from .plan import Study
from .published import PublishedFigure, published

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation (0 of one value) of the seeds' values."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def text(self, form: str = ".3f") -> str:
        """``mean ± deviation``, the latter only of several values."""
        return f"{self.mean:{form}} ± {self.deviation:{form}}" if len(self.values) > 1 else f"{self.mean:{form}}"

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "values": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one target and task at one temperature.

    before: of the same drafting without learning. gain: acceptance rate over that of the study's first method without
    training; NaN where that is 0. against_gain: over that of the method it names as ``against``.
    """

    method: Method
    target: str
    task: str
    temperature: float
    acceptance_before: float
    length_before: float
    acceptance: Spread
    length: Spread
    gain: float | None = None
    against_gain: float | None = None
    tokens_per_s: Spread | None = None
    speedup: Spread | None = None
    published: PublishedFigure | None = None
    published_gain: float | None = None
    published_against_gain: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Field by field; the method by its name."""
        own = {name: _plain(value) for name, value in vars(self).items()}
        return own | {"method": self.method.name}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything a study's page shows. results: by the arms' keys. failures: why an arm has none.

    shortages: of prompts, in a line for each task that has fewer than were asked for.
    """

    study: Study
    results: Mapping[str, ArmResult]
    failures: Mapping[str, str]
    started: str
    seconds: float
    machine: Machine
    shortages: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells that every seed has a result for, in the order of methods, targets, tasks."""
        study = self.study
        if study.segments:
            return ()
        grid = product(study.temperatures, study.targets, study.methods, study.tasks)
        cells = (self.cell(method, target.name, task.name, heat) for heat, target, method, task in grid)
        return tuple(filter(None, cells))

    @property
    def courses(self) -> tuple[Course, ...]:
        """Of a study of streams: acceptance from prompt to prompt."""
        return courses(self.study, self.results)

    @property
    def arm_seconds(self) -> Spread | None:
        """Processor time of the arms that learned."""
        times = tuple(result.cpu_seconds for result in self.results.values() if result.steps)
        return Spread(values=times) if times else None

    def cell(self, method: Method, target: str, task: str, heat: float) -> Cell | None:
        """One cell; None if an arm of it has no result."""
        first = self._result(before(self.study, method, target, task, heat))
        last = self._after(method, target, task, heat)
        if first is None or not last:
            return None
        own, base = _over(last, _acceptance), self.reference
        at = Arm(method=method, target=target, task=task, seed=0, temperature=heat)
        against = next((m for m in self.study.methods if m.name == method.against), None)
        return Cell(
            method=method,
            target=target,
            task=task,
            temperature=heat,
            acceptance_before=first.counters.draft_acceptance_rate,
            length_before=first.counters.mean_acceptance_length,
            acceptance=own,
            length=_over(last, lambda r: r.counters.mean_acceptance_length),
            gain=self._gain(own, base, at),
            against_gain=self._gain(own, against, at),
            tokens_per_s=_over(last, lambda r: r.counters.tokens_per_s) if self.study.speed else None,
            speedup=_over(last, lambda r: r.counters.tokens_per_s / r.alone_tokens_per_s) if self.study.speed else None,
            published=self._published(method, target, task),
            published_gain=self._published_gain(method, base, target, task),
            published_against_gain=self._published_gain(method, against, target, task),
        )

    @property
    def reference(self) -> Method | None:
        """The first method without training."""
        return next((method for method in self.study.methods if not method.learns), None)

    def _result(self, arm: Arm) -> ArmResult | None:
        return self.results.get(arm.key)

    def _after(self, method: Method, target: str, task: str, heat: float) -> Sequence[ArmResult]:
        """Of every seed, or none at all; one where nothing was learned."""
        keys = dict.fromkeys(after(self.study, method, target, task, seed, heat).key for seed in self.study.seeds)
        return [self.results[key] for key in keys] if keys.keys() <= self.results.keys() else []

    def _gain(self, own: Spread, base: Method | None, arm: Arm) -> float | None:
        """Over ``base`` on the same target, task and temperature; None where it is no other method."""
        if base is None or base.name == arm.method.name:
            return None
        theirs = self._after(base, arm.target, arm.task, arm.temperature)
        return _ratio(own.mean, _over(theirs, _acceptance).mean) if theirs else None

    def _published(self, method: Method, target: str, task: str) -> PublishedFigure | None:
        row, column = self.study.target(target).published, self.study.task(task).published
        return published().figure(row, method.published, column)

    def _published_gain(self, method: Method, base: Method | None, target: str, task: str) -> float | None:
        own = self._published(method, target, task)
        theirs = self._published(base, target, task) if base else None
        return _ratio(own.acceptance, theirs.acceptance) if own and theirs and base is not method else None

    def to_json(self) -> dict[str, Any]:
        """``study.json``."""
        return {
            "schema": SCHEMA,
            "title": self.study.title,
            "kind": self.study.kind,
            "started": self.started,
            "seconds": self.seconds,
            "machine": asdict(self.machine),
            "shortages": list(self.shortages),
            "settings": settings(self.study),
            "published": published().source,
            "cells": [cell.to_json() for cell in self.cells],
            "courses": [course.to_json() for course in self.courses],
            "arms": {key: result.to_json() for key, result in self.results.items()},
            "failures": dict(self.failures),
        }


def settings(study: Study) -> dict[str, Any]:
    """What to set to see the figures again, but the paths of models and data."""
    of_kind = ("window",) if study.segments else ("train_prompts", "unseen_prompts")
    of_speed = ("widen_to",) if study.speed else ()
    names = ("seeds", "temperatures", *of_kind, "max_new_tokens", "draft_tokens", *of_speed)
    return {name: _plain(getattr(study, name)) for name in names} | {
        "drafter": study.drafter.name,
        "methods": {method.name: {k: _plain(v) for k, v in vars(method).items()} for method in study.methods},
    }


def failed(failures: Mapping[str, str]) -> list[str]:
    """A line for each arm that has no result; ``failures`` says why."""
    return [f"failed: {key}: {why}" for key, why in failures.items()]


def _over(results: Iterable[ArmResult], figure: Callable[[ArmResult], float]) -> Spread:
    return Spread(values=tuple(map(figure, results)))


def _acceptance(result: ArmResult) -> float:
    return result.counters.draft_acceptance_rate


def _ratio(own: float, base: float) -> float:
    return own / base if base else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return value.to_json()
    if isinstance(value, PublishedFigure):
        return asdict(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return list(value) if isinstance(value, tuple) else value
