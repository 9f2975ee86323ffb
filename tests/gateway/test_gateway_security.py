"""What the gateway refuses: with a clear status, within a limit, and nothing has changed by it."""

import asyncio
import gc
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import pytest
from loopback import PATIENT_S, Loopback, device_of, gateway, table, until

from fleetdraft.client.phone import Phone, PhoneConfig, open_channel, upload_head
from fleetdraft.common.content import to_content
from fleetdraft.common.errors import ConfigError, FleetError
from fleetdraft.common.fleet_wire import CHUNK_BYTES, MESSAGE_BYTES
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import Release, TrainTask
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.wire import fleet_pb2 as wire
from fleetdraft.common.wire import fleet_pb2_grpc
from fleetdraft.server.deployment.tls import make_certificates
from fleetdraft.server.gateway.folder import DoorTable
from fleetdraft.server.gateway.limits import LimitsTable
from fleetdraft.server.gateway.service import SERVICE, LocalService, local_server

TASK = TrainTask(round=1, seed=7, timeout_s=PATIENT_S)
#: A refusal takes no longer than this and the limit that it is for.
PROMPT_S = 3.0

Call = Callable[[Any, tuple[tuple[str, str], ...]], Any]
CALLS: dict[str, Call] = {
    "CheckIn": lambda stub, meta: stub.CheckIn(wire.CheckInRequest(protocol=1, family="spm"), metadata=meta),
    "FetchRelease": lambda stub, meta: stub.FetchRelease(wire.FetchReleaseRequest(), metadata=meta).read(),
    "UploadState": lambda stub, meta: stub.UploadState(wire.UploadStateRequest(), metadata=meta),
    "Upload": lambda stub, meta: stub.Upload(sent([wire.UploadChunk(head=wire.UploadHead())]), metadata=meta),
    "Report": lambda stub, meta: stub.Report(wire.ReportRequest(), metadata=meta),
}


async def sent(messages: list[Any], pause_s: float = 0.0) -> AsyncIterator[Any]:
    for message in messages:
        yield message
        await asyncio.sleep(pause_s)


async def nothing() -> AsyncIterator[wire.UploadChunk]:
    await asyncio.sleep(PATIENT_S)
    yield wire.UploadChunk()


def state(gate: Loopback) -> tuple[object, ...]:
    """All that an answer could change: tasks, sum, uploads."""
    database = gate.open.gateway._ledger._database
    rows = [tuple(row) for name in ("tasks", "cohorts") for row in database.execute(f"SELECT * FROM {name}")]
    spool = sorted((path.name, path.stat().st_size) for path in (gate.folder.folder / "spool").iterdir())
    return rows, spool, gate.cohort.accepted if gate.cohort else None


async def refused(call: Awaitable[Any], status: grpc.StatusCode, limit_s: float = PROMPT_S) -> str:
    """The reason with which a call is refused."""
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, PATIENT_S)
    assert caught.value.code() == status, caught.value.details()
    assert time.monotonic() - started < limit_s
    return caught.value.details() or ""


class Uploading:
    """A phone with a task and a sound update for it."""

    def __init__(self, phone: Phone, task: wire.Task, release: Release) -> None:
        self.phone, self.task = phone, task
        update = device_of(release).train(TASK, release)
        self.content = to_content(update.delta, release.adapter.layout.shapes)
        self.head = upload_head(task, update, self.content)

    def send(self, *messages: wire.UploadChunk, pause_s: float = 0.0) -> Awaitable[wire.UploadReply]:
        return self.phone.stub.Upload(sent(list(messages), pause_s), metadata=self.phone.metadata)

    def whole(self, **changes: object) -> Awaitable[wire.UploadReply]:
        """The whole upload in one message, with another head."""
        head = wire.UploadHead()
        head.CopyFrom(self.head)
        for name, value in changes.items():
            setattr(head, name, value)
        return self.send(wire.UploadChunk(head=head, data=self.content))


def uploading(
    tmp_path: Path, release: Release, play: Callable[[Loopback, Uploading], Awaitable[None]], **settings: Any
) -> None:
    """Plays with a phone that has a task; afterwards its sound update must still be taken in."""

    async def run() -> None:
        async with (
            gateway(tmp_path, release, table(**settings)) as gate,
            gate.phone("ann", device_of(release)) as phone,
        ):
            await gate.ask(TASK)
            up = Uploading(phone, (await phone.check_in()).task, release)
            before = state(gate)
            await play(gate, up)
            assert state(gate) == before
            assert (await phone.upload(up.head, up.content)).outcome == wire.UploadReply.ACCEPTED

    asyncio.run(run())


def test_every_call_without_a_token_is_refused(tmp_path: Path, release: Release) -> None:
    methods = {method.name for method in wire.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]].methods}
    assert methods == set(CALLS)

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            before = state(gate)
            for call in CALLS.values():
                for metadata in ((), (("authorization", "Bearer "),), (("authorization", phone.config.token),)):
                    await refused(call(phone.stub, metadata), grpc.StatusCode.UNAUTHENTICATED)
            assert state(gate) == before

    asyncio.run(play())


def silent(channel: grpc.aio.Channel, method: str, metadata: tuple[tuple[str, str], ...] = ()) -> Awaitable[Any]:
    """A call of which nothing but its headers comes."""
    return channel.stream_unary(f"/{method}")(nothing(), metadata=metadata)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_which_no_message_comes_keeps_no_place(tmp_path: Path, release: Release, name: str) -> None:
    """Without a token it ends at once, with one after ``head_s``."""

    async def play() -> None:
        settings = table(limits=LimitsTable(head_s=0.3, concurrent_calls=8))
        async with (
            gateway(tmp_path, release, settings) as gate,
            gate.phone("ann", device_of(release)) as phone,
            open_channel(gate.address, gate.authority) as channel,
        ):
            method = f"{SERVICE}/{name}"
            strangers = [silent(channel, method) for _ in range(8)]
            await asyncio.gather(*(refused(call, grpc.StatusCode.UNAUTHENTICATED) for call in strangers))
            reason = await refused(silent(channel, method, phone.metadata), grpc.StatusCode.DEADLINE_EXCEEDED)
            assert "no message within 0.3 s" in reason
            assert (await phone.check_in()).HasField("come_back")

    asyncio.run(play())


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Watch", "grpc.health.v1.Health/Check", "any.Service/Any"])
def test_no_other_service_is_at_the_devices_door(tmp_path: Path, release: Release, method: str) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, open_channel(gate.address, gate.authority) as channel:
            await refused(silent(channel, method), grpc.StatusCode.UNIMPLEMENTED)

    asyncio.run(play())


def test_a_message_that_is_none_is_refused(tmp_path: Path, release: Release) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        async with open_channel(gate.address, gate.authority) as channel:
            for name in CALLS:
                call = channel.stream_unary(f"/{SERVICE}/{name}")
                garbage = call(sent([b"\xff" * 8]), metadata=up.phone.metadata)
                await refused(garbage, grpc.StatusCode.INVALID_ARGUMENT)

    uploading(tmp_path, release, play)


@pytest.mark.parametrize("token", ["wrong", "x" * 5000, "expired", "revoked", "replaced"])
def test_a_token_that_does_not_hold_is_refused(tmp_path: Path, release: Release, token: str) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            if token == "expired":
                phone.config = replace(phone.config, token=gate.token("bob", days=1e-9))
            elif token == "revoked":
                assert (await phone.check_in()).HasField("come_back")
                gate.open.tokens.revoke("ann")
            elif token == "replaced":
                gate.token("ann")
            else:
                phone.config = replace(phone.config, token=token)
            for call in CALLS.values():
                await refused(call(phone.stub, phone.metadata), grpc.StatusCode.UNAUTHENTICATED)

    asyncio.run(play())


def test_tokens_are_not_kept_as_they_are(tmp_path: Path, release: Release) -> None:
    async def play() -> str:
        async with gateway(tmp_path, release) as gate:
            return gate.token("ann")

    token = asyncio.run(play()).encode()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token in path.read_bytes()]


HEADS = {
    "content_bytes": 10**9,
    "base": "another drafter",
    "layout": "0" * 64,
    "release": "0" * 64,
    "content_sha256": "../" * 20 + "abcd",
    "weight": float("nan"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_cannot_be_right_is_refused_before_anything_else_is_read(
    tmp_path: Path, release: Release, name: str
) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        head = wire.UploadHead()
        head.CopyFrom(up.head)
        setattr(head, name, HEADS[name])
        # What follows the head would never end; the gateway does not wait for it.
        forever = up.send(wire.UploadChunk(head=head), wire.UploadChunk(), pause_s=PATIENT_S)
        assert name in await refused(forever, grpc.StatusCode.INVALID_ARGUMENT)

    uploading(tmp_path, release, play)


def test_counters_that_cannot_be_right_are_refused(tmp_path: Path, release: Release) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        for counters in (wire.DraftCounters(tokens=10**13), wire.DraftCounters(seconds=float("nan"))):
            head = wire.UploadHead()
            head.CopyFrom(up.head)
            head.drafting.CopyFrom(counters)
            await refused(up.send(wire.UploadChunk(head=head)), grpc.StatusCode.INVALID_ARGUMENT)

    uploading(tmp_path, release, play)


def test_more_bytes_than_the_head_says_are_refused(tmp_path: Path, release: Release) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        more = wire.UploadChunk(head=up.head, data=up.content + b"\0")
        assert "more bytes" in await refused(up.send(more), grpc.StatusCode.INVALID_ARGUMENT)
        await kept_nothing(gate, up)

    _forgiving(tmp_path, release, play)


def test_what_a_refused_upload_held_is_free_at_once(tmp_path: Path, release: Release) -> None:
    """And not when the collector comes by: memory would grow with the number of phones meanwhile."""

    async def play(gate: Loopback, up: Uploading) -> None:
        gc.collect()
        gc.disable()
        try:
            await refused(up.send(wire.UploadChunk(head=up.head, data=up.content[:4])), grpc.StatusCode.OUT_OF_RANGE)
            await until(lambda: not gate.open.gateway.limits._lasting)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            held = [each for each in gc.garbage if isinstance(each, FrameType)]
            assert not [frame for frame in held if frame.f_code.co_filename.endswith("uploads.py")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    _forgiving(tmp_path, release, play)


def test_a_chunk_that_is_too_large_is_refused(tmp_path: Path, release: Release) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        large = wire.UploadChunk(head=up.head, data=bytes(CHUNK_BYTES + 1))
        assert "at most" in await refused(up.send(large), grpc.StatusCode.INVALID_ARGUMENT)
        huge = wire.UploadChunk(head=up.head, data=bytes(MESSAGE_BYTES + 1))
        await refused(up.send(huge), grpc.StatusCode.RESOURCE_EXHAUSTED)
        await kept_nothing(gate, up)

    _forgiving(tmp_path, release, play)


def test_a_content_of_another_digest_is_refused_and_may_be_sent_again(tmp_path: Path, release: Release) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        other = hashlib.sha256(b"another").hexdigest()
        assert "content_sha256" in await refused(up.whole(content_sha256=other), grpc.StatusCode.INVALID_ARGUMENT)
        await kept_nothing(gate, up)

    _forgiving(tmp_path, release, play)


async def kept_nothing(gate: Loopback, up: Uploading) -> None:
    assert gate.open.gateway.spooled_bytes == 0
    assert gate.cohort.accepted == 0


def _forgiving(
    tmp_path: Path, release: Release, play: Callable[[Loopback, Uploading], Awaitable[None]], **settings: Any
) -> None:
    """As ``uploading``, where the head may have been noted: it is of this task and changes nothing."""

    async def run() -> None:
        async with (
            gateway(tmp_path, release, table(**settings)) as gate,
            gate.phone("ann", device_of(release)) as phone,
        ):
            await gate.ask(TASK)
            up = Uploading(phone, (await phone.check_in()).task, release)
            await play(gate, up)
            assert gate.counts() == {"open": 1}
            assert (await phone.upload(up.head, up.content)).outcome == wire.UploadReply.ACCEPTED

    asyncio.run(run())


def test_a_replayed_upload_is_answered_as_the_first_time_and_counted_once(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            up = Uploading(phone, (await phone.check_in()).task, release)
            for _ in range(3):
                assert (await up.whole()).outcome == wire.UploadReply.ACCEPTED
            twice = await asyncio.gather(up.whole(), up.whole())
            assert [reply.outcome for reply in twice] == [wire.UploadReply.ACCEPTED] * 2
            assert gate.cohort.accepted == 1

    asyncio.run(play())


def test_an_upload_that_is_sent_twice_at_once_is_counted_once(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            up = Uploading(phone, (await phone.check_in()).task, release)
            replies = await asyncio.gather(*(phone.upload(up.head, up.content) for _ in range(5)))
            assert {reply.outcome for reply in replies} == {wire.UploadReply.ACCEPTED}
            assert gate.cohort.accepted == 1

    asyncio.run(play())


def test_an_answer_that_waits_twice_for_its_place_in_the_sum_is_counted_once(tmp_path: Path, release: Release) -> None:
    """As where a phone was cut off after its last byte, and sends that again while the first try waits."""

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            up = Uploading(phone, (await phone.check_in()).task, release)
            entry = gate.open.gateway._ledger.task(up.task.id, "ann")
            for _ in range(2):
                gate.open.gateway._spool.append(up.task.id, up.content)
                settled = await asyncio.gather(*(gate.cohort.take(entry, head=up.head) for _ in range(2)))
                assert [each.outcome for each in settled] == ["accepted"] * 2
            assert gate.cohort.accepted == 1
            assert gate.open.gateway.spooled_bytes == 0

    asyncio.run(play())


@pytest.mark.parametrize("offset", [4, 10**15])
def test_a_chunk_that_is_not_the_next_is_refused(tmp_path: Path, release: Release, offset: int) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        gap = wire.UploadChunk(head=up.head, offset=offset, data=up.content[4:])
        assert "expected 0" in await refused(up.send(gap), grpc.StatusCode.OUT_OF_RANGE)
        await kept_nothing(gate, up)

    _forgiving(tmp_path, release, play)


def test_a_task_is_of_one_device_only(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            up = Uploading(phone, (await phone.check_in()).task, release)
            before = state(gate)
            up.phone.config = replace(phone.config, token=gate.token("eve"))
            await refused(up.whole(), grpc.StatusCode.NOT_FOUND)
            assert state(gate) == before

    asyncio.run(play())


@pytest.mark.parametrize("name", ["../gateway.toml", "/etc/passwd", "..", "a\0b", "x" * 5000, ""])
def test_a_name_that_is_a_path_finds_nothing(tmp_path: Path, release: Release, name: str) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        stub, metadata = up.phone.stub, up.phone.metadata
        files = sorted(tmp_path.parent.rglob("*.toml"))
        await refused(up.whole(task_id=name), grpc.StatusCode.NOT_FOUND)
        request = wire.UploadStateRequest(task_id=name)
        await refused(stub.UploadState(request, metadata=metadata), grpc.StatusCode.NOT_FOUND)
        await refused(stub.Report(wire.ReportRequest(task_id=name), metadata=metadata), grpc.StatusCode.NOT_FOUND)
        fetch = wire.FetchReleaseRequest(digest=name)
        await refused(stub.FetchRelease(fetch, metadata=metadata).read(), grpc.StatusCode.NOT_FOUND)
        assert sorted(tmp_path.parent.rglob("*.toml")) == files

    uploading(tmp_path, release, play)


def test_a_slow_upload_ends_at_its_deadline_and_goes_on_later(tmp_path: Path, release: Release) -> None:
    limits = LimitsTable(head_s=0.3, upload_s=0.5)

    async def play() -> None:
        settings = table(limits=limits)
        async with gateway(tmp_path, release, settings) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            up = Uploading(phone, (await phone.check_in()).task, release)
            slow = [wire.UploadChunk(head=up.head, data=up.content[:4])]
            slow += [wire.UploadChunk(offset=at, data=up.content[at : at + 4]) for at in range(4, 400, 4)]
            reason = await refused(up.send(*slow, pause_s=0.1), grpc.StatusCode.DEADLINE_EXCEEDED)
            there = gate.open.gateway.spooled_bytes
            assert f"go on at {there}" in reason
            assert 0 < there < 100
            assert (await phone.upload(up.head, up.content)).outcome == wire.UploadReply.ACCEPTED

    asyncio.run(play())


def test_a_download_that_is_not_read_ends_at_its_deadline(tmp_path: Path) -> None:
    """And its place is free. The release is larger than what gRPC sends ahead to one who reads nothing."""
    shape = DecoderShape(
        vocab_size=32, hidden_size=2048, layers=16, heads=2, kv_heads=1, head_dim=1024, intermediate_size=2048,
        context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
    )  # fmt: skip
    large = Release(number=1, adapter=LoraLayout(rank=4, alpha=8, shape=shape).initial(seed=0), base="base")

    async def play() -> None:
        settings = table(limits=LimitsTable(upload_s=0.5))
        async with (
            gateway(tmp_path, large, settings) as gate,
            gate.phone("ann", device_of(large)) as phone,
            grpc.aio.insecure_channel(gate.address, (("grpc.http2.bdp_probe", 0),)) as small_window,
        ):
            await gate.ask(TASK)
            request = wire.FetchReleaseRequest(digest=(await phone.check_in()).task.release.digest)
            phone.stub = fleet_pb2_grpc.FleetStub(small_window)
            call = phone.stub.FetchRelease(request, metadata=phone.metadata)
            await call.read()
            await until(lambda: gate.open.gateway.refused["DEADLINE_EXCEEDED"] == 1)
            assert not gate.open.gateway.limits._lasting
            call.cancel()

    asyncio.run(play())


def test_an_upload_without_a_first_message_ends_soon(tmp_path: Path, release: Release) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        silent = up.phone.stub.Upload(nothing(), metadata=up.phone.metadata)
        assert "no message" in await refused(silent, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert "no head" in await refused(up.send(wire.UploadChunk()), grpc.StatusCode.INVALID_ARGUMENT)

    uploading(tmp_path, release, play, limits=LimitsTable(head_s=0.3))


def test_a_port_with_tls_speaks_nothing_else(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release, table(tls=True)) as gate:
            async with gate.phone("ann", device_of(release)) as phone:
                assert (await phone.check_in()).HasField("come_back")
            (tmp_path / "other").mkdir()
            async with open_channel(gate.address, None) as plain:
                stranger = Phone(plain, phone.config, device_of(release), lambda: 0.0)
                await refused(CALLS["CheckIn"](stranger.stub, phone.metadata), grpc.StatusCode.UNAVAILABLE)

    asyncio.run(play())


def test_a_connection_that_does_not_shake_hands_is_closed(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        settings = table(tls=True, limits=LimitsTable(head_s=0.3))
        async with gateway(tmp_path, release, settings) as gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.open.port)
            async with asyncio.timeout(PROMPT_S):
                while await reader.read(4096):
                    pass
            writer.close()

    asyncio.run(play())


def test_a_phone_trusts_no_other_authority(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        make_certificates(tmp_path / "other", [])
        async with (
            gateway(tmp_path / "gate", release, table(tls=True)) as gate,
            open_channel(gate.address, tmp_path / "other/ca.pem") as channel,
        ):
            stub = Phone(channel, _config(gate), device_of(release), lambda: 0.0).stub
            await refused(CALLS["CheckIn"](stub, ()), grpc.StatusCode.UNAVAILABLE)

    asyncio.run(play())


def _config(gate: Loopback):
    return PhoneConfig(token=gate.token("ann"), base="base", family="spm")


def test_a_device_that_calls_too_often_has_to_wait_and_others_do_not(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        settings = table(limits=LimitsTable(calls_per_minute=5))
        async with (
            gateway(tmp_path, release, settings) as gate,
            gate.phone("ann", device_of(release)) as ann,
            gate.phone("bob", device_of(release)) as bob,
        ):
            for _ in range(5):
                await CALLS["CheckIn"](ann.stub, ann.metadata)
            await refused(CALLS["CheckIn"](ann.stub, ann.metadata), grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert (await bob.check_in()).HasField("come_back")

    asyncio.run(play())


def test_a_device_that_holds_many_calls_open_takes_no_others_place(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        settings = table(limits=LimitsTable(calls_at_once=2))
        async with (
            gateway(tmp_path, release, settings) as gate,
            gate.phone("ann", device_of(release)) as ann,
            gate.phone("bob", device_of(release)) as bob,
        ):
            stalled = [ann.stub.Upload(nothing(), metadata=ann.metadata) for _ in range(2)]
            await until(lambda: gate.open.gateway.limits._lasting["ann"] == 2)
            await refused(CALLS["CheckIn"](ann.stub, ann.metadata), grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert (await bob.check_in()).HasField("come_back")
            for call in stalled:
                call.cancel()
            await until(lambda: not gate.open.gateway.limits._lasting)

    asyncio.run(play())


def test_a_device_that_transfers_too_much_has_to_wait(tmp_path: Path, release: Release) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        fetch = wire.FetchReleaseRequest(digest=up.task.release.digest)
        calls = [up.phone.stub.FetchRelease(fetch, metadata=up.phone.metadata) for _ in range(2)]
        assert len((await calls[0].read()).data) == up.task.release.content_bytes
        await refused(calls[1].read(), grpc.StatusCode.RESOURCE_EXHAUSTED)

    size = sum(rows * columns for rows, columns in release.adapter.layout.shapes.values()) * 4
    with pytest.raises(FleetError, match="RESOURCE_EXHAUSTED"):  # the sound upload is too much as well
        uploading(tmp_path, release, play, limits=LimitsTable(bytes_per_hour=size + 10))


def test_calls_that_make_no_sense_count_as_well(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        settings = table(limits=LimitsTable(calls_per_minute=5))
        async with (
            gateway(tmp_path, release, settings) as gate,
            gate.phone("ann", device_of(release)) as phone,
            open_channel(gate.address, gate.authority) as channel,
        ):
            for _ in range(4):
                wrong = phone.stub.CheckIn(wire.CheckInRequest(protocol=2), metadata=phone.metadata)
                await refused(wrong, grpc.StatusCode.FAILED_PRECONDITION)
            garbage = channel.stream_unary(f"/{SERVICE}/CheckIn")(sent([b"\xff"]), metadata=phone.metadata)
            await refused(garbage, grpc.StatusCode.INVALID_ARGUMENT)
            await refused(CALLS["CheckIn"](phone.stub, phone.metadata), grpc.StatusCode.RESOURCE_EXHAUSTED)

    asyncio.run(play())


def test_an_upload_of_empty_messages_ends(tmp_path: Path, release: Release) -> None:
    async def play(gate: Loopback, up: Uploading) -> None:
        async def empty() -> AsyncIterator[wire.UploadChunk]:
            yield wire.UploadChunk(head=up.head)
            for _ in range(25):  # the last one is too much; gRPC's client minds to be refused while it sends
                yield wire.UploadChunk()
            await asyncio.sleep(PATIENT_S)

        call = up.phone.stub.Upload(empty(), metadata=up.phone.metadata)
        await refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED)

    with pytest.raises(FleetError, match="RESOURCE_EXHAUSTED"):  # the sound upload is too much as well
        _forgiving(tmp_path, release, play, limits=LimitsTable(bytes_per_hour=100_000))


def test_uploads_beyond_the_room_there_is_have_to_wait(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        settings = table(limits=LimitsTable(spool_bytes=100))
        async with gateway(tmp_path, release, settings) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            up = Uploading(phone, (await phone.check_in()).task, release)
            await refused(up.whole(), grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert gate.counts() == {"open": 1}

    asyncio.run(play())


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"protocol": 2}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"app_version": "x" * 65}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"family": "a\nb"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"family": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"base": "x" * 65}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_check_in_that_makes_no_sense_is_refused(
    tmp_path: Path, release: Release, changes: dict[str, Any], status: grpc.StatusCode
) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            before = state(gate)
            request = wire.CheckInRequest(
                **({"protocol": 1, "base": "base", "family": "spm", "eligible": True} | changes)
            )
            await refused(phone.stub.CheckIn(request, metadata=phone.metadata), status)
            assert state(gate) == before

    asyncio.run(play())


def test_only_this_user_reaches_flowers_door(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            assert gate.folder.socket.stat().st_mode & 0o777 == 0o600
            assert gate.folder.path("gateway.db").stat().st_mode & 0o777 == 0o600
            assert gate.folder.path("spool").stat().st_mode & 0o777 == 0o700

    asyncio.run(play())


def test_flowers_door_is_for_this_user_from_its_first_moment_on(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            before = os.umask(0)
            try:
                local_server(LocalService(gate.open.gateway), tmp_path / "another.sock")
                assert (tmp_path / "another.sock").stat().st_mode & 0o777 == 0o600
                assert os.umask(0) == 0
            finally:
                os.umask(before)

    asyncio.run(play())


def test_a_file_that_is_no_socket_is_left_where_it_is(tmp_path: Path, release: Release) -> None:
    (tmp_path / "precious.key").write_text("secret")

    async def play() -> None:
        async with gateway(tmp_path, release, table(door=DoorTable(port=0, tls=False, socket=Path("precious.key")))):
            pass

    with pytest.raises(ConfigError, match=r"precious\.key is no socket"):
        asyncio.run(play())
    assert (tmp_path / "precious.key").read_text() == "secret"


def test_a_port_that_is_taken_is_said_so(tmp_path: Path, release: Release) -> None:
    async def play(port: int) -> None:
        async with gateway(tmp_path, release, table(door=DoorTable(port=port, tls=False))):
            pass

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen"):
            asyncio.run(play(taken.getsockname()[1]))
