"""One round in progress: who was let in, who was left out and why, and the running aggregate. It knows no transport."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..common.errors import Reason, UpdateRejected
from ..common.messages import Evaluation, Release, TrainCounters, Update
from ..common.metrics import DraftCounters
from .aggregation.aggregate import Aggregate, NoisyMean
from .aggregation.saved import Saved
from .counted import counted
from .gate import Gate
from .privacy.report import PrivacyReport, SecureReport
from .registry.canary import CanaryConfig
from .registry.registry import Registry
from .report import RoundReport

T = TypeVar("T")


class Round:
    """Takes answers in any order; what it keeps of an update is the aggregate's business.

    Args:
      number: from 1.
      release: that the round starts from.
      wanted: with so many valid updates it is full; none: with all that were asked.
      repeats: whether a client may contribute more than once.
      in_force: whether the release is the promoted one.
      clock: in seconds, for the report.
    """

    def __init__(
        self,
        *,
        number: int,
        release: Release,
        gate: Gate,
        aggregate: Aggregate,
        wanted: int | None = None,
        repeats: bool = False,
        in_force: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = number
        self.release = release
        self.in_force = in_force
        self._aggregate = aggregate
        self._saved: Saved | None = None
        self._gate = gate
        self._wanted = wanted
        self._repeats = repeats
        self._clock = clock
        self._started = clock()
        self._participants: list[str] = []
        self._accepted: list[str] = []
        self._excluded: dict[str, UpdateRejected] = {}
        self._counts = Counter[Reason]()
        self._devices = 0
        self._stale = 0
        self._retried = 0
        self._bytes_up = 0
        self._bytes_down = 0
        self._families: dict[str, DraftCounters] = {}
        self._training = TrainCounters()
        self._released = False
        self._evaluation: dict[str, DraftCounters] = {}
        self._evaluated: list[str] = []
        self._unmeasured: dict[str, str] = {}
        self.privacy: PrivacyReport | None = None
        """What has been spent, this round included."""
        self.secure: SecureReport | None = None
        """What became of secure aggregation."""

    def restore(self, report: RoundReport, aggregate: Saved | None) -> None:
        """Goes on where another process was, before anything else is done with it.

        Args:
          report: of the round up to then.
          aggregate: its running aggregate; none once its release was written.

        Raises:
          KeyError, ValueError: the aggregate is of another rule or layout.
        """
        if aggregate is not None:
            self._aggregate.restore(aggregate)
        self._started -= report.seconds
        self._participants, self._accepted = list(report.participants), list(report.accepted)
        self._excluded = {
            client: UpdateRejected(reason, report.codes[client]) for client, reason in report.excluded.items()
        }
        self._counts = Counter({Reason(code): count for code, count in report.counts.items()})
        self._devices = report.devices
        self._stale, self._retried = report.stale, report.retried
        self._bytes_up, self._bytes_down = report.bytes_up, report.bytes_down
        self._families, self._training = dict(report.families), report.training
        self._evaluation, self._evaluated = dict(report.evaluation), list(report.evaluated)
        self._unmeasured = dict(report.unmeasured)
        self.privacy, self.secure = report.privacy, report.secure

    def saved(self) -> Saved:
        """The running aggregate, for ``restore``; the same object as long as nothing is taken in."""
        if self._saved is None:
            self._saved = self._aggregate.saved()
        return self._saved

    @property
    def is_full(self) -> bool:
        """Whether it needs no more updates."""
        return self._wanted is not None and len(self._accepted) >= self._wanted

    @property
    def waiting(self) -> list[str]:
        """Clients that were asked and have not been heard of, in alphabetical order."""
        return sorted({*self._participants} - {*self._accepted, *self._excluded})

    @property
    def measured(self) -> set[str]:
        """Clients that have been asked for figures, with success or without."""
        return {*self._evaluated, *self._unmeasured}

    def asked(self, client: str, size_bytes: int) -> None:
        """Notes a request for an update: who got it, and the tensor bytes on their way."""
        if client not in self._participants:
            self._participants.append(client)
        self._bytes_down += size_bytes

    def sent(self, size_bytes: int) -> None:
        """Counts tensor bytes on their way to devices beside requests for updates."""
        self._bytes_down += size_bytes

    def received(self, size_bytes: int) -> None:
        """Counts tensor bytes that came from a device, whatever becomes of them."""
        self._bytes_up += size_bytes

    def retried(self, count: int) -> None:
        """Counts requests that were sent again."""
        self._retried += count

    def take(self, update: Update) -> None:
        """Adds an update to the aggregate.

        Raises:
          UpdateRejected: the gate does not let it in, or its client has one in it; nothing has changed.
        """
        if not self._repeats and update.client in self._accepted:
            raise UpdateRejected("an update of this client is in the round already", Reason.DUPLICATE)
        self._gate.check(update, self.release)
        behind = self._gate.behind.get(update.release, 0)
        self._aggregate.add(update, discount=(1 + behind) ** -0.5)
        self._saved = None
        self._accepted.append(update.client)
        self._excluded.pop(update.client, None)
        self._stale += behind > 0
        self._devices += update.devices
        _add(self._families, update.families)
        self._training += update.training

    def take_sum(self, total: Mapping[str, NDArray[np.float64]], clients: tuple[str, ...]) -> None:
        """Adds the sum of some clients' updates, each of weight 1, of which no single one is known."""
        self._aggregate.add_sum(total, float(len(clients)), family="")
        self._saved = None
        self._accepted.extend(clients)
        self._devices += len(clients)

    def exclude(self, client: str, reason: UpdateRejected) -> None:
        """Counts an answer that does not count; whose update is in the round already stays in."""
        self._counts[reason.code] += 1
        if client not in self._accepted:
            self._excluded[client] = reason

    def publish(
        self,
        registry: Registry,
        rule: str,
        min_updates: int,
        noisy_mean: NoisyMean | None = None,
        privacy: Mapping[str, Any] | None = None,
    ) -> bool:
        """Writes the new release with what the server carries on, unless too few updates were valid.

        Args:
          noisy_mean: see ``Aggregate.close``.
          privacy: what the run has spent with this release, for its metadata.

        Returns:
          whether there is a new release.
        """
        if len(self._accepted) < min_updates:
            return False
        adapter, carried = self._aggregate.close(noisy_mean)
        report = self.report()
        release = registry.write(
            adapter,
            round=self.number,
            rule=rule,
            participants=report.accepted,
            rejected=report.excluded,
            families=report.families,
            carried=carried.to_bytes(),
            privacy=privacy,
        )
        self.published(release)
        return True

    def published(self, release: Release) -> None:
        """Notes the release that this round made."""
        self.release = release
        self._released = True

    def measure(self, evaluation: Evaluation) -> None:
        """Adds what a device measured with the new release: no device's own word outweighs those of many others."""
        families = evaluation.families
        _add(self._evaluation, families if evaluation.cohort else {f: counted(c) for f, c in families.items()})
        self._evaluated.append(evaluation.client)

    def miss(self, client: str, reason: UpdateRejected) -> None:
        """Notes that a client gave no figures."""
        if client not in self._evaluated:
            self._unmeasured[client] = str(reason)

    def judge(self, registry: Registry, canary: CanaryConfig) -> None:
        """Has the registry promote or block the release by what was measured, if anything was."""
        if self._evaluation and registry.evaluated(_sorted(self._evaluation), canary).is_blocked:
            self.release = registry.head()

    def report(self) -> RoundReport:
        """What became of the round up to now."""
        return RoundReport(
            round=self.number,
            participants=tuple(sorted(self._participants)),
            accepted=tuple(sorted(self._accepted)),
            excluded=_sorted({client: str(reason) for client, reason in self._excluded.items()}),
            codes=_sorted({client: reason.code for client, reason in self._excluded.items()}),
            counts=_sorted({code.value: count for code, count in self._counts.items()}),
            devices=self._devices,
            stale=self._stale,
            retried=self._retried,
            release=self.release.number,
            digest=self.release.adapter.digest,
            released=self._released,
            seconds=self._clock() - self._started,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            families=_sorted(self._families),
            training=self._training,
            evaluation=_sorted(self._evaluation),
            evaluated=tuple(sorted(self._evaluated)),
            unmeasured=_sorted(self._unmeasured),
            privacy=self.privacy,
            secure=self.secure,
        )


def _add(table: dict[str, DraftCounters], families: Mapping[str, DraftCounters]) -> None:
    for family, counters in families.items():
        table[family] = table.get(family, DraftCounters()) + counters


def _sorted(table: Mapping[str, T]) -> dict[str, T]:
    """By name, so that a report does not depend on the order of arrival."""
    return dict(sorted(table.items()))
