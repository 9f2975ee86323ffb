"""A study of federation as data: ways to learn from a fleet's prompts, with attackers or without. It knows no model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ...common.errors import ConfigError
from ...common.toml import parse, parse_each, read_toml
from ...server.aggregation.aggregate import AggregationConfig
from ...server.aggregation.rules import RULES
from ..experiment import ClientTable, Experiment
from ..faults import FAULTS
from .method import slug
from .plan import check_names

KIND = "federation"

Way = Literal["none", "local", "centralised", "federated"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, kw_only=True)
class ArmTable:
    """One ``[[arms]]``: a way to learn.

    way: ``none`` learns nothing; ``local``, each device from its own prompts; ``centralised``, one learner from all
      prompts in one stream, as if devices sent their text; ``federated``, in rounds.
    rule, weights: of the aggregation; weights empty is ``tokens`` where the rule weighs and ``equal`` elsewhere.
    fault, share: what this share of the devices, rounded up and drawn by the seed, does in each round (``faults.py``).
    against: the arm that this one's acceptance is compared with; empty is the first.
    """

    name: str
    way: str
    rule: str = ""
    weights: str = ""
    fault: str = ""
    share: float = 0.0
    against: str = ""

    def __post_init__(self) -> None:
        if not slug(self.name):
            raise ConfigError(f"name is {self.name!r}, expected one with letters or digits")
        if self.way not in WAYS:
            raise ConfigError(f"way is {self.way!r}, expected one of {', '.join(WAYS)}")
        if self.way != "federated":
            for name in ("rule", "weights", "fault", "share"):
                if given := getattr(self, name):
                    raise ConfigError(f"{name} is {given!r}, expected none unless way is 'federated'")
            return
        if bool(self.fault) != (self.share > 0) or not 0 <= self.share < 1:
            raise ConfigError(f"share is {self.share:g} of fault {self.fault!r}, expected 0 < share < 1 of a fault")
        if self.fault and self.fault not in FAULTS:
            raise ConfigError(f"fault is {self.fault!r}, expected one of {', '.join(FAULTS)}")
        if self.rule not in RULES:
            raise ConfigError(f"rule is {self.rule!r}, expected one of {', '.join(RULES)}")
        _ = self.aggregation  # checks the weights

    @property
    def aggregation(self) -> AggregationConfig:
        """How the server makes a release of the updates."""
        rule, byzantine = RULES[self.rule], AggregationConfig().byzantine
        weights = self.weights or ("tokens" if rule.weighs else "equal")
        return AggregationConfig(rule=self.rule, weights=weights, min_updates=rule.fewest(byzantine))


@dataclass(frozen=True, kw_only=True)
class FederationStudy:
    """A whole study. Every arm learns from the same prompts of each client and has the same number of training steps.

    experiment: whose clients, models, generation, learning and clip norm are used, but for what is named here. Path
      absolute.
    rounds, prompts_per_round: what an arm without rounds learns from in one go.
    unseen_prompts: of each client; none learned from them.
    """

    title: str
    kind: str
    experiment: Path
    arms: tuple[ArmTable, ...]
    seeds: tuple[int, ...] = (0, 1)
    rounds: int = 4
    prompts_per_round: int = 24
    unseen_prompts: int = 12
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        if self.kind != KIND:
            raise ConfigError(f"kind is {self.kind!r}, expected {KIND!r}")
        for name in ("arms", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty, expected at least one")
        for name in ("rounds", "prompts_per_round", "unseen_prompts", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if min(self.seeds) < 0:
            raise ConfigError(f"seeds holds {min(self.seeds)}, expected numbers >= 0")
        check_names("arms", [arm.name for arm in self.arms])
        for arm in self.arms:
            if arm.against and arm.against not in {other.name for other in self.arms if other is not arm}:
                raise ConfigError(f"arm {arm.name!r}: against is {arm.against!r}, expected another arm's name")

    def arm(self, name: str) -> ArmTable:
        return next(arm for arm in self.arms if arm.name == name)

    def fleet(self, arm: ArmTable, seed: int) -> Experiment:
        """The experiment of one arm with one seed: its clients, some of them faulty.

        Raises:
          ConfigError: the experiment's file cannot be used.
        """
        experiment = Experiment.read(self.experiment)
        return replace(
            experiment,
            seed=seed,
            held_out_prompts=self.unseen_prompts,
            generation=replace(experiment.generation, max_new_tokens=self.max_new_tokens),
            learning=replace(experiment.learning, prompts_per_round=self.prompts_per_round),
            clients=tuple(_with_faults(experiment.clients, arm, seed)),
        )

    @classmethod
    def read(cls, path: Path) -> "FederationStudy":
        """Parses a study's file.

        Raises:
          ConfigError: unreadable, not TOML, or a key that is unknown, missing, or of the wrong type or value.
        """
        values = read_toml(path, "study")
        if "arms" in values:
            values["arms"] = parse_each(ArmTable, values["arms"], str(path), "arms")
        study = parse(cls, values, str(path))
        return replace(study, experiment=(path.resolve().parent / study.experiment).resolve())


@dataclass(frozen=True, kw_only=True)
class SeededArm:
    """One arm with one seed; of what learns nothing there is one for all seeds."""

    arm: ArmTable
    seed: int

    @property
    def key(self) -> str:
        """Names its file; different for different arms of a study."""
        return f"{slug(self.arm.name)}_s{self.seed}"


def seeded(study: FederationStudy, arm: ArmTable) -> tuple[SeededArm, ...]:
    """An arm with each of the study's seeds, or, where it learns nothing, with the first."""
    seeds = study.seeds if arm.way != "none" else study.seeds[:1]
    return tuple(SeededArm(arm=arm, seed=seed) for seed in seeds)


def all_seeded(study: FederationStudy) -> tuple[SeededArm, ...]:
    """Every arm, seed after seed."""
    arms = [each for arm in study.arms for each in seeded(study, arm)]
    return tuple(sorted(arms, key=lambda each: study.seeds.index(each.seed)))


def _with_faults(clients: tuple[ClientTable, ...], arm: ArmTable, seed: int) -> Iterator[ClientTable]:
    count = math.ceil(arm.share * len(clients) - 1e-9)  # as the rules that withstand a share round it
    faulty = set(np.random.default_rng([seed, *b"faulty"]).permutation(len(clients))[:count].tolist())
    for number, client in enumerate(clients):
        yield replace(client, fault=arm.fault if number in faulty else "")
