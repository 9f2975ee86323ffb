"""One request of Flower on its way through devices: who has a task, what has come in, the answer. It knows no gRPC.

A cohort is open until it has the answers it wants or its time is over. All that it knows is in the ledger, in the files
of its folder and in the spool, so that another process goes on where this one was killed:

    requests/N       the request, as Flower's bytes
    sums/N-M.npy     the running sum; the ledger names the one that counts
"""

import asyncio
import hashlib
import io
import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from ...common.content import content_bytes, from_content
from ...common.errors import ConfigError, FleetdraftError, UpdateRejected
from ...common.files import write_atomic
from ...common.fleet_wire import drafting_of, training_of
from ...common.messages import Evaluation, Update
from ...common.records import check_counters
from ...common.wire import fleet_pb2 as wire
from .ask import Ask
from .ledger import CohortEntry, Ledger, Outcome, Settled, TaskEntry
from .partial_sum import PartialSum
from .refusal import Refusal, never
from .spool import Spool

_log = logging.getLogger(__name__)

_PRIVATE = 0o600
#: Answers that are made durable at once; their uploads wait on disk, and are in memory one at a time.
_BATCH = 64
_AGAIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class CohortTable:
    """``[cohort]``: how many devices answer one request of Flower."""

    devices: int = 100
    """The cohort closes with so many answers."""
    over_selection: float = 0.3
    """Share of devices beyond that which are given the task, since some drop out."""
    min_devices: int = 10
    """With fewer at the deadline Flower gets no answer: a mean of few says much about each, and so do figures of a
    family of fewer."""
    task_s: float = 1800.0
    """So long a device's place is kept; then another one is given the task as well."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_devices <= self.devices:
            raise ConfigError(f"min_devices is {self.min_devices}, expected 1 to devices = {self.devices}")
        if not (math.isfinite(self.over_selection) and self.over_selection >= 0):
            raise ConfigError(f"over_selection is {self.over_selection:g}, expected a number >= 0")
        if not (math.isfinite(self.task_s) and self.task_s > 0):
            raise ConfigError(f"task_s is {self.task_s:g}, expected a number > 0")

    def given(self, wanted: int) -> int:
        """To how many devices a task is given at a time, where so many answers are wanted."""
        return math.ceil(round(wanted * (1 + self.over_selection), 9))


@dataclass(frozen=True)
class _Answer:
    """A device's answer that waits for its place in the sum."""

    task: TaskEntry
    head: wire.UploadHead | None
    report: wire.ReportRequest | None
    settled: "asyncio.Future[Settled]" = field(compare=False)


class Cohort:
    """The cohort of one request.

    Guarantees:
      - An answer is in the sum once or not at all, whatever is retried and whoever is killed; its device is told so
        only when it is on disk.
      - Memory does not grow with the number of devices.

    Args:
      clock: in seconds since 1970, since deadlines outlive the process; never backwards within one.
    """

    def __init__(
        self, entry: CohortEntry, ask: Ask, table: CohortTable, folder: Path, ledger: Ledger, spool: Spool,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.entry, self.ask = entry, ask
        self._table, self._folder, self._ledger, self._spool, self._clock = table, folder, ledger, spool, clock
        self._wanted = min(table.devices, ask.terms.devices)
        self._waiting: asyncio.Queue[_Answer | None] = asyncio.Queue()
        """Answers in the order they came; None to look up."""
        self._adding: Collection[str] = ()
        """Tasks whose answers are on their way into the sum: nothing else may become of them meanwhile."""
        self._ending = ""
        self._sum: PartialSum | None = None
        """As it is on disk; none: to be read from there."""
        self._sums = 0
        self._current()
        self.closed = asyncio.Event()
        self.failure = entry.failure
        if entry.closed is not None:
            self.closed.set()

    @property
    def accepted(self) -> int:
        """Answers in the sum."""
        return self._current().devices

    @property
    def given(self) -> int:
        """To how many devices the task is given at a time, those that may drop out included."""
        return self._table.given(self._wanted)

    @property
    def is_over(self) -> bool:
        """Whether its time is."""
        return self._clock() >= self.entry.closes

    def answer(self, client: str) -> Update | Evaluation:
        """What the gateway answers Flower, once closed.

        Raises:
          UpdateRejected: too few devices have answered, or Flower has asked for something else meanwhile.
        """
        if self.failure:
            raise UpdateRejected(self.failure)
        found = self._current()
        return found.update(client) if self.ask.trains else found.evaluation(client)

    def task_for(self, device: str, family: str) -> "TaskEntry | wire.ComeBack.Reason":
        """A device's task: the one it has, a new one, or why there is none."""
        now, had = self._clock(), self._ledger.task_of(device, self.entry.number)
        if had is not None and had.outcome not in (Outcome.OPEN, Outcome.DECLINED):
            return wire.ComeBack.DONE
        if self.closed.is_set() or self.is_over:
            return wire.ComeBack.NO_ROUND
        if had is not None and had.outcome == Outcome.OPEN:
            return had
        if self.accepted + self._ledger.at_work(self.entry.number, now) >= self.given:
            return wire.ComeBack.ROUND_FULL
        expires = min(now + self._table.task_s, self.entry.closes)
        return self._ledger.issue(self.entry.number, device, family, now, expires)

    def decline(self, device: str) -> None:
        """Takes the device's task back, if it has one whose answer is not being added up."""
        had = self._ledger.task_of(device, self.entry.number)
        if had is not None and had.outcome == Outcome.OPEN and had.id not in self._adding:
            self._spool.drop(had.id)
            self._ledger.set_outcome(had.id, Outcome.DECLINED)

    def told(self, task: TaskEntry) -> wire.Task:
        """A task as its device is told of it; its time is what is left of the cohort's: so long its answer counts."""
        return self.ask.for_device(task.id, self.entry.closes - self._clock())

    def check_head(self, head: wire.UploadHead) -> None:
        """Returns if an upload that begins so may be sound; nothing of it has been read yet.

        Raises:
          Refusal: it cannot be.
        """
        release = self.ask.release
        expected = {
            "base": release.base,
            "layout": release.adapter.layout.fingerprint,
            "release": release.adapter.digest,
            "content_bytes": content_bytes(self.ask.shapes),
        }
        for name, value in expected.items():
            if (given := getattr(head, name)) != value:
                raise never(f"{name} is {_short(given)}, expected {_short(value)}")
        if len(head.content_sha256) != 64 or not set(head.content_sha256) <= set("0123456789abcdef"):
            raise never("content_sha256 is no SHA-256 in 64 lower-case hexadecimal digits")
        if not (math.isfinite(head.weight) and head.weight > 0):
            raise never(f"weight is {head.weight:g}, expected a number > 0")
        _check_counters(head.drafting)
        _check_counters(head.training)

    async def take(
        self, task: TaskEntry, *, head: wire.UploadHead | None = None, report: wire.ReportRequest | None = None
    ) -> Settled:
        """Takes in an answer that has come whole; returns once what came of it is on disk.

        Args:
          head: of an update, whose content is in the spool.
          report: an evaluation.

        Raises:
          Refusal: the content is not that of the head, or nothing could be written; the task stays as it is.
        """
        if self.closed.is_set():
            return self._ledger.late(task.id)
        settled: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(_Answer(task, head, report, settled))
        return await settled

    async def run(self) -> None:
        """Takes in answers until the cohort closes; what came whole before a kill first."""
        for task in self._ledger.uploading(self.entry.number):
            head = wire.UploadHead.FromString(task.head or b"")
            if self._spool.received(task.id) == head.content_bytes:
                self._waiting.put_nowait(_Answer(task, head, None, asyncio.get_running_loop().create_future()))
        while not self.closed.is_set():
            await self._settle(await self._next())
            try:
                if self._ending or self.accepted >= self._wanted or self.is_over:
                    self._close(self._ending)
            except Exception:  # a full disk, for one: as long as the cohort cannot be closed it stays open
                _log.exception("the cohort could not be closed")
                await asyncio.sleep(_AGAIN_S)
        self._turn_away(self._drained())

    def end(self, reason: str) -> None:
        """Has the cohort close without an answer, soon."""
        self._ending = reason
        self._waiting.put_nowait(None)

    def _close(self, failure: str) -> None:
        """Ends the cohort, for ``failure`` or because it has what it wants or its time is over."""
        if not failure and self.accepted < self._table.min_devices:
            failure = (
                f"{self.accepted} devices have answered, expected at least min_devices = {self._table.min_devices}"
            )
        self._ledger.close(self.entry.number, self._clock(), failure)
        self.failure = failure
        self._spool.keep_only(())
        self.closed.set()

    async def _next(self) -> Sequence[_Answer]:
        """The answers that wait, at most until the cohort's time is over."""
        try:
            async with asyncio.timeout(max(0.0, self.entry.closes - self._clock())):
                first = await self._waiting.get()
        except TimeoutError:
            return []
        return [*([first] if first else []), *self._drained(_BATCH - 1)]

    def _drained(self, most: int | None = None) -> list[_Answer]:
        count = self._waiting.qsize() if most is None else min(most, self._waiting.qsize())
        return [answer for answer in (self._waiting.get_nowait() for _ in range(count)) if answer]

    async def _settle(self, batch: Sequence[_Answer]) -> None:
        """Adds answers up, writes the sum, and only then says what came of them."""
        results: dict[str, Settled | Refusal] = {}
        try:
            results = await self._added_up(batch)
        except Exception as error:
            _log.exception("answers could not be kept")
            self._sum = None  # it may hold what is not written, and the written one is what counts
            refusal = Refusal(grpc.StatusCode.UNAVAILABLE, f"the answer could not be kept ({type(error).__name__})")
            results = {answer.task.id: refusal for answer in batch}
        for answer in batch:
            result = results[answer.task.id]
            if isinstance(result, Settled) or result.status == grpc.StatusCode.INVALID_ARGUMENT:
                self._spool.drop(answer.task.id)
            _tell(answer, result)

    async def _added_up(self, batch: Sequence[_Answer]) -> dict[str, Settled | Refusal]:
        """What came of each answer, by task; on disk, but for those that are refused."""
        # A device that was cut off sends again while its first try still waits here: one of the two counts.
        answers = {answer.task.id: answer for answer in batch}
        results: dict[str, Settled | Refusal] = {
            name: self._ledger.settled(name) for name in answers if not self._ledger.awaits(name)
        }
        running = self._current()
        fresh = [answer for name, answer in answers.items() if name not in results]
        self._adding = {answer.task.id for answer in fresh}
        try:
            added = await asyncio.to_thread(lambda: {a.task.id: self._added(a, running) for a in fresh})
            settled = [result for result in added.values() if isinstance(result, Settled)]
            if settled:
                about, sums = await asyncio.to_thread(self._write, running)
                self._ledger.settle(self.entry.number, settled, about, sums)
                self._forget_sums(sums)
        finally:
            self._adding = ()
        return results | added

    def _added(self, answer: _Answer, running: PartialSum) -> Settled | Refusal:
        """What came of an answer, which is in the sum if it is accepted."""
        name = answer.task.id
        if running.devices >= self._wanted:
            return Settled(task=name, outcome=Outcome.LATE)
        try:
            if answer.head is not None:
                running.take(self._update(answer.task, answer.head))
            elif answer.report is not None:
                running.measure(_evaluation(answer.task, answer.report))
        except Refusal as refusal:
            return refusal
        except UpdateRejected as error:
            return Settled(task=name, outcome=Outcome.REJECTED, reason=str(error))
        return Settled(task=name, outcome=Outcome.ACCEPTED)

    def _update(self, task: TaskEntry, head: wire.UploadHead) -> Update:
        data = self._spool.read(task.id)
        if hashlib.sha256(data).hexdigest() != head.content_sha256:
            raise never("the content does not match content_sha256; send it again from the beginning")
        return Update(
            client=task.device,
            family=task.family,
            base=head.base,
            layout=head.layout,
            release=head.release,
            delta=from_content(data, self.ask.shapes),
            weight=head.weight,
            counters=drafting_of(head.drafting),
            training=training_of(head.training),
        )

    def _write(self, running: PartialSum) -> tuple[str, str]:
        """Writes the sum's arrays; returns the rest of it, and the file's name."""
        about, sums = running.saved()
        if sums is None:
            return about, ""
        self._sums += 1
        place, data = f"{self.entry.number}-{self._sums}.npy", io.BytesIO()
        np.save(data, sums)
        write_atomic(self._folder / "sums" / place, data.getvalue(), _PRIVATE)
        return about, place

    def _current(self) -> PartialSum:
        """The sum, read anew where that in memory was given up."""
        if self._sum is None:
            entry = self._ledger.newest()
            if entry is None or entry.number != self.entry.number:
                entry = self.entry
            found = PartialSum(self.ask, self._table.min_devices)
            self._forget_sums(entry.sums)
            if entry.about:
                found.restore(entry.about, np.load(self._folder / "sums" / entry.sums) if entry.sums else None)
            self._sum, self._sums = found, int(Path(entry.sums).stem.partition("-")[2] or 0)
        return self._sum

    def _forget_sums(self, keep: str) -> None:
        folder = self._folder / "sums"
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name != keep:
                path.unlink()

    def _turn_away(self, answers: Sequence[_Answer]) -> None:
        """Tells those that waited when the cohort closed."""
        for answer in answers:
            _tell(answer, self._ledger.late(answer.task.id))


def _tell(answer: _Answer, result: Settled | Refusal) -> None:
    if answer.settled.cancelled():
        return
    if isinstance(result, Settled):
        answer.settled.set_result(result)
    else:
        answer.settled.set_exception(result)
        answer.settled.exception()  # after a restart nobody waits for it


def _evaluation(task: TaskEntry, report: wire.ReportRequest) -> Evaluation:
    return Evaluation(client=task.device, family=task.family, counters=drafting_of(report.drafting))


def _check_counters(counters: wire.DraftCounters | wire.TrainCounters) -> None:
    """Counters that cannot spoil a sum."""
    try:
        if isinstance(counters, wire.DraftCounters):
            check_drafting(counters)
        else:
            check_counters(training_of(counters))
    except FleetdraftError as error:
        raise never(str(error)) from error


def check_drafting(counters: wire.DraftCounters) -> None:
    """Returns if the counters are possible.

    Raises:
      UpdateRejected: a field is out of range, or they contradict each other.
    """
    drafting = drafting_of(counters)
    check_counters(drafting)
    if contradiction := drafting.contradiction:
        raise UpdateRejected(f"counter {contradiction}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"
