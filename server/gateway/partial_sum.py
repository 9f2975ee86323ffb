"""The devices' answers to one request on their way to one mean, in constant memory. It knows no connection.

Guarantees:
  - The order in which answers come, and a restart in between, change no bit of the mean.
  - Nothing is kept of a single answer.
"""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import Reason, UpdateRejected
from ...common.messages import Cohort, Evaluation, TrainCounters, TrainTask, Update
from ...common.metrics import DraftCounters
from ...common.records import MAX_FAMILIES
from ..aggregation.aggregate import MAX_WEIGHT
from ..aggregation.mean import WeightedMean
from ..aggregation.rules import WEIGHTS
from ..counted import counted
from ..gate import Gate
from .ask import Ask

#: What a gateway says of its own family: figures are those of its devices' families.
GATEWAY_FAMILY = "gateway"
#: The family of devices whose own has too few.
OTHER = "other"


class PartialSum:
    """The sum of a cohort's answers to ``ask``.

    Args:
      min_devices: figures of a family are told of so many devices at least; those of smaller ones as of ``OTHER``.
    """

    def __init__(self, ask: Ask, min_devices: int) -> None:
        self._ask, self._min_devices = ask, min_devices
        self._mean: WeightedMean | None = None
        if isinstance(ask.task, TrainTask):
            self._mean = WeightedMean(ask.shapes)
            self._gate = Gate(factors=ask.task.factors, clip_norm=ask.task.clip_norm)
        self.devices = 0
        self._families: dict[str, DraftCounters] = {}
        self._members = Counter[str]()
        """Devices of each family."""
        self._training = TrainCounters()

    def take(self, update: Update) -> None:
        """Adds an update.

        Raises:
          UpdateRejected: the gate does not let it in; nothing has changed.
        """
        if self._mean is None:
            raise UpdateRejected("an update, expected an evaluation")
        self._gate.check(update, self._ask.release)
        weight = WEIGHTS[self._ask.terms.weights](update)
        if not 0 < weight <= MAX_WEIGHT:
            expectation = f"expected 0 < weight <= {MAX_WEIGHT:g}"
            raise UpdateRejected(f"weight by {self._ask.terms.weights} is {weight:g}, {expectation}", Reason.WEIGHT)
        self._check_family(update.family)
        self._mean.add(update.delta, weight)
        self._training += update.training
        self._count(update.family, update.counters)

    def measure(self, evaluation: Evaluation) -> None:
        """Adds an evaluation.

        Raises:
          UpdateRejected: of a family too many.
        """
        self._check_family(evaluation.family)
        self._count(evaluation.family, evaluation.counters)

    def update(self, client: str) -> Update:
        """The mean, as the gateway ``client`` answers Flower.

        Raises:
          ZeroDivisionError: of nothing.
        """
        if self._mean is None:
            raise ZeroDivisionError("mean of evaluations")
        return Update(
            client=client,
            family=GATEWAY_FAMILY,
            base=self._ask.release.base,
            layout=self._ask.release.adapter.layout.fingerprint,
            release=self._ask.release.adapter.digest,
            delta=self._mean.result(),
            weight=float(self._mean.weight),
            counters=self._cohort().counters,
            training=self._training,
            cohort=self._cohort(),
        )

    def evaluation(self, client: str) -> Evaluation:
        """The sum of the evaluations, likewise."""
        cohort = self._cohort()
        return Evaluation(client=client, family=GATEWAY_FAMILY, counters=cohort.counters, cohort=cohort)

    def saved(self) -> tuple[str, NDArray[np.float64] | None]:
        """Everything as JSON, but for the arrays (2, size); ``restore`` on an empty sum brings it back bit by bit."""
        about, sums = self._mean.saved() if self._mean is not None else ({}, None)
        counters = {family: asdict(counters) for family, counters in self._families.items()}
        value = {"devices": self.devices, "families": counters, "members": self._members}
        return json.dumps({**value, "training": asdict(self._training), "mean": about}), sums

    def restore(self, about: str, sums: NDArray[Any] | None) -> None:
        """See ``saved``.

        Raises:
          KeyError, TypeError, ValueError: it is of another request.
        """
        value = json.loads(about)
        if self._mean is not None and sums is not None:
            self._mean.restore(value["mean"], sums)
        self.devices = value["devices"]
        self._families = {family: DraftCounters(**counters) for family, counters in value["families"].items()}
        self._members = Counter(value["members"])
        self._training = TrainCounters(**value["training"])

    def _check_family(self, family: str) -> None:
        """A family is a device's own word, so that there must not be as many as devices."""
        if family not in self._families and len(self._families) >= MAX_FAMILIES:
            raise UpdateRejected(f"family {family!r} is one more than {MAX_FAMILIES}")

    def _count(self, family: str, counters: DraftCounters) -> None:
        self.devices += 1
        self._members[family] += 1
        self._families[family] = self._families.get(family, DraftCounters()) + counted(counters)

    def _cohort(self) -> Cohort:
        """As it is told: no figures are of fewer than ``min_devices``, be it that nothing is told of a few."""
        told, members = dict[str, DraftCounters](), Counter[str]()
        for family, counters in sorted(self._families.items()):
            name = family if self._members[family] >= self._min_devices else OTHER
            told[name] = told.get(name, DraftCounters()) + counters
            members[name] += self._members[family]
        if members[OTHER] < self._min_devices:
            told.pop(OTHER, None)
        return Cohort(devices=self.devices, families=told)
