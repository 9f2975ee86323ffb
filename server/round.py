"""One round in progress: who was let in, who was left out and why, and the running aggregate. It knows no transport."""

import time
from collections.abc import Callable
from typing import TypeVar

from ..common.messages import Evaluation, Release, TrainCounters, Update
from ..common.metrics import DraftCounters
from .aggregation.rules import Accumulator
from .gate import Gate
from .registry import Registry
from .report import RoundReport

T = TypeVar("T")


class Round:
    """Takes answers in any order and keeps sums only, never an update.

    Args:
      number: from 1.
      release: that the round starts from.
      participants: clients that are asked.
      weigh: weight of an update in the aggregate.
      clock: in seconds, for the report.
    """

    def __init__(
        self,
        *,
        number: int,
        release: Release,
        participants: tuple[str, ...],
        gate: Gate,
        aggregate: Accumulator,
        weigh: Callable[[Update], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = number
        self.release = release
        self._participants = participants
        self._gate = gate
        self._aggregate = aggregate
        self._weigh = weigh
        self._clock = clock
        self._started = clock()
        self._bytes_up = 0
        self._bytes_down = 0
        self._accepted: list[str] = []
        self._excluded: dict[str, str] = {}
        self._families: dict[str, DraftCounters] = {}
        self._training = TrainCounters()
        self._released = False
        self._evaluation: dict[str, DraftCounters] = {}
        self._unmeasured: dict[str, str] = {}

    def sent(self, size_bytes: int) -> None:
        """Counts tensor bytes on their way to devices."""
        self._bytes_down += size_bytes

    def received(self, size_bytes: int) -> None:
        """Counts tensor bytes that came from a device, whatever becomes of them."""
        self._bytes_up += size_bytes

    def take(self, update: Update) -> None:
        """Adds an update to the aggregate.

        Raises:
          UpdateRejected: the gate does not let it in; nothing has changed.
        """
        self._gate.check(update, self.release)
        self._aggregate.add(update.delta, self._weigh(update))
        self._accepted.append(update.client)
        self._families[update.family] = self._families.get(update.family, DraftCounters()) + update.counters
        self._training += update.training

    def exclude(self, client: str, reason: str) -> None:
        """Notes that a client's update does not count."""
        self._excluded[client] = reason

    def publish(self, registry: Registry, rule: str, min_updates: int) -> None:
        """Writes the new release, unless too few updates were valid."""
        if len(self._accepted) < min_updates:
            return
        self.release = registry.write(
            self.release.adapter.plus(self._aggregate.result()),
            round=self.number,
            rule=rule,
            participants=tuple(sorted(self._accepted)),
            rejected=_sorted(self._excluded),
            families=_sorted(self._families),
        )
        self._released = True

    def measure(self, evaluation: Evaluation) -> None:
        """Adds what a device measured with the new release."""
        family = evaluation.family
        self._evaluation[family] = self._evaluation.get(family, DraftCounters()) + evaluation.counters

    def miss(self, client: str, reason: str) -> None:
        """Notes that a client gave no figures."""
        self._unmeasured[client] = reason

    def report(self) -> RoundReport:
        """What became of the round up to now."""
        return RoundReport(
            round=self.number,
            participants=self._participants,
            accepted=tuple(sorted(self._accepted)),
            excluded=_sorted(self._excluded),
            release=self.release.number,
            digest=self.release.adapter.digest,
            released=self._released,
            seconds=self._clock() - self._started,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            families=_sorted(self._families),
            training=self._training,
            evaluation=_sorted(self._evaluation),
            unmeasured=_sorted(self._unmeasured),
        )


def _sorted(table: dict[str, T]) -> dict[str, T]:
    """By name, so that a report does not depend on the order of arrival."""
    return dict(sorted(table.items()))
