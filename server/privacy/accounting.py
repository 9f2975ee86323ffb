"""Differential privacy of a run: what each release costs and what may still be spent. It draws no noise (``noise.py``).

What ε(δ) is about: somebody who sees all releases can hardly tell whether one device took part with its updates or sent
zeros all the time. It is a promise to devices about readers of releases.

* It holds if the operator's server is honest: that adds the noise, and sees sums without it.
* It covers the shared adapters, not what else the server sees or prints: who answered, counters of drafted tokens,
  losses, a round that was given up for want of updates.
* It needs every device's part bounded by itself alone: clipped as a whole, weight 1, in a sum that is divided by a
  number fixed beforehand. A device that drops out or is refused by the gate counts as zeros, which the bound allows;
  so drop-outs cost accuracy, not privacy, as long as they do not make room for others (``config.Conditions``).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import dp_accounting
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from ...common.errors import BudgetSpent, ConfigError

SAMPLINGS = ("poisson", "fixed", "all")

_HOPELESS = 30.0
"""Above this ε promises nothing, and the exact accountant's memory grows with it."""

_LEAST_NOISE = 2.0**-6


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one release costs: how its devices were drawn, and how loud the noise on their sum was.

    Args:
      sampling: ``poisson``, each device by a draw of its own with probability cohort / population; ``fixed``,
        ``cohort`` of them without replacement; ``all``, whoever takes part, without the gain of a secret draw.
      noise_multiplier: standard deviation of the noise over the L2 bound on one device's part of the sum.
      cohort: devices per round, on average where that varies; the noised sum is divided by it.
      population: devices that the draw was from.

    Raises:
      ConfigError: a field is out of range.
    """

    sampling: str
    noise_multiplier: float
    cohort: int
    population: int

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ConfigError(f"sampling is {self.sampling!r}, expected one of {', '.join(SAMPLINGS)}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError(f"noise_multiplier is {self.noise_multiplier!r}, expected a number > 0")
        if not 1 <= self.cohort <= self.population:
            raise ConfigError(f"cohort is {self.cohort}, expected 1 to the population of {self.population}")

    @property
    def probability(self) -> float:
        """Of a device to be drawn."""
        return self.cohort / self.population

    @property
    def event(self) -> dp_accounting.DpEvent:
        """The same in the terms of ``dp_accounting``.

        With ``fixed`` two neighbouring fleets differ in what one device sends, not in whether it sends something: the
        sum can then change by twice the bound, which this accountant expects to find in the noise multiplier.
        """
        if self.sampling == "fixed":
            halved = dp_accounting.GaussianDpEvent(self.noise_multiplier / 2)
            return dp_accounting.SampledWithoutReplacementDpEvent(self.population, self.cohort, halved)
        noise = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        return dp_accounting.PoissonSampledDpEvent(self.probability, noise) if self.sampling == "poisson" else noise

    def at_fleet_size(self, *, cohort: int, population: int) -> "Charge":
        """The charge of a larger fleet whose mean update is as noisy as here: the noise multiplier grows as the cohort.

        A small run with it shows the accuracy that the large fleet would have; its own ε is that of ``self``.
        """
        louder = self.noise_multiplier * cohort / self.cohort
        return replace(self, noise_multiplier=louder, cohort=cohort, population=population)


_Charges = tuple[tuple[Charge, int], ...]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All that a run has spent: charges in the order of their rounds, equal neighbours counted together.

    Immutable; goes into a release's metadata as JSON, from which a resumed run continues exactly.
    """

    charges: _Charges = ()

    @property
    def rounds(self) -> int:
        """Releases that were charged."""
        return sum(count for _, count in self.charges)

    def plus(self, charge: Charge, rounds: int = 1) -> "Ledger":
        """With further rounds charged.

        Raises:
          ConfigError: the run drew its devices in another way before, which has another meaning of ε; start a new run.
        """
        if self.charges and ((self.charges[-1][0].sampling == "fixed") != (charge.sampling == "fixed")):
            raise ConfigError(
                f"sampling is {charge.sampling!r}, the rounds before had {self.charges[-1][0].sampling!r}; "
                "their ε are about different neighbours and do not add up"
            )
        if self.charges and self.charges[-1][0] == charge:
            return Ledger(charges=(*self.charges[:-1], (charge, self.charges[-1][1] + rounds)))
        return Ledger(charges=(*self.charges, (charge, rounds)))

    def epsilon(self, delta: float) -> float:
        """ε such that everything so far is (ε, δ)-differentially private for a device.

        Guarantees: an upper bound. ``poisson`` and ``all``: exact to 1e-4 (privacy loss distributions; neighbours are a
        device that takes part and the same device sending zeros). ``fixed``: Rényi (neighbours are a device with
        any two sets of data), since the library has no tighter analysis: 10 rounds of 1 % of the devices at noise
        multiplier 0.8 and delta 1e-6 have ε = 13.4, against 1.38 with ``poisson``.
        """
        return _epsilon(self.charges, delta) if self.charges else 0.0

    def at_fleet_size(self, *, cohort: int, population: int) -> "Ledger":
        """The ledger of a fleet of that size with the same noise on the mean; see ``Charge.at_fleet_size``."""
        return Ledger(
            charges=tuple((c.at_fleet_size(cohort=cohort, population=population), n) for c, n in self.charges)
        )

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(charge) | {"rounds": count} for charge, count in self.charges]

    @classmethod
    def from_json(cls, value: list[Mapping[str, Any]]) -> "Ledger":
        """Reads what ``to_json`` gave.

        Raises:
          KeyError, TypeError, ConfigError: not such a value.
        """
        rows = [dict(row) for row in value]
        return cls(charges=tuple((Charge(**{k: v for k, v in r.items() if k != "rounds"}), r["rounds"]) for r in rows))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may spend in all.

    Raises:
      ConfigError: a field is out of range.
    """

    epsilon: float
    delta: float
    """Chance that the promise fails altogether: well below one in the number of devices."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and 0 < self.epsilon <= _HOPELESS):
            raise ConfigError(f"epsilon is {self.epsilon!r}, expected 0 < epsilon <= {_HOPELESS:g}")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta is {self.delta!r}, expected 0 < delta < 1")

    def pay(self, ledger: Ledger, charge: Charge) -> Ledger:
        """The ledger after one more round; ask before the round, and keep the answer with its release.

        Raises:
          BudgetSpent: that would be more than the budget.
          ConfigError: ``delta`` is not below one in the population, or see ``Ledger.plus``.
        """
        check_delta(self.delta, charge.population)
        after = ledger.plus(charge)
        if (epsilon := after.epsilon(self.delta)) > self.epsilon:
            raise BudgetSpent(
                f"round {after.rounds} would bring epsilon to {epsilon:.4g} at delta {self.delta:g}, "
                f"expected at most {self.epsilon:g}; {ledger.rounds} rounds have spent {ledger.epsilon(self.delta):.4g}"
            )
        return after

    def noise_multiplier(self, charge: Charge, rounds: int) -> float:
        """The least noise, to 0.5 %, with which ``rounds`` like ``charge`` (whatever its noise) stay in the budget.

        May take half a minute: by bisection, first with a rough bound, then with the exact accountant from there.
        """
        check_delta(self.delta, charge.population)

        def within(epsilon: Callable[[_Charges, float], float], multiplier: float) -> bool:
            return epsilon(((replace(charge, noise_multiplier=multiplier), rounds),), self.delta) <= self.epsilon

        rough = _least(lambda multiplier: within(_rough_epsilon, multiplier), 1.0)
        return rough if charge.sampling == "fixed" else _least(lambda multiplier: within(_epsilon, multiplier), rough)


def check_delta(delta: float, population: int) -> None:
    """Returns if ``delta`` is small enough for so many devices.

    Raises:
      ConfigError: to publish one device's update whole would be allowed.
    """
    if delta * population >= 1:
        raise ConfigError(
            f"delta is {delta:g}, expected less than 1 / {population}: "
            "otherwise to publish one device's update whole would be allowed"
        )


def _least(fits: Callable[[float], bool], start: float) -> float:
    """The least number that fits, to 0.5 % above, where all above one that fits do."""
    enough = start
    while not fits(enough):
        enough *= 2
    low = enough / 2
    while low > _LEAST_NOISE and fits(low):
        enough, low = low, low / 2
    while enough - low > 5e-3 * enough:
        middle = (low + enough) / 2
        low, enough = (low, middle) if fits(middle) else (middle, enough)
    return enough


@lru_cache(maxsize=64)
def _epsilon(charges: _Charges, delta: float) -> float:
    rough = _rough_epsilon(charges, delta)
    if charges[0][0].sampling == "fixed" or rough > _HOPELESS:
        return rough
    return _composed(PLDAccountant(NeighboringRelation.REPLACE_SPECIAL), charges, delta)


def _rough_epsilon(charges: _Charges, delta: float) -> float:
    """By Rényi accounting."""
    if charges[0][0].sampling == "fixed":
        return _composed(RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE), charges, delta)
    # Whole orders: the fractional ones do not always converge, and only pay where ε is hopeless.
    return _composed(RdpAccountant(range(2, 65), NeighboringRelation.REPLACE_SPECIAL), charges, delta)


def _composed(accountant: dp_accounting.PrivacyAccountant, charges: _Charges, delta: float) -> float:
    for charge, count in charges:
        accountant.compose(charge.event, count)
    return float(accountant.get_epsilon(delta))
