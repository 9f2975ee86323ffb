"""What a study of direct alignment found: block efficiency by target and task, over seeds, and what a drafter costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ...common.machine import Machine
from ...common.metrics import DraftCounters
from .alignment import AlignmentStudy, ArmTable, seeded
from .alignment_result import AlignmentResult
from .findings import SCHEMA, Spread

Cell = tuple[str, str]
"""Target and task."""


@dataclass(frozen=True, kw_only=True)
class TargetRow:
    """One arm with one target. cost: parameters of the drafter by those of the target.

    step_ms: of a call of the target that scores one token. mbsu: memory-bound speed-up, ``tau / (1 + cost * gamma)``
    of the mean block efficiency over tasks (ALGORITHMS §0).
    """

    cost: float
    step_ms: Spread
    mean: Spread
    mbsu: Spread


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm over the seeds that have a result.

    efficiency: block efficiency. mean: of it over targets and tasks, each counting once. acceptance: likewise.
    gain: mean over that of the same drafter untuned; None of that itself, or without it.
    by_seed: mean by seed, so that arms can be compared seed by seed.
    step_ms: of a call of the drafter that scores one token. best_steps: of the models kept, by seed.
    """

    arm: ArmTable
    efficiency: Mapping[Cell, Spread]
    mean: Spread
    acceptance: Spread
    gain: Spread | None
    by_seed: Mapping[int, float]
    targets: Mapping[str, TargetRow]
    parameters: int
    validation: float | None
    step_ms: Spread
    best_steps: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Field by field; the arm by its name, spreads with their values."""
        spreads = {
            name: spread.to_json() for name in ("mean", "acceptance", "step_ms") if (spread := getattr(self, name))
        }
        cells = [
            {"target": target, "task": task} | spread.to_json() for (target, task), spread in self.efficiency.items()
        ]
        targets = {
            name: {"cost": row.cost} | {key: getattr(row, key).to_json() for key in ("step_ms", "mean", "mbsu")}
            for name, row in self.targets.items()
        }
        own = {"arm": self.arm.name, "efficiency": cells, "targets": targets}
        return vars(self) | spreads | own | {"gain": self.gain.to_json() if self.gain else None}


@dataclass(frozen=True, kw_only=True)
class AlignmentFindings:
    """Everything a study's page shows. results: by the arms' keys. failures: why an arm has none.

    shortages: of prompts, in a line for each task that has fewer than were asked for.
    """

    study: AlignmentStudy
    results: Mapping[str, AlignmentResult]
    failures: Mapping[str, str]
    started: str
    seconds: float
    machine: Machine
    shortages: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[ArmRow, ...]:
        """All arms that any seed has a result for."""
        found = ((arm, self._of(arm)) for arm in self.study.arms)
        return tuple(self._row(arm, results) for arm, results in found if results)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every target with every task."""
        return tuple((target.name, task.name) for target in self.study.targets for task in self.study.tasks)

    @property
    def arm_seconds(self) -> Spread | None:
        """Processor time of the arms that were fine-tuned."""
        times = tuple(result.cpu_seconds for result in self.results.values() if result.measures)
        return Spread(values=times) if times else None

    def _of(self, arm: ArmTable) -> dict[int, AlignmentResult]:
        """By seed."""
        keys = {each.seed: each.key for each in seeded(self.study, arm)}
        return {seed: self.results[key] for seed, key in keys.items() if key in self.results}

    def _row(self, arm: ArmTable, by_seed: Mapping[int, AlignmentResult]) -> ArmRow:
        results = list(by_seed.values())
        mean, base = _over(results, self._mean), self.study.untuned(arm)
        untuned = list(self._of(base).values()) if base and base != arm else []
        return ArmRow(
            arm=arm,
            efficiency={cell: Spread(values=tuple(_efficiency(r, *cell) for r in results)) for cell in self.cells},
            mean=mean,
            acceptance=_over(results, self._acceptance),
            gain=Spread(values=tuple(value / self._mean(untuned[0]) for value in mean.values)) if untuned else None,
            by_seed={seed: self._mean(result) for seed, result in by_seed.items()},
            targets={target.name: self._target(results, target.name) for target in self.study.targets},
            parameters=results[0].parameters,
            validation=results[0].validation,
            step_ms=_over(results, lambda r: r.step_ms),
            best_steps=tuple(result.best_step for result in results),
        )

    def _target(self, results: Sequence[AlignmentResult], name: str) -> TargetRow:
        cost, gamma = results[0].parameters / results[0].targets[name].parameters, self.study.draft_tokens
        mean = _over(results, lambda r: fmean(_efficiency(r, name, task.name) for task in self.study.tasks))
        return TargetRow(
            cost=cost,
            step_ms=_over(results, lambda r: r.targets[name].step_ms),
            mean=mean,
            mbsu=Spread(values=tuple(value / (1 + cost * gamma) for value in mean.values)),
        )

    def _mean(self, result: AlignmentResult) -> float:
        return fmean(_efficiency(result, *cell) for cell in self.cells)

    def _acceptance(self, result: AlignmentResult) -> float:
        return fmean(_counters(result, *cell).draft_acceptance_rate for cell in self.cells)

    def to_json(self) -> dict[str, Any]:
        """``study.json``."""
        paths = ("texts", "tokenizer", "targets", "tasks")
        return {
            "schema": SCHEMA,
            "title": self.study.title,
            "kind": self.study.kind,
            "started": self.started,
            "seconds": self.seconds,
            "machine": asdict(self.machine),
            "shortages": list(self.shortages),
            "settings": {name: value for name, value in asdict(self.study).items() if name not in paths},
            "rows": [row.to_json() for row in self.rows],
            "arms": {key: result.to_json() for key, result in self.results.items()},
            "failures": dict(self.failures),
        }


def _counters(result: AlignmentResult, target: str, task: str) -> DraftCounters:
    return result.targets[target].tasks[task]


def _efficiency(result: AlignmentResult, target: str, task: str) -> float:
    return _counters(result, target, task).mean_acceptance_length


def _over(results: Sequence[AlignmentResult], figure: Callable[[AlignmentResult], float]) -> Spread:
    return Spread(values=tuple(map(figure, results)))
