"""A device without Flower, as the gateway sees it: check in, fetch, train or measure, answer. It knows no model.

The reference for implementations in other languages; docs/device-protocol.md says the same in words.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from ..common.content import Shapes, digest, from_content, to_content
from ..common.errors import ConfigError, FleetError
from ..common.fleet_wire import (
    CHUNK_BYTES,
    MESSAGE_BYTES,
    PROTOCOL,
    drafting_to_wire,
    layout_of,
    shapes_of,
    training_to_wire,
)
from ..common.lora import LoraAdapter
from ..common.messages import EvaluateTask, Release, TrainTask, Update
from ..common.wire import fleet_pb2 as wire
from ..common.wire import fleet_pb2_grpc as stubs
from .device import Device

#: What may be gone at the next try.
_TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.INTERNAL,
)


class _Gone(FleetError):
    """What was asked for is there no more; the phone checks in anew."""


@dataclass(frozen=True, kw_only=True)
class PhoneConfig:
    """Who a phone is, and how patient.

    Raises:
      ConfigError: a number is out of range.
    """

    token: str
    base: str
    """Fingerprint of its drafter."""
    family: str
    app_version: str = ""
    tries: int = 6
    """Of one call, before the visit is given up."""
    first_wait_s: float = 1.0
    """Before the second try; each further wait is twice as long, and jittered."""
    call_s: float = 300.0
    """For one call, an upload or download included."""

    def __post_init__(self) -> None:
        if self.tries < 1 or not self.first_wait_s > 0:
            raise ConfigError(f"tries is {self.tries} and first_wait_s {self.first_wait_s:g}, expected both positive")


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What came of asking the gateway once."""

    come_back_s: float | None = None
    """When to come back, if there was nothing to do."""
    why: str = ""
    outcome: str = ""
    """Of the answer, if there was a task: ACCEPTED, REJECTED or LATE."""
    reason: str = ""


class Phone:
    """Takes part over one channel, a visit at a time.

    Guarantees:
      - An upload that broke goes on where the gateway has it; the same update is sent however often it is retried.
      - What was fetched is used only if it is what the gateway's digests say.
      - What is promoted is in force from the visit on that tells of it.

    Args:
      chance: uniform in [0, 1), for the jitter of waits.
    """

    def __init__(
        self, channel: grpc.aio.Channel, config: PhoneConfig, device: Device, chance: Callable[[], float]
    ) -> None:
        self.stub: Any = stubs.FleetStub(channel)
        self.config = config
        self._device = device
        self._chance = chance
        self.in_force: Release | None = None
        """What to draft with; none before anything was promoted."""
        self._release: Release | None = None
        """What was fetched last."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.config.token}"),)

    async def visit(self, eligible: bool = True) -> Visit:
        """Checks in, puts in force what is promoted, and does what there is to do.

        Raises:
          FleetError: the gateway refused, or could not be reached in ``tries``.
        """
        try:
            return await self._visit(eligible)
        except _Gone as error:
            return Visit(come_back_s=self.config.first_wait_s, why=str(error))

    async def _visit(self, eligible: bool) -> Visit:
        reply = await self.check_in(eligible)
        if reply.HasField("promoted") and reply.promoted.base == self.config.base:  # else WRONG_BASE says why
            self.in_force = await self.fetch(reply.promoted)
        if not reply.HasField("task"):
            why = wire.ComeBack.Reason.Name(reply.come_back.reason)
            return Visit(come_back_s=reply.come_back.after_s, why=why)
        task = reply.task
        release = await self.fetch(task.release)
        answer = await (self.train(task, release) if task.kind == wire.Task.TRAIN else self.measure(task, release))
        return Visit(outcome=wire.UploadReply.Outcome.Name(answer.outcome), reason=answer.reason)

    async def check_in(self, eligible: bool = True) -> wire.CheckInReply:
        """A task, or when to come back."""
        request = wire.CheckInRequest(
            protocol=PROTOCOL,
            app_version=self.config.app_version,
            base=self.config.base,
            family=self.config.family,
            release=self.in_force.adapter.digest if self.in_force else "",
            eligible=eligible,
        )
        return await self._tried(lambda: self.stub.CheckIn(request, metadata=self.metadata, timeout=self.config.call_s))

    async def fetch(self, head: wire.ReleaseHead) -> Release:
        """A release, checked; one that is here already is not fetched again."""
        for release in (self.in_force, self._release):
            if release is not None and release.adapter.digest == head.digest:
                return release
        self._release = await self._fetched(head)
        return self._release

    async def train(self, task: wire.Task, release: Release) -> wire.UploadReply:
        """Trains and uploads the update."""
        asked = TrainTask(
            round=task.round,
            seed=task.seed,
            factors=tuple(task.factors),
            clip_norm=task.clip_norm,
            timeout_s=task.deadline_s,
        )
        update = await asyncio.to_thread(self._device.train, asked, release)
        content = to_content(update.delta, shapes_of(release.adapter.layout, task.factors))
        return await self.upload(upload_head(task, update, content), content)

    async def measure(self, task: wire.Task, release: Release) -> wire.ReportReply:
        """Evaluates and reports."""
        asked = EvaluateTask(round=task.round, seed=task.seed, timeout_s=task.deadline_s)
        found = await asyncio.to_thread(self._device.evaluate, asked, release)
        request = wire.ReportRequest(task_id=task.id, drafting=drafting_to_wire(found.counters))
        return await self._tried(lambda: self.stub.Report(request, metadata=self.metadata, timeout=self.config.call_s))

    async def upload(self, head: wire.UploadHead, content: bytes, again: bool = False) -> wire.UploadReply:
        """Sends an update; ``again``: some of it may be there, so that the gateway is asked first where to go on."""
        state = wire.UploadStateRequest(task_id=head.task_id, content_sha256=head.content_sha256)
        first = not again

        async def once() -> wire.UploadReply:
            nonlocal first
            at = 0
            if not first:
                at = (await self.stub.UploadState(state, metadata=self.metadata, timeout=self.config.call_s)).received
            first = False
            return await self.stub.Upload(chunks(head, content, at), metadata=self.metadata, timeout=self.config.call_s)

        return await self._tried(once)

    async def _fetched(self, head: wire.ReleaseHead) -> Release:
        if head.base != self.config.base:
            raise FleetError(f"the release is for the drafter {head.base[:12]}…, this is {self.config.base[:12]}…")
        data = bytearray()

        async def once() -> bytes:
            request = wire.FetchReleaseRequest(digest=head.digest, offset=len(data))
            async for chunk in self.stub.FetchRelease(request, metadata=self.metadata, timeout=self.config.call_s):
                if chunk.offset != len(data) or len(data) + len(chunk.data) > head.content_bytes:
                    raise FleetError(f"the gateway sent byte {chunk.offset}, expected {len(data)}")
                data.extend(chunk.data)
            return bytes(data)

        return release_of(head, await self._tried(once))

    async def _tried(self, call: Callable[[], Any]) -> Any:
        """The answer to a call that is made again, after a while, where that may help."""
        wait_s = self.config.first_wait_s
        for left in reversed(range(self.config.tries)):
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _TRANSIENT or not left:
                    kind = _Gone if error.code() == grpc.StatusCode.NOT_FOUND else FleetError
                    raise kind(f"the gateway: {error.code().name}: {error.details()}") from error
            await asyncio.sleep(wait_s * (0.5 + self._chance()))
            wait_s *= 2
        raise AssertionError("the last try raises")


def upload_head(task: wire.Task, update: Update, content: bytes) -> wire.UploadHead:
    """The head of an upload of ``update``, whose content is ``content``."""
    return wire.UploadHead(
        task_id=task.id,
        content_sha256=hashlib.sha256(content).hexdigest(),
        content_bytes=len(content),
        base=update.base,
        layout=update.layout,
        release=update.release,
        weight=update.weight,
        drafting=drafting_to_wire(update.counters),
        training=training_to_wire(update.training),
    )


async def chunks(
    head: wire.UploadHead, content: bytes, at: int = 0, size: int = CHUNK_BYTES
) -> AsyncIterator[wire.UploadChunk]:
    """The messages of an upload that goes on at byte ``at``."""
    yield wire.UploadChunk(head=head, offset=at, data=content[at : at + size])
    for start in range(at + size, len(content), size):
        yield wire.UploadChunk(offset=start, data=content[start : start + size])


def release_of(head: wire.ReleaseHead, content: bytes) -> Release:
    """The release whose content was fetched.

    Raises:
      FleetError: the content, or the layout, is not that of the head.
    """
    if digest(content) != head.content_sha256:
        raise FleetError("the release's content does not match its SHA-256")
    layout = layout_of(head)
    shapes: Shapes = layout.shapes
    adapter = LoraAdapter(layout=layout, arrays=from_content(content, shapes))
    if adapter.digest != head.digest or layout.fingerprint != head.layout_fingerprint:
        raise FleetError("the release does not match its digest, or its layout its fingerprint")
    return Release(number=head.number, adapter=adapter, base=head.base)


def open_channel(address: str, authority: Path | None) -> grpc.aio.Channel:
    """A channel to the gateway at ``address``; without ``authority`` a plain one, for a loopback only."""
    options = (("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1))
    if authority is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority.read_bytes()), options)
