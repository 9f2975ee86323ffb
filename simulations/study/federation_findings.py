"""What a study of federation found: acceptance by family, mean and worst client, what was sent, what attackers did."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ...common.machine import Machine
from ...common.metrics import DraftCounters
from .federation import ArmTable, FederationStudy, seeded
from .federation_arm import FederationResult
from .findings import SCHEMA, Spread


@dataclass(frozen=True, kw_only=True)
class FederationCell:
    """One arm over the seeds that have a result.

    families: acceptance rate on the unseen prompts of all of a family's clients. mean, worst: over clients, each
    client's rate counting once. worst_clients: who that is, by seed. clients: each one's rate.
    least_gain: the smallest change of a client's rate from the study's first arm that learns nothing, negative where a
    client lost; None where there is no such arm. least_gainers: who that is, by seed.
    length: mean acceptance length over all unseen prompts.
    compared: mean of the arm it is compared with, of the same seeds; None where a seed of it is missing. over: mean
    over that, seed by seed.
    up, down: tensor bytes of a round from and to one device; 0 without rounds.
    text_bytes: of prompts sent, in all. accepted, excluded: updates in all rounds, mean over the seeds.
    reasons: why updates were excluded, each once. attackers: clients with a fault, by seed.
    """

    arm: ArmTable
    families: Mapping[str, Spread]
    mean: Spread
    worst: Spread
    worst_clients: tuple[str, ...]
    clients: Mapping[str, Spread]
    least_gain: Spread | None
    least_gainers: tuple[str, ...]
    length: Spread
    compared: Spread | None
    over: Spread | None
    up: float
    down: float
    text_bytes: float
    accepted: float
    excluded: float
    reasons: tuple[str, ...]
    attackers: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Field by field; the arm by its name."""
        names = ("mean", "worst", "least_gain", "length", "compared", "over")
        spreads = {name: own.to_json() if (own := getattr(self, name)) else None for name in names}
        tables = {
            name: {key: spread.to_json() for key, spread in getattr(self, name).items()}
            for name in ("families", "clients")
        }
        return vars(self) | {"arm": self.arm.name} | spreads | tables


@dataclass(frozen=True, kw_only=True)
class FederationFindings:
    """Everything a study's page shows. results: by the arms' keys. failures: why an arm has none.

    shortages: of prompts, in a line for each client that has fewer than were asked for.
    """

    study: FederationStudy
    results: Mapping[str, FederationResult]
    failures: Mapping[str, str]
    started: str
    seconds: float
    machine: Machine
    shortages: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[FederationCell, ...]:
        """All arms that any seed has a result for."""
        found = ((arm, self._of(arm)) for arm in self.study.arms)
        return tuple(self._cell(arm, results) for arm, results in found if results)

    @property
    def arm_seconds(self) -> Spread | None:
        """Processor time of the arms that learned."""
        times = tuple(result.cpu_seconds for result in self.results.values() if result.steps)
        return Spread(values=times) if times else None

    def against(self, arm: ArmTable) -> ArmTable | None:
        """The arm that ``arm`` is compared with."""
        other = self.study.arm(arm.against) if arm.against else self.study.arms[0]
        return None if other == arm else other

    def _of(self, arm: ArmTable) -> dict[int, FederationResult]:
        """By seed."""
        keys = {each.seed: each.key for each in seeded(self.study, arm)}
        return {seed: self.results[key] for seed, key in keys.items() if key in self.results}

    def _cell(self, arm: ArmTable, by_seed: Mapping[int, FederationResult]) -> FederationCell:
        results = list(by_seed.values())
        rates = [_rates(result) for result in results]
        gains, compared, mean = self._gains(rates), self._compared(arm, by_seed), _over(results, _mean)
        families = dict.fromkeys(facts.family for facts in results[0].clients.values())
        rounds = [facts for result in results for facts in result.rounds]
        asked = len(rounds) * len(results[0].clients) or 1
        return FederationCell(
            arm=arm,
            families={family: Spread(values=tuple(_rate(r, family) for r in results)) for family in families},
            mean=mean,
            worst=Spread(values=tuple(min(own.values()) for own in rates)),
            worst_clients=tuple(min(own, key=own.__getitem__) for own in rates),
            clients={name: Spread(values=tuple(own[name] for own in rates)) for name in rates[0]},
            least_gain=Spread(values=tuple(min(own.values()) for own in gains)) if gains else None,
            least_gainers=tuple(min(own, key=own.__getitem__) for own in gains),
            length=_over(results, lambda r: _total(r).mean_acceptance_length),
            compared=compared,
            over=_ratios(mean, compared) if compared else None,
            up=sum(facts.bytes_up for facts in rounds) / asked,
            down=sum(facts.bytes_down for facts in rounds) / asked,
            text_bytes=fmean(result.text_bytes for result in results),
            accepted=sum(len(facts.accepted) for facts in rounds) / len(results),
            excluded=sum(len(facts.excluded) for facts in rounds) / len(results),
            reasons=tuple(sorted({reason for facts in rounds for reason in facts.excluded.values()})),
            attackers=tuple(tuple(n for n, facts in r.clients.items() if facts.fault) for r in results),
        )

    def _gains(self, rates: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        """By client what its rate changed from the first arm that learns nothing, for each seed; none without it."""
        silent = next((arm for arm in self.study.arms if arm.way == "none"), None)
        measured = list(self._of(silent).values()) if silent else []
        before = _rates(measured[0]) if measured else {}
        return [{name: rate - before[name] for name, rate in own.items()} for own in rates] if before else []

    def _compared(self, arm: ArmTable, by_seed: Mapping[int, FederationResult]) -> Spread | None:
        other = self.against(arm)
        theirs = self._of(other) if other else {}
        if other and other.way == "none" and theirs:  # measured once, for all seeds
            theirs = dict.fromkeys(by_seed, next(iter(theirs.values())))
        return _over([theirs[seed] for seed in by_seed], _mean) if by_seed.keys() <= theirs.keys() else None

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
            "settings": {name: value for name, value in asdict(self.study).items() if name != "experiment"},
            "cells": [cell.to_json() for cell in self.cells],
            "arms": {key: result.to_json() for key, result in self.results.items()},
            "failures": dict(self.failures),
        }


def _rates(result: FederationResult) -> dict[str, float]:
    """Acceptance rate of each client."""
    return {name: facts.counters.draft_acceptance_rate for name, facts in result.clients.items()}


def _mean(result: FederationResult) -> float:
    return fmean(_rates(result).values())


def _rate(result: FederationResult, family: str) -> float:
    """Of a family's clients together."""
    return _total(result, family).draft_acceptance_rate


def _total(result: FederationResult, family: str = "") -> DraftCounters:
    """Of a family's clients, or of all."""
    own = (facts.counters for facts in result.clients.values() if family in ("", facts.family))
    return sum(own, DraftCounters())


def _over(results: Sequence[FederationResult], figure: Callable[[FederationResult], float]) -> Spread:
    return Spread(values=tuple(map(figure, results)))


def _ratios(own: Spread, other: Spread) -> Spread | None:
    """Seed by seed; None where one would be over nothing."""
    pairs = list(zip(own.values, other.values, strict=True))
    return Spread(values=tuple(value / base for value, base in pairs)) if all(other.values) else None
