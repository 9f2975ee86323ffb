"""Settings of a federation's server, checked when they are made."""

import math
from dataclasses import dataclass

from ..common.errors import ConfigError
from .aggregation.rules import RULES, WEIGHTS


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the rounds are to be like.

    Raises:
      ConfigError: a field is out of range; names field, value and expectation.
    """

    rounds: int
    """In all: a resumed run does only those that are left."""
    seed: int = 0
    rule: str = "fedit"
    weights: str = "tokens"
    clients_per_round: int | None = None
    """Sampled without replacement for each round; none means all that joined."""
    min_updates: int = 1
    """With fewer valid updates a round keeps the old release."""
    clip_norm: float = 10.0
    timeout_s: float = 600.0
    """From sending a round's requests to giving up on those who have not answered."""
    expected_clients: int = 1
    """The first round waits for so many devices to join, but not longer than ``join_timeout_s``."""
    join_timeout_s: float = 60.0
    evaluate_every: int = 0
    """Every so many rounds all devices measure the new release; 0 means never."""

    def __post_init__(self) -> None:
        _check("rule", self.rule, self.rule in RULES, f"one of {', '.join(RULES)}")
        _check("weights", self.weights, self.weights in WEIGHTS, f"one of {', '.join(WEIGHTS)}")
        for name in ("rounds", "seed", "evaluate_every"):
            _check(name, value := getattr(self, name), value >= 0, "a number >= 0")
        for name in ("min_updates", "expected_clients"):
            _check(name, value := getattr(self, name), value >= 1, "a number >= 1")
        for name in ("clip_norm", "timeout_s", "join_timeout_s"):
            _check(name, value := getattr(self, name), math.isfinite(value) and value > 0, "a number > 0")
        if self.clients_per_round is not None:
            fits = self.clients_per_round >= self.min_updates
            _check("clients_per_round", self.clients_per_round, fits, f"at least min_updates = {self.min_updates}")

    def evaluates(self, round: int) -> bool:
        """Whether devices measure the release after ``round``."""
        return self.evaluate_every > 0 and round % self.evaluate_every == 0


def _check(name: str, value: object, holds: bool, expectation: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}, expected {expectation}")
