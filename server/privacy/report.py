"""What became of privacy in one round, for people and for files. It knows neither accountant nor transport."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PrivacyReport:
    """What the releases up to this round have spent, and what the round itself was like."""

    epsilon: float
    delta: float
    """All releases up to now are (epsilon, delta)-differentially private for each device."""
    rounds: int
    """Releases that were paid for."""
    budget: float | None
    """ε that is never exceeded, where there is a limit."""
    noise_multiplier: float
    noise_std: float
    """Of the noise on each entry of the sum."""
    sampling: str
    cohort: int
    """Devices a round, on average; the sum is divided by it."""
    population: int
    fleet_cohort: int = 0
    fleet_population: int = 0
    fleet_epsilon: float | None = None
    """ε of a fleet of that size whose mean is as noisy, where one was named."""

    def line(self) -> str:
        """For people: ``epsilon = 2.31 at delta = 1e-06 after 3 rounds (…)``."""
        rounds = f"{self.rounds} round{'' if self.rounds == 1 else 's'}"
        limit = "" if self.budget is None else f" of at most {self.budget:g}"
        some = f"{self.sampling}, {self.cohort} of {self.population} devices"
        drawn = "all devices" if self.sampling == "all" else some
        return (
            f"epsilon = {self.epsilon:.4g}{limit} at delta = {self.delta:g} after {rounds} "
            f"({drawn}, noise multiplier {self.noise_multiplier:.4g})"
        )

    def fleet_line(self) -> str:
        """The same of the fleet to compare with; empty where there is none."""
        if self.fleet_epsilon is None:
            return ""
        size = f"{self.fleet_cohort:,} of {self.fleet_population:,} devices"
        return f"epsilon = {self.fleet_epsilon:.4g} at delta = {self.delta:g} for a fleet that draws {size}, same noise"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What became of one stage of secure aggregation."""

    asked: int
    dropped: Mapping[str, str]
    """Clients that were asked and gave no answer that counts, with the reason."""
    seconds: float
    bytes_up: int
    """From the devices, keys and shares included."""
    bytes_down: int


@dataclass(frozen=True, kw_only=True)
class SecureReport:
    """What became of secure aggregation in one round."""

    neighbours: int
    threshold: int
    step: float
    """What one unit of the fixed-point encoding is worth."""
    stages: Mapping[str, StageReport]
    """Those that began, by name in order."""
    aborted: str = ""
    """Why there is no sum; empty if there is."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SecureReport":
        """Reads what ``to_json`` gave.

        Raises:
          KeyError, TypeError: not such a value.
        """
        stages = {name: StageReport(**stage) for name, stage in value["stages"].items()}
        return cls(**{**value, "stages": stages})
