"""The privacy of one run, round by round: who is drawn, what is paid, which noise is added. It knows no transport.

It loads the accountant, which takes a second: import it only where a run is private.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError, RegistryError
from ...common.lora import Arrays
from .accounting import Budget, Charge, Ledger, check_delta
from .config import PrivacyConfig
from .draw import drawn
from .noise import Entropy, noisy_mean
from .report import PrivacyReport


class Spending:
    """What a run has spent and what the next round would.

    Guarantees:
      - A round that is not within the budget draws nobody.
      - The spent ε is that of the releases: ``record`` goes into the release that it pays for.

    Args:
      rounds: of the whole run, for which the least noise is found.
      cohort: devices to draw for a round; none: everybody.
      population: devices that are expected to be there.
      ledger: what was spent before; see ``ledger_of``.
      key: the secret of the draws.

    Raises:
      ConfigError: the settings do not go together.
    """

    def __init__(
        self,
        config: PrivacyConfig,
        *,
        rounds: int,
        cohort: int | None,
        population: int,
        ledger: Ledger,
        key: bytes,
        entropy: Entropy = os.urandom,
    ) -> None:
        self._config = config
        self._sampling = "all" if cohort is None else config.sampling
        self._cohort = cohort
        self._budget = None if config.limit is None else Budget(epsilon=config.limit, delta=config.delta)
        self._ledger = self._before = ledger
        self._key = key
        self._entropy = entropy
        self._noise = config.noise_multiplier or self._least_noise(rounds, population)
        self._charge = ledger.charges[-1][0] if ledger.charges else self._charged(population)

    @property
    def charge(self) -> Charge:
        """Of the round that was paid last."""
        return self._charge

    def pay(self, joined: int) -> None:
        """Enters the charge of a round among ``joined`` devices; ask before anything is sent.

        A round that then ends without a release has cost nothing: ``forgo`` it.

        Raises:
          BudgetSpent: it would exceed the budget.
          ConfigError: delta is not below one in the number of devices.
        """
        charge = self._charged(joined)
        check_delta(self._config.delta, charge.population)
        self._before = self._ledger
        self._ledger = self._ledger.plus(charge) if self._budget is None else self._budget.pay(self._ledger, charge)
        self._charge = charge

    def forgo(self) -> None:
        """Takes the charge back: the round that was paid last made no release."""
        self._ledger = self._before

    def draw(self, clients: Iterable[str], round: int) -> list[str]:
        """Who is asked in the round that was paid, ascending."""
        return drawn(clients, self._charge, round=round, key=self._key)

    def noisy_mean(self, total: Mapping[str, NDArray[np.float64]], sensitivity: float) -> Arrays:
        """The mean of the round that was paid, over its planned cohort, as it may be released.

        Args:
          total: sum of the updates, each of weight 1.
          sensitivity: bound on the norm of one.
        """
        return noisy_mean(total, std=self._std(sensitivity), devices=self._charge.cohort, entropy=self._entropy)

    def report(self, sensitivity: float) -> PrivacyReport:
        """What has been spent, the round that was paid last included."""
        return PrivacyReport(
            epsilon=self._ledger.epsilon(self._config.delta),
            delta=self._config.delta,
            rounds=self._ledger.rounds,
            budget=self._config.limit,
            noise_multiplier=self._noise,
            noise_std=self._std(sensitivity),
            sampling=self._sampling,
            cohort=self._charge.cohort,
            population=self._charge.population,
            fleet_cohort=self._config.fleet_cohort,
            fleet_population=self._config.fleet_population,
            fleet_epsilon=self._fleet_epsilon(),
        )

    def record(self, sensitivity: float) -> dict[str, Any]:
        """For the release's metadata: ε(δ) for people, and the ledger, from which a resumed run goes on."""
        return self.report(sensitivity).to_json() | {"ledger": self._ledger.to_json()}

    def _fleet_epsilon(self) -> float | None:
        cohort, population = self._config.fleet_cohort, self._config.fleet_population
        if not cohort:
            return None
        return self._ledger.at_fleet_size(cohort=cohort, population=population).epsilon(self._config.delta)

    def _std(self, sensitivity: float) -> float:
        return self._noise * sensitivity

    def _charged(self, joined: int, noise: float | None = None) -> Charge:
        """A round among so many devices; where there are fewer than the cohort, all of them take part.

        How many there are is known before the round, and the same whether a device sends its update or zeros.
        """
        cohort = self._cohort or max(1, joined)
        return Charge(
            sampling=self._sampling,
            noise_multiplier=noise or self._noise,
            cohort=cohort,
            population=max(joined, cohort),
        )

    def _least_noise(self, rounds: int, population: int) -> float:
        if self._config.target_epsilon is None:
            raise ConfigError("neither target_epsilon nor noise_multiplier is given, expected one")
        target = Budget(epsilon=self._config.target_epsilon, delta=self._config.delta)
        return target.noise_multiplier(self._charged(population, noise=1.0), rounds)


def ledger_of(record: Mapping[str, Any]) -> Ledger:
    """The ledger in what ``Spending.record`` gave for a release.

    Raises:
      RegistryError: it is something else.
    """
    try:
        return Ledger.from_json(record["ledger"])
    except (KeyError, TypeError, ConfigError) as error:
        raise RegistryError(f"a release's privacy record cannot be read: {error}") from error
