"""From the updates of a round to the next adapter: rule, weights, families and server optimiser together.

It knows neither transport nor registry. What the server carries from round to round is one value, ``Carried``; with the
release it makes a round repeatable to the last bit.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError, Reason, RegistryError, UpdateRejected
from ...common.lora import Arrays, LoraAdapter
from ...common.messages import Update
from ...common.metrics import DraftCounters
from .family_balance import BalanceConfig, FamilyMeans
from .fed_svd import rebased
from .rules import RULES, WEIGHTS, Accumulator, Rule, Terms
from .saved import Saved
from .server_optimizer import OptimizerConfig, OptimizerState

NoisyMean = Callable[[Mapping[str, NDArray[np.float64]]], Arrays]

#: The most that one update may weigh, by tokens or by examples.
MAX_WEIGHT = 1e7


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """How updates become a release, checked when it is made.

    Raises:
      ConfigError: a field is out of range, or fields do not go together.
    """

    rule: str = "fedit"
    weights: str = "equal"
    """One vote a device by default: tokens and examples are a device's own claim, and who boasts decides all."""
    byzantine: float = 0.2
    """Share of a round's updates that may be arbitrary, rounded up; for the rules that withstand some."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    min_updates: int = 1
    """With fewer valid updates a round keeps the old release."""

    def __post_init__(self) -> None:
        _check("rule", self.rule, self.rule in RULES, f"one of {', '.join(RULES)}")
        _check("weights", self.weights, self.weights in WEIGHTS, f"one of {', '.join(WEIGHTS)}")
        _check("byzantine", self.byzantine, 0 < self.byzantine < 0.5, "a number > 0 and < 0.5")
        self._check_pairs()
        fewest = self.kind.fewest(self.byzantine)
        expectation = f"at least {fewest}, which {self.rule} with byzantine = {self.byzantine:g} needs"
        _check("min_updates", self.min_updates, self.min_updates >= fewest, expectation)

    @property
    def kind(self) -> Rule:
        """The rule of that name."""
        return RULES[self.rule]

    def _check_pairs(self) -> None:
        if not self.kind.weighs:
            reason = f"since {self.rule} gives every update one vote"
            _check("weights", self.weights, self.weights == "equal", f"'equal', {reason}")
            _check("balance", self.balance, self.balance.pooled, f"exponent 1 and worst_family_rate 0, {reason}")


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What the server carries from one round to the next, beside the release."""

    moments: OptimizerState = field(default_factory=OptimizerState)
    priorities: Mapping[str, float] = field(default_factory=dict)
    """Of the target families, with a mean of 1; see ``BalanceConfig.reprioritised``."""

    def to_bytes(self) -> bytes:
        """The same bytes for the same value: a line of JSON, then the moments."""
        return json.dumps(dict(sorted(self.priorities.items()))).encode() + b"\n" + self.moments.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Carried":
        """Reads what ``to_bytes`` gave.

        Raises:
          RegistryError: the bytes are something else or torn.
        """
        head, _, rest = data.partition(b"\n")
        try:
            priorities = {str(name): float(value) for name, value in json.loads(head).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise RegistryError(f"the families' priorities cannot be read: {error}") from error
        return cls(moments=OptimizerState.from_bytes(rest), priorities=priorities)

    def evaluated(self, evaluation: Mapping[str, DraftCounters], balance: BalanceConfig) -> "Carried":
        """After the families' acceptance was measured."""
        return replace(self, priorities=balance.reprioritised(self.priorities, evaluation))


class Aggregate:
    """The updates of one round on their way to the next adapter.

    Guarantees:
      - The order of updates, and how they are grouped before ``merge``, changes no bit of the result.
      - Under a sum-only rule its memory does not depend on the number of updates.
    """

    def __init__(self, config: AggregationConfig, adapter: LoraAdapter, round: int, carried: Carried) -> None:
        """An empty aggregate for ``round`` (from 1), which starts from ``adapter``."""
        self._config = config
        self._adapter = adapter
        self._carried = carried
        terms = Terms(
            adapter=adapter, balance=config.balance, priorities=carried.priorities, byzantine=config.byzantine
        )
        self._accumulator: Accumulator = config.kind.begin(terms, round)

    def add(self, update: Update, discount: float = 1.0) -> None:
        """Takes in an update that the gate let pass; ``discount`` multiplies its weight.

        Raises:
          UpdateRejected: its weight is none; nothing has changed.
        """
        weight = WEIGHTS[self._config.weights](update)
        limit = MAX_WEIGHT * update.devices
        if not 0 < weight <= limit:
            raise UpdateRejected(
                f"weight by {self._config.weights} is {weight:g}, expected 0 < weight <= {limit:g}", Reason.WEIGHT
            )
        self._accumulator.add(update.delta, weight * discount, update.family)

    def add_sum(self, total: Mapping[str, NDArray[np.float64]], weight: float, family: str) -> None:
        """Takes in ``sum(w * delta)`` and ``sum(w)`` of some devices of ``family``, as secure aggregation gives them.

        Raises:
          ConfigError: the rule needs every update.
        """
        self._means().add_sum(total, weight, family)

    def merge(self, other: Self) -> None:
        """Takes in all that ``other``, begun alike, took in."""
        self._accumulator.merge(other._accumulator)

    def saved(self) -> Saved:
        """All that was taken in; ``restore`` on a fresh aggregate begun alike brings it back to the last bit."""
        return self._accumulator.saved()

    def restore(self, saved: Saved) -> None:
        """See ``saved``.

        Raises:
          KeyError, ValueError: it is of another rule or layout.
        """
        self._accumulator.restore(saved)

    def close(self, noisy_mean: NoisyMean | None = None) -> tuple[LoraAdapter, Carried]:
        """The next adapter, and what the server carries on.

        Args:
          noisy_mean: makes of the updates' sum what may be released of it; without, their mean is.

        Raises:
          ZeroDivisionError: nothing was added.
          FleetError: too few updates for the rule's condition.
        """
        mean = self._accumulator.result() if noisy_mean is None else noisy_mean(self._means().total())
        step, moments = self._config.optimizer.step(mean, self._carried.moments)
        adapter = self._adapter.plus(step)
        if self._config.kind.rebases:
            change = rebased(adapter)
            adapter, moments = change.adapter, moments.rebased(change.basis)
        return adapter, replace(self._carried, moments=moments)

    def _means(self) -> FamilyMeans:
        if not isinstance(self._accumulator, FamilyMeans):
            raise ConfigError(f"rule is {self._config.rule!r}, which needs every update, expected one that needs sums")
        return self._accumulator


def _check(name: str, value: object, holds: bool, expectation: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}, expected {expectation}")
