"""A device's side of the gateway: what it refuses before it fetches, what it keeps, and where its token does not go."""

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from loopback import device_of, gateway, table

from fleetdraft.client.device import TableDevice
from fleetdraft.client.pending_update import PendingUpdate
from fleetdraft.client.phone import Phone, PhoneConfig, Refused, Visit, open_channel
from fleetdraft.common.errors import ConfigError, FleetError
from fleetdraft.common.fleet_wire import CHUNK_BYTES, release_content, release_head
from fleetdraft.common.messages import EvaluateTask, Evaluation, Release, TrainTask, Update
from fleetdraft.common.wire import fleet_pb2 as wire
from fleetdraft.common.wire import fleet_pb2_grpc as stubs

TASK = TrainTask(round=1, seed=7)


class CountingDevice:
    """A device that counts how often it was asked, each time with another change."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self.trained = self.measured = 0

    def train(self, task: TrainTask, release: Release) -> Update:
        self.trained += 1
        return self._table.train(task, release)

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        self.measured += 1
        return self._table.evaluate(task, release)

    @property
    def _table(self) -> TableDevice:
        return device_of(self._release, seed=self.trained)


class TableGateway(stubs.FleetServicer):
    """A gateway that says whatever the test has it say."""

    def __init__(self, release: Release) -> None:
        self.task = wire.Task(
            id="task-1", kind=wire.Task.TRAIN, release=release_head(release), clip_norm=1.0, factors=["A", "B"],
            deadline_s=60.0,
        )  # fmt: skip
        self.content = release_content(release)
        self.most_chunks = 1000
        self.failures: list[grpc.StatusCode] = []
        """With which the next uploads fail, one each."""
        self.check_ins: list[wire.CheckInRequest] = []
        self.fetched_bytes = 0
        self.uploads: list[wire.UploadHead] = []

    async def CheckIn(self, request: wire.CheckInRequest, context: Any) -> wire.CheckInReply:
        self.check_ins.append(request)
        if not request.eligible:
            return wire.CheckInReply(come_back=wire.ComeBack(after_s=math.inf, reason=wire.ComeBack.NOT_ELIGIBLE))
        return wire.CheckInReply(task=self.task)

    async def FetchRelease(self, request: wire.FetchReleaseRequest, context: Any) -> None:
        for number in range(self.most_chunks):
            at = number * CHUNK_BYTES
            if data := self.content[at : at + CHUNK_BYTES]:
                await context.write(wire.ReleaseChunk(offset=at, data=data))
                self.fetched_bytes += len(data)

    async def UploadState(self, request: wire.UploadStateRequest, context: Any) -> wire.UploadStateReply:
        return wire.UploadStateReply()

    async def Upload(self, request: Any, context: Any) -> wire.UploadReply:
        chunks = [chunk async for chunk in request]
        if self.failures:
            await context.abort(self.failures.pop(0), "as the test says")
        self.uploads.append(chunks[0].head)
        return wire.UploadReply(outcome=wire.UploadReply.ACCEPTED)

    async def Report(self, request: wire.ReportRequest, context: Any) -> wire.ReportReply:
        return wire.ReportReply(outcome=wire.UploadReply.ACCEPTED)


@contextlib.asynccontextmanager
async def served(servicer: TableGateway) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to it."""
    server = grpc.aio.server()
    stubs.add_FleetServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", None) as channel:
            yield channel
    finally:
        await server.stop(0)


def config(**changes: Any) -> PhoneConfig:
    values = {"token": "t", "base": "base", "family": "spm", "tries": 1, "first_wait_s": 0.01}
    return PhoneConfig(**(values | changes))


def visited(
    servicer: TableGateway, device: CountingDevice, *visits: bool, kept: Path | None = None,
    clock: Callable[[], float] = lambda: 0.0, **changes: Any,
) -> list[Visit | FleetError]:  # fmt: skip
    """What comes of a phone's visits, each eligible or not."""

    async def play() -> list[Visit | FleetError]:
        found: list[Visit | FleetError] = []
        async with served(servicer) as channel:
            phone = Phone(channel, config(**changes), device, lambda: 0.5, kept=kept, clock=clock)
            for eligible in visits:
                try:
                    found.append(await phone.visit(eligible))
                except FleetError as error:
                    found.append(error)
        return found

    return asyncio.run(play())


@pytest.fixture
def device(release: Release) -> CountingDevice:
    return CountingDevice(release)


@pytest.fixture
def servicer(release: Release) -> TableGateway:
    return TableGateway(release)


# --- before a byte is fetched ---------------------------------------------------------------------------------------


def shaped(release: Release, **changes: Any) -> Callable[[wire.ReleaseHead], None]:
    """Has a head tell a layout of other sizes, and be right about all that follows from it."""
    layout = release.adapter.layout
    rank = changes.pop("rank", layout.rank)
    other = replace(layout, rank=rank, shape=replace(layout.shape, **changes))

    def change(head: wire.ReleaseHead) -> None:
        head.layout = json.dumps({"rank": rank, "alpha": layout.alpha, "shape": other.shape.to_json()})
        head.layout_fingerprint = other.fingerprint

    return change


def test_a_release_that_does_not_fit_is_refused_before_a_byte_is_fetched(
    release: Release, servicer: TableGateway, device: CountingDevice
) -> None:
    def told(name: str, value: Any) -> Callable[[wire.ReleaseHead], None]:
        return lambda head: setattr(head, name, value)

    good = wire.ReleaseHead.FromString(servicer.task.release.SerializeToString())
    cases = {
        "is for the drafter another": told("base", "another"),
        "layout is 000000000000": told("layout_fingerprint", "0" * 64),
        "has 1099511627776 bytes": told("content_bytes", 1 << 40),
        "cannot be read (JSONDecodeError": told("layout", "no JSON"),
        "cannot be read (KeyError": told("layout", "{}"),
        "cannot be read (RecursionError": told("layout", "[" * 100_000),
        "cannot be read (ValueError": shaped(release, rank=0, layers=10**12),
        f"expected {10**12 // 2 * good.content_bytes} as its layout has": shaped(release, layers=10**12),
    }
    for message, change in cases.items():
        change(servicer.task.release)
        (refused,) = visited(servicer, device, True)
        assert isinstance(refused, FleetError)
        assert message in str(refused)
        servicer.task.release.CopyFrom(good)
    assert (servicer.fetched_bytes, device.trained) == (0, 0)


def test_a_phone_with_a_bundle_takes_no_other_layout_and_none_more_than_it_has_room_for(
    release: Release, servicer: TableGateway, device: CountingDevice
) -> None:
    (refused,) = visited(servicer, device, True, layout="f" * 64)
    assert isinstance(refused, FleetError) and "expected ffffffffffff" in str(refused)
    size = len(servicer.content)
    (refused,) = visited(servicer, device, True, most_bytes=size - 1)
    assert isinstance(refused, FleetError) and f"and at most {size - 1}" in str(refused)
    assert servicer.fetched_bytes == 0
    (visit,) = visited(servicer, device, True, most_bytes=size, layout=release.adapter.layout.fingerprint)
    assert visit == Visit(outcome="ACCEPTED")


def test_no_more_is_taken_than_the_head_says(servicer: TableGateway, device: CountingDevice) -> None:
    servicer.content += bytes(100 * CHUNK_BYTES)
    (refused,) = visited(servicer, device, True)
    assert isinstance(refused, FleetError) and "the gateway sent byte" in str(refused)
    assert device.trained == 0


UNKNOWN: list[dict[str, Any]] = [
    {"kind": 0},
    {"kind": 7},
    {"factors": []},
    {"factors": ["A", "C"]},
    {"clip_norm": 0.0},
    {"clip_norm": -1.0},
    {"clip_norm": math.inf},
    {"clip_norm": math.nan},
    {"deadline_s": math.inf},
]


@pytest.mark.parametrize("change", UNKNOWN, ids=str)
def test_a_task_that_this_version_does_not_know_is_refused(
    servicer: TableGateway, device: CountingDevice, change: dict[str, Any]
) -> None:
    values = {field.name: value for field, value in servicer.task.ListFields()} | change
    servicer.task = wire.Task(**values)
    (refused,) = visited(servicer, device, True)
    assert isinstance(refused, FleetError) and "which this version does not know; update the app" in str(refused)
    assert (servicer.fetched_bytes, device.trained, device.measured) == (0, 0, 0)


def test_a_task_whose_deadline_is_over_is_not_worked_at(servicer: TableGateway, device: CountingDevice) -> None:
    servicer.task.deadline_s = 0.0
    assert visited(servicer, device, True) == [Visit(come_back_s=0.01, why="task task-1 is over")]
    assert (servicer.fetched_bytes, device.trained) == (0, 0)


def test_a_gateway_cannot_have_a_phone_come_back_never(servicer: TableGateway, device: CountingDevice) -> None:
    assert visited(servicer, device, False) == [Visit(come_back_s=86400.0, why="NOT_ELIGIBLE")]


# --- an update that is not answered ---------------------------------------------------------------------------------


def test_an_update_that_was_not_answered_is_sent_again_and_not_trained_again(
    servicer: TableGateway, device: CountingDevice
) -> None:
    servicer.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED]
    *refused, visit = visited(servicer, device, True, True, True)
    assert [error.code for error in refused if isinstance(error, Refused)] == [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
    ]
    assert visit == Visit(outcome="ACCEPTED")
    assert (device.trained, len(servicer.check_ins), len(servicer.uploads)) == (1, 1, 1)


def test_an_update_that_was_not_answered_outlives_the_process(
    servicer: TableGateway, device: CountingDevice, tmp_path: Path
) -> None:
    kept = tmp_path / "update"
    servicer.failures = [grpc.StatusCode.UNAVAILABLE]
    visited(servicer, device, True, kept=kept)
    pending = PendingUpdate.read(kept)
    assert pending is not None and pending.until == 60.0
    assert kept.stat().st_mode & 0o077 == 0
    assert visited(servicer, device, True, kept=kept) == [Visit(outcome="ACCEPTED")]
    assert servicer.uploads == [pending.head]
    assert (device.trained, kept.exists()) == (1, False)


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT], ids=str)
def test_an_update_that_is_gone_or_can_never_be_right_is_forgotten(
    servicer: TableGateway, device: CountingDevice, tmp_path: Path, code: grpc.StatusCode
) -> None:
    kept = tmp_path / "update"
    servicer.failures = [code]
    refused, visit = visited(servicer, device, True, True, kept=kept)
    if code == grpc.StatusCode.NOT_FOUND:  # checks in anew
        assert isinstance(refused, Visit) and refused.come_back_s and not refused.outcome
    else:
        assert isinstance(refused, Refused) and refused.code == code
    assert visit == Visit(outcome="ACCEPTED")
    assert (device.trained, kept.exists()) == (2, False)


def test_an_update_that_nobody_waits_for_any_more_is_forgotten(servicer: TableGateway, device: CountingDevice) -> None:
    times = iter([0.0, 61.0, 61.0])
    servicer.failures = [grpc.StatusCode.UNAVAILABLE]
    _, visit = visited(servicer, device, True, True, clock=lambda: next(times))
    assert visit == Visit(outcome="ACCEPTED")
    assert device.trained == 2


def test_a_phone_that_may_not_train_any_more_forgets_its_update_with_its_task(
    servicer: TableGateway, device: CountingDevice, tmp_path: Path
) -> None:
    kept = tmp_path / "update"
    servicer.failures = [grpc.StatusCode.UNAVAILABLE]
    *_, visit = visited(servicer, device, True, False, kept=kept)
    assert isinstance(visit, Visit) and visit.why == "NOT_ELIGIBLE"
    assert (servicer.uploads, kept.exists()) == ([], False)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:5], lambda data: b"", lambda data: data[:20] + b"x" + data[21:]],
)
def test_a_damaged_update_is_trained_anew_and_not_sent(
    servicer: TableGateway, device: CountingDevice, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    kept = tmp_path / "update"
    servicer.failures = [grpc.StatusCode.UNAVAILABLE]
    visited(servicer, device, True, kept=kept)
    kept.write_bytes(damage(kept.read_bytes()))
    assert visited(servicer, device, True, kept=kept) == [Visit(outcome="ACCEPTED")]
    assert device.trained == 2


def test_an_update_whose_answer_was_lost_is_counted_once(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release, table(devices=2)) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            answered = phone.upload

            async def lost(*words: Any) -> wire.UploadReply:
                await answered(*words)
                raise Refused(grpc.StatusCode.UNAVAILABLE, "the answer was lost")

            phone.upload = lost
            with pytest.raises(Refused):
                await phone.visit()
            phone.upload = answered
            assert await phone.visit() == Visit(outcome="ACCEPTED")
            assert gate.counts() == {"accepted": 1}
            assert (await phone.visit()).why == "DONE"

    asyncio.run(play())


# --- the token ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["example.org:443", "10.0.0.1:443", "127.0.0.1.example.org:443", "localhost.example.org:1", "dns:///example.org:1",
     "dns://10.0.0.1/localhost:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "[2001:db8::1]:443", "localhost", "", ":443"],
)  # fmt: skip
def test_a_token_goes_to_no_other_machine_in_plain_text(address: str) -> None:
    with pytest.raises(ConfigError, match="a token needs TLS"):
        open_channel(address, None)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.9.10:1", "[::1]:1", "localhost:1", "unix:/tmp/gate.sock"])
def test_this_machine_may_be_reached_without_tls(address: str) -> None:
    async def play() -> None:
        await open_channel(address, None).close()

    asyncio.run(play())


def test_a_token_in_plain_text_goes_through_no_proxy(
    servicer: TableGateway, device: CountingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0)
        for name in ("http_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert visited(servicer, device, True, call_s=5.0) == [Visit(outcome="ACCEPTED")]
        with pytest.raises(BlockingIOError):
            proxy.accept()
