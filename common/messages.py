"""What crosses the network between devices and the server, as frozen values. No text, tokens or accept traces.

Flower's records are one encoding of these values (``records.py``); the laws here hold for any.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .lora import Arrays, LoraAdapter
from .metrics import DraftCounters


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a device is to the server.

    Raises:
      ConfigError: a name is empty, longer than 64 characters or not printable.
    """

    client: str
    """Unique in the fleet; a pseudonym, not a person's name."""
    family: str
    """Name of the client's target vocabulary, e.g. ``spm``; figures are reported per family."""

    def __post_init__(self) -> None:
        for name in (self.client, self.family):
            if not (0 < len(name) <= 64 and name.isprintable()):
                raise ConfigError(f"name is {name[:80]!r}, expected 1 to 64 printable characters")


@dataclass(frozen=True, kw_only=True)
class TrainCounters:
    """What a device trained and the loss it saw. A commutative monoid: ``+`` adds field by field."""

    steps: int = 0
    positions: int = 0
    loss: float = 0.0
    """Sum over positions, so that it adds up."""

    def __add__(self, other: "TrainCounters") -> "TrainCounters":
        return TrainCounters(
            steps=self.steps + other.steps,
            positions=self.positions + other.positions,
            loss=self.loss + other.loss,
        )

    @property
    def mean_loss(self) -> float:
        """Loss per position; 0 when nothing was trained."""
        return self.loss / self.positions if self.positions else 0.0


@dataclass(frozen=True, kw_only=True)
class Release:
    """One version of the shared adapter. ``number`` 0 is the adapter that changes nothing."""

    number: int
    adapter: LoraAdapter
    base: str
    """Fingerprint of the drafter's frozen weights."""


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """What the server asks of a device in one round."""

    round: int
    seed: int
    factors: tuple[str, ...] = ("A", "B")
    """The LoRA factors that may change: both, or only ``B`` under FFA-LoRA."""
    clip_norm: float = 10.0
    """L2 bound on the whole update, in units of the adapter's own entries; applied on the device."""
    timeout_s: float = 3600.0
    """An answer later than this after the request is not awaited."""


@dataclass(frozen=True, kw_only=True)
class EvaluateTask:
    """Asks a device to measure a release on its own held-out prompts."""

    round: int
    seed: int
    timeout_s: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class SumTerms:
    """How a gateway has to add up its devices' answers, so that their sum counts as they would have one by one."""

    weights: str
    """By what an update weighs: ``equal``, ``tokens`` or ``examples``."""
    devices: int
    """The most devices that one answer may stand for."""
    in_force: bool = False
    """Whether the release of the request is the promoted one, which devices may draft with."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The devices that a gateway's answer stands for.

    Raises:
      ConfigError: no device, more than ``MAX_DEVICES``, or a family's name is none.
    """

    MAX_DEVICES: ClassVar[int] = 10**6

    devices: int
    """How many; the answer is their mean, and counts as so many."""
    families: Mapping[str, DraftCounters]
    """What they drafted, by target vocabulary."""

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= self.MAX_DEVICES:
            raise ConfigError(f"devices is {self.devices}, expected 1 to {self.MAX_DEVICES}")
        for name in self.families:
            Identity(client="any", family=name)  # checks the name

    @property
    def counters(self) -> DraftCounters:
        """What all drafted."""
        return sum(self.families.values(), DraftCounters())


@dataclass(frozen=True, kw_only=True)
class Update:
    """A device's answer to a TrainTask: the change of the adapter, its weight, and counters that add up."""

    client: str
    family: str
    base: str
    layout: str
    release: str
    """Digest of the adapter the update starts from."""
    delta: Mapping[str, NDArray[np.float32]]
    weight: float
    """Tokens verified by the client's target this round."""
    counters: DraftCounters = field(default_factory=DraftCounters)
    training: TrainCounters = field(default_factory=TrainCounters)
    cohort: Cohort | None = None
    """With it this is a gateway's: ``delta`` is the mean of the cohort's, weighted as ``SumTerms`` say, ``weight`` the
    sum of their weights; and so are the counters."""

    @property
    def devices(self) -> int:
        """How many devices it counts as."""
        return 1 if self.cohort is None else self.cohort.devices

    @property
    def families(self) -> Mapping[str, DraftCounters]:
        """The counters by target vocabulary."""
        return {self.family: self.counters} if self.cohort is None else self.cohort.families


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A device's answer to an EvaluateTask."""

    client: str
    family: str
    counters: DraftCounters = field(default_factory=DraftCounters)
    cohort: Cohort | None = None
    """With it this is a gateway's: the sum over the cohort."""

    @property
    def families(self) -> Mapping[str, DraftCounters]:
        """The counters by target vocabulary."""
        return {self.family: self.counters} if self.cohort is None else self.cohort.families


def l2_norm(delta: Mapping[str, NDArray[np.float32]]) -> float:
    """Euclidean norm over all entries of all tensors, in float64."""
    return float(np.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in delta.values())))


def clipped(delta: Mapping[str, NDArray[np.float32]], clip_norm: float) -> Arrays:
    """``delta`` scaled down as a whole to a norm of at most ``clip_norm``; a device does this before it answers."""
    norm = l2_norm(delta)
    factor = np.float32(min(1.0, clip_norm / norm) if norm else 1.0)
    return {name: value * factor for name, value in delta.items()}
