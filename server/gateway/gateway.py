"""The gateway: what devices ask and what Flower asks, brought together. It knows no connection."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import grpc
from google.protobuf.message import DecodeError

from ...common.content import digest
from ...common.errors import UpdateRejected
from ...common.files import write_atomic
from ...common.fleet_wire import CHUNK_BYTES, PROTOCOL, release_content, release_head
from ...common.messages import Evaluation, Release, Update
from ...common.wire import fleet_pb2 as wire
from .ask import Ask, records_of
from .cohort import Cohort, CohortTable, check_drafting
from .ledger import CohortEntry, Ledger, Outcome, Settled, TaskEntry
from .limits import Limits, LimitsTable
from .pace import PaceTable
from .refusal import Refusal, never
from .spool import Spool
from .tokens import Tokens
from .uploads import Read, Uploads

_log = logging.getLogger(__name__)

_PRIVATE = 0o600
#: Of the time that Flower gives, so much is left for the answer's own way, but not more than so many seconds.
_MARGIN, _MOST_MARGIN_S = 0.1, 30.0
#: Counting the devices takes a look at every one, so it is done so often.
_COUNT_EVERY_S = 5.0
_MAX_NAME = 64
#: What reading a file may raise that is gone, cut off or of another version.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, UpdateRejected)

_OUTCOMES = {
    Outcome.ACCEPTED: wire.UploadReply.ACCEPTED,
    Outcome.REJECTED: wire.UploadReply.REJECTED,
    Outcome.LATE: wire.UploadReply.LATE,
    Outcome.DROPPED: wire.UploadReply.LATE,
    Outcome.DECLINED: wire.UploadReply.LATE,
}

OnClosed = Callable[[Cohort], None]


@dataclass(frozen=True)
class Served:
    """A release that devices may fetch."""

    head: wire.ReleaseHead
    content: bytes

    @classmethod
    def of(cls, release: Release) -> "Served":
        return cls(release_head(release), release_content(release))


class Gateway:
    """One gateway; all of it belongs to one event loop.

    Args:
      name: the gateway's in the fleet.
      folder: its own; see ``folder.py``.
      clock: in seconds since 1970.
      chance: uniform in [0, 1), for the jitter.
      on_closed: told of each cohort that has closed.
    """

    def __init__(
        self,
        *,
        name: str,
        folder: Path,
        ledger: Ledger,
        tokens: Tokens,
        cohort: CohortTable,
        pace: PaceTable,
        limits: LimitsTable,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        chance: Callable[[], float],
        on_closed: OnClosed = lambda cohort: None,
    ) -> None:
        self._name, self._folder, self._ledger, self._tokens = name, folder, ledger, tokens
        self._table, self._pace, self._limits_table = cohort, pace, limits
        self._clock, self._monotonic, self._chance, self._on_closed = clock, monotonic, chance, on_closed
        self.limits = Limits(limits, monotonic)
        self._spool = Spool(folder / "spool", limits.spool_bytes)
        self._uploads = Uploads(self._spool, ledger, self.limits, limits)
        self._known, self._counted_at = 0, -_COUNT_EVERY_S
        self._running: asyncio.Task[None] | None = None
        self._beginning = asyncio.Lock()
        self.cohort: Cohort | None = None
        self._current: Served | None = None
        """What the cohort starts from."""
        self.promoted: Served | None = None
        self.told = Counter[str]()
        """Why devices were told to come back, since this process began."""
        self.refused = Counter[str]()
        """Calls that were refused, by status, since this process began."""

    def resume(self) -> None:
        """Goes on with the cohort that a process before this one had open."""
        self.promoted = self._read_promoted()
        entry = self._ledger.newest()
        if entry is None:
            return
        try:
            ask = Ask.read(entry.kind, records_of((self._folder / "requests" / entry.request).read_bytes()))
            self._spool.keep_only(task.id for task in self._ledger.uploading(entry.number))
            self._start(entry, ask)
        except _DAMAGED as error:  # Flower asks again for what it still wants
            _log.warning("cohort %d cannot go on, its request or sum cannot be read: %s", entry.number, error)
            self._ledger.close(entry.number, self._clock(), f"its request or sum cannot be read any more: {error}")

    async def stop(self) -> None:
        """Leaves the cohort as it is on disk; a process after this one goes on."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def ask(self, kind: str, request: bytes) -> Update | Evaluation:
        """What Flower asks: has devices answer, and returns their mean or sum.

        The same request, asked again while its time lasts, is the same cohort, also after a restart.

        Raises:
          UpdateRejected: with the reason why there is no answer.
        """
        ask = Ask.read(kind, records_of(request))
        async with self._beginning:
            cohort = self.cohort
            if cohort is None or cohort.ask.key != ask.key or cohort.is_over:
                cohort = await self._begin(ask, request)
        await cohort.closed.wait()
        return cohort.answer(self._name)

    async def first(self, read: Read) -> Any:
        """The first message of a call.

        Raises:
          Refusal: there is none, or not in time.
        """
        try:
            async with asyncio.timeout(self._limits_table.head_s):
                first = await read()
        except TimeoutError as error:
            message = f"no message within {self._limits_table.head_s:g} s"
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, message) from error
        if first is None:
            raise never("the call ended without a message")
        return first

    def check_in(self, device: str, request: wire.CheckInRequest) -> wire.CheckInReply:
        """A task, or when to come back."""
        self._check_request(request)
        self._tokens.saw(device, request.family, request.app_version)
        reply = wire.CheckInReply(promoted=self.promoted.head if self.promoted else None)
        found = self._task_for(device, request)
        if isinstance(found, TaskEntry) and self.cohort is not None:
            reply.task.CopyFrom(self.cohort.told(found))
        elif not isinstance(found, TaskEntry):
            self.told[wire.ComeBack.Reason.Name(found)] += 1
            reply.come_back.CopyFrom(wire.ComeBack(after_s=self._come_back_s(), reason=found))
        return reply

    async def fetch(
        self, device: str, request: wire.FetchReleaseRequest, write: Callable[[wire.ReleaseChunk], Awaitable[None]]
    ) -> None:
        """Writes a release's content from a byte on."""
        served = self._served(request.digest)
        if request.offset > len(served.content):
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"offset is {request.offset} of {len(served.content)} bytes")
        try:
            async with asyncio.timeout(self._limits_table.upload_s):
                for at in range(request.offset, len(served.content), CHUNK_BYTES):
                    data = served.content[at : at + CHUNK_BYTES]
                    self.limits.transfer(device, len(data))
                    await write(wire.ReleaseChunk(offset=at, data=data))
        except TimeoutError as error:
            message = f"not read within {self._limits_table.upload_s:g} s; go on where it stopped"
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, message) from error

    def upload_state(self, device: str, request: wire.UploadStateRequest) -> wire.UploadStateReply:
        """How much of an upload is there."""
        task = self._task(request.task_id, device)
        if task.outcome != Outcome.OPEN:
            return wire.UploadStateReply(done=True)
        received = self._spool.received(task.id) if task.holds(request.content_sha256) else 0
        return wire.UploadStateReply(received=received)

    async def upload(self, device: str, read: Read) -> wire.UploadReply:
        """Takes in an update; the head is judged before anything else is read."""
        first = await self.first(read)
        if not first.HasField("head"):
            raise never("the first message of an upload has no head")
        head = first.head
        task = self._task(head.task_id, device)
        cohort = self._cohort_of(task, trains=True)
        if cohort is None:
            return _reply(self._ledger.late(task.id))
        if task.outcome != Outcome.OPEN:
            return _reply(task.settled)
        cohort.check_head(head)
        await self._uploads.receive(task, first, read)
        return _reply(await cohort.take(task, head=head))

    async def report(self, device: str, request: wire.ReportRequest) -> wire.ReportReply:
        """Takes in an evaluation."""
        task = self._task(request.task_id, device)
        cohort = self._cohort_of(task, trains=False)
        if cohort is None:
            reply = _reply(self._ledger.late(task.id))
        elif task.outcome != Outcome.OPEN:
            reply = _reply(task.settled)
        else:
            try:
                check_drafting(request.drafting)
            except UpdateRejected as error:
                raise never(str(error)) from error
            reply = _reply(await cohort.take(task, report=request))
        return wire.ReportReply(outcome=reply.outcome, reason=reply.reason)

    def promote(self, release: Release) -> None:
        """Has devices draft with a release from now on."""
        if self.promoted is None or self.promoted.head.digest != release.adapter.digest:
            self.promoted = Served.of(release)
            write_atomic(self._folder / "promoted.content", self.promoted.content, _PRIVATE)
            write_atomic(self._folder / "promoted.head", self.promoted.head.SerializeToString(), _PRIVATE)

    @property
    def spooled_bytes(self) -> int:
        """What all open uploads come to."""
        return self._spool.size_bytes

    def known(self) -> int:
        """Devices that checked in lately."""
        now = self._monotonic()
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._known, self._counted_at = self._tokens.seen_within(self._pace.most_s), now
        return self._known

    async def _begin(self, ask: Ask, request: bytes) -> Cohort:
        """Opens a cohort; one that is under way ends, since Flower awaits its answer no more."""
        if self.cohort is not None and self._running is not None:
            self.cohort.end("the server has asked for something else")
            await asyncio.wait([self._running])
        now, name = self._clock(), digest(request)
        write_atomic(self._folder / "requests" / name, request, _PRIVATE)
        closes = now + ask.task.timeout_s - min(_MOST_MARGIN_S, _MARGIN * ask.task.timeout_s)
        entry = self._ledger.begin(key=ask.key, kind=ask.kind, request=name, opened=now, closes=closes, about="")
        for path in (self._folder / "requests").iterdir():
            if path.name != name:
                path.unlink()
        if ask.terms.in_force:
            self.promote(ask.release)
        return self._start(entry, ask)

    def _start(self, entry: CohortEntry, ask: Ask) -> Cohort:
        # From here on by the clock that nobody sets: if somebody sets the other, no deadline moves.
        ahead = max(entry.opened, self._clock()) - self._monotonic()

        def clock() -> float:
            return ahead + self._monotonic()

        self.cohort = cohort = Cohort(entry, ask, self._table, self._folder, self._ledger, self._spool, clock)
        self._current = Served(ask.head, ask.content)
        self._running = asyncio.create_task(self._run(cohort))
        return cohort

    async def _run(self, cohort: Cohort) -> None:
        was_closed = cohort.closed.is_set()
        await cohort.run()
        try:
            if not was_closed:
                self._on_closed(cohort)
        except Exception:  # a full disk, for one: what was counted is in the ledger all the same
            _log.exception("the cohort's end could not be noted")

    def _task_for(self, device: str, request: wire.CheckInRequest) -> "TaskEntry | wire.ComeBack.Reason":
        cohort = self.cohort
        if not request.eligible:
            if cohort is not None:
                cohort.decline(device)
            return wire.ComeBack.NOT_ELIGIBLE
        if cohort is None or cohort.closed.is_set():
            return wire.ComeBack.NO_ROUND
        if request.base != cohort.ask.release.base:
            return wire.ComeBack.WRONG_BASE
        return cohort.task_for(device, request.family)

    def _come_back_s(self) -> float:
        needed = self.cohort.given if self.cohort is not None else self._table.given(self._table.devices)
        return self._pace.come_back_s(self.known(), needed, self._chance())

    def _served(self, name: str) -> Served:
        for served in (self.promoted, self._current):
            if served is not None and served.head.digest == name:
                return served
        raise Refusal(grpc.StatusCode.NOT_FOUND, "no such release here; check in again")

    def _task(self, name: str, device: str) -> TaskEntry:
        task = self._ledger.task(name, device) if len(name) <= _MAX_NAME else None
        if task is None or task.outcome == Outcome.DECLINED:  # it was taken back: no answer to it is awaited
            raise Refusal(grpc.StatusCode.NOT_FOUND, "this device has no such task; check in again")
        return task

    def _cohort_of(self, task: TaskEntry, *, trains: bool) -> Cohort | None:
        """The cohort that awaits an answer of this kind to a task; none, once it is closed."""
        cohort = self.cohort
        if cohort is None or cohort.entry.number != task.cohort:
            return None
        if cohort.ask.trains != trains:
            raise never(f"the task is to {'train' if cohort.ask.trains else 'evaluate'}; answer in the other way")
        return None if cohort.closed.is_set() and task.outcome in (Outcome.OPEN, Outcome.DROPPED) else cohort

    def _read_promoted(self) -> Served | None:
        path = self._folder / "promoted.head"
        if not path.exists():
            return None
        try:
            head, content = wire.ReleaseHead.FromString(path.read_bytes()), path.with_suffix(".content").read_bytes()
        except (OSError, DecodeError) as error:
            _log.warning("what is promoted cannot be read, devices are told with the next request: %s", error)
            return None
        # A kill between the two files leaves a content that the head is not of; the next request tells anew.
        return Served(head, content) if digest(content) == head.content_sha256 else None

    def _check_request(self, request: wire.CheckInRequest) -> None:
        if request.protocol != PROTOCOL:
            message = f"protocol is {request.protocol}, expected {PROTOCOL}; update the app"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)
        for name in ("app_version", "base", "family", "release"):
            value = getattr(request, name)
            if len(value) > _MAX_NAME or not value.isprintable():
                raise never(f"{name} has {len(value)} characters, expected at most {_MAX_NAME}, all printable")
        if not request.family:
            raise never("family is empty, expected the name of the target's vocabulary")


def _reply(settled: Settled) -> wire.UploadReply:
    return wire.UploadReply(outcome=_OUTCOMES[settled.outcome], reason=settled.reason)
