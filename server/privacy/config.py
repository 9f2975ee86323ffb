"""Settings of differential privacy and of secure aggregation, and what they do not go together with.

It knows no accountant, so that reading settings does not load one.
"""

import math
from dataclasses import dataclass

from ...common.errors import ConfigError
from ..aggregation.aggregate import AggregationConfig
from ..aggregation.rules import RULES

DRAWS = ("poisson", "fixed")
"""Ways to draw some of the devices; see ``accounting.Charge``."""

LEAST_CLIENTS = 3
"""That take part in secure aggregation: with two, each could take its own update from the sum."""


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What a run promises to each device, and what it may spend.

    Raises:
      ConfigError: a field is out of range, or not exactly one of ``target_epsilon`` and ``noise_multiplier`` is given.
    """

    delta: float
    """Chance that the promise fails altogether: below one in the number of devices."""
    target_epsilon: float | None = None
    """ε that all rounds of the run together come to at most; the least noise for it is computed as the run begins."""
    noise_multiplier: float | None = None
    """Standard deviation of the noise over the bound on one device's part of the sum."""
    budget: float | None = None
    """ε at which the run stops. By default ``target_epsilon``; with ``noise_multiplier`` the rounds alone end it."""
    sampling: str = "poisson"
    """How ``clients_per_round`` devices are drawn: ``poisson``, each by a draw of its own, so that many on average; or
    ``fixed``, exactly so many, for which the proof is weaker and ε larger. Without ``clients_per_round`` all are."""

    fleet_cohort: int = 0
    fleet_population: int = 0
    """A fleet to compare a small run with: what ε would be there with the same noise on the mean; 0: none."""

    def __post_init__(self) -> None:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            given = "both" if self.target_epsilon is not None else "neither"
            raise ConfigError(f"{given} of target_epsilon and noise_multiplier given, expected exactly one")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta is {self.delta!r}, expected 0 < delta < 1")
        for name in ("target_epsilon", "noise_multiplier", "budget"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value!r}, expected a number > 0")
        if self.sampling not in DRAWS:
            raise ConfigError(f"sampling is {self.sampling!r}, expected one of {', '.join(DRAWS)}")
        if not 0 <= self.fleet_cohort <= self.fleet_population or (self.fleet_population and not self.fleet_cohort):
            raise ConfigError(f"fleet_cohort is {self.fleet_cohort}, expected 1 to fleet_population, or both 0")

    @property
    def limit(self) -> float | None:
        """ε that is never exceeded; none: whatever the rounds come to."""
        return self.target_epsilon if self.budget is None else self.budget


@dataclass(frozen=True, kw_only=True)
class SecAggConfig:
    """How many devices guard each secret, and how long a stage may take.

    More neighbours cost each device time and bytes in proportion; a higher threshold hides updates from larger groups
    but ends the round at fewer drop-outs.

    Raises:
      ConfigError: a field is out of range.
    """

    neighbours: int = 32
    """Even; a cohort that is smaller is joined all with all."""
    threshold: float = 0.55
    """Share of the neighbours that must answer to the end: above one half, see common/secagg.py."""
    stage_timeout_s: float = 60.0
    """For each of the three stages in which devices do not train."""

    def __post_init__(self) -> None:
        if self.neighbours < 2 or self.neighbours % 2:
            raise ConfigError(f"neighbours is {self.neighbours}, expected an even number >= 2")
        if not 0.5 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}, expected a share of the neighbours above 0.5, at most 1")
        if not (math.isfinite(self.stage_timeout_s) and self.stage_timeout_s > 0):
            raise ConfigError(f"stage_timeout_s is {self.stage_timeout_s!r}, expected a number > 0")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What of a run's settings decides whether differential privacy is proved and secure aggregation possible.

    Args:
      aggregation: how updates become a release.
      closes_early: a round takes the first so many answers, as with over-selection, instead of all up to a deadline.
      buffered: releases are made of whichever updates have arrived, as in asynchronous mode.
    """

    aggregation: AggregationConfig
    closes_early: bool = False
    buffered: bool = False

    def check_proved(self) -> None:
        """Returns if the analysis covers such a run; otherwise it gets no ε.

        Raises:
          ConfigError: the first reason why not.
        """
        self._check("differential privacy is not proved here")

    def check_summable(self) -> None:
        """Returns if the server can do with one sum a round, which it knows all devices of from the beginning.

        Raises:
          ConfigError: the first reason why not.
        """
        self._check("secure aggregation is not possible here")

    def _check(self, verdict: str) -> None:
        rule, weights, balance = self.aggregation.rule, self.aggregation.weights, self.aggregation.balance
        sum_only = ", ".join(name for name, kind in RULES.items() if kind.sum_only)
        reasons = (
            (not RULES[rule].sum_only, f"rule is {rule!r}, which needs every update, expected one of {sum_only}"),
            (weights != "equal", f"weights is {weights!r}, expected 'equal': one bound for all"),
            (not balance.pooled, "families are balanced, expected balance.exponent 1 and worst_family_rate 0"),
            (
                self.closes_early,
                "a round closes at the first answers, expected at a deadline: the fast displace others",
            ),
            (self.buffered, "updates are buffered, expected rounds: a device's update decides what others are in"),
        )
        for applies, reason in reasons:
            if applies:
                raise ConfigError(f"{verdict}: {reason}")
