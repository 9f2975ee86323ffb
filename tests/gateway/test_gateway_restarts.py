"""What survives the gateway's process: nothing that a phone was told is lost, and nothing is counted twice."""

import asyncio
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.app import MessageType
from loopback import PATIENT_S, device_of, direct_mean, gateway, table, until

from fleetdraft.client.phone import Phone, PhoneConfig, chunks, open_channel, upload_head
from fleetdraft.common.child import bound
from fleetdraft.common.cli import main
from fleetdraft.common.content import to_content
from fleetdraft.common.errors import FleetError
from fleetdraft.common.messages import Identity, Release, SumTerms, TrainTask
from fleetdraft.common.records import decode_update, encode_request
from fleetdraft.common.wire import fleet_pb2 as wire
from fleetdraft.server.deployment.tls import make_certificates
from fleetdraft.server.gateway.ask import records_of, records_to_bytes
from fleetdraft.server.gateway.database import durable, open_database
from fleetdraft.server.gateway.refusal import Refusal
from fleetdraft.server.gateway.service import KIND, LOCAL_SERVICE

TASK = TrainTask(round=1, seed=7, timeout_s=PATIENT_S)
TERMS = SumTerms(weights="equal", devices=1000)


def test_a_cohort_goes_on_after_a_restart_bit_by_bit(tmp_path: Path, release: Release) -> None:
    devices = [device_of(release, name=f"p{i}", seed=i) for i in range(3)]

    async def play() -> None:
        for device in devices[:2]:
            async with gateway(tmp_path, release) as gate, gate.phone(device.client, device) as phone:
                await gate.ask(TASK)
                assert (await phone.visit()).outcome == "ACCEPTED"
        async with gateway(tmp_path, release) as gate:
            assert gate.counts() == {"accepted": 2}
            answer = await gate.ask(TASK)
            async with gate.phone("p2", devices[2]) as phone:
                assert (await phone.visit()).outcome == "ACCEPTED"
            direct, update = direct_mean(devices, release, TASK), await answer
            assert all(np.array_equal(update.delta[name], direct[name]) for name in direct)

    asyncio.run(play())


def test_a_closed_cohorts_answer_is_given_again_after_a_restart(tmp_path: Path, release: Release) -> None:
    device = device_of(release, seed=1)

    async def play() -> None:
        settings = table(devices=1)
        async with gateway(tmp_path, release, settings) as gate, gate.phone("ann", device) as phone:
            first = await gate.ask(TASK)
            await phone.visit()
            before = await first
        async with gateway(tmp_path, release, settings) as gate:
            again = await (await gate.ask(TASK))
            assert all(np.array_equal(again.delta[name], before.delta[name]) for name in before.delta)
            assert gate.cohort.entry.number == 1

    asyncio.run(play())


def test_a_phone_that_was_counted_before_a_restart_is_not_counted_again(tmp_path: Path, release: Release) -> None:
    device = device_of(release)

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device) as phone:
            await gate.ask(TASK)
            task, token = (await phone.check_in()).task, phone.config.token
            content = to_content(device.train(TASK, release).delta, release.adapter.layout.shapes)
            head = upload_head(task, device.train(TASK, release), content)
            await phone.upload(head, content)
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device, token=token) as phone:
            assert (await phone.upload(head, content)).outcome == wire.UploadReply.ACCEPTED
            assert gate.cohort.accepted == 1

    asyncio.run(play())


def test_an_upload_goes_on_after_a_restart_where_it_broke(tmp_path: Path, release: Release) -> None:
    device = device_of(release)

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device) as phone:
            await gate.ask(TASK)
            task, token = (await phone.check_in()).task, phone.config.token
            content = to_content(device.train(TASK, release).delta, release.adapter.layout.shapes)
            head = upload_head(task, device.train(TASK, release), content)
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                part = chunks(head, content[:1000], size=100)
                await phone.stub.Upload(part, metadata=phone.metadata)
            assert broken.value.code() == grpc.StatusCode.OUT_OF_RANGE
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device, token=token) as phone:
            state = wire.UploadStateRequest(task_id=task.id, content_sha256=head.content_sha256)
            assert (await phone.stub.UploadState(state, metadata=phone.metadata)).received == 1000
            rest = chunks(head, content, at=1000, size=100)
            assert (await phone.stub.Upload(rest, metadata=phone.metadata)).outcome == wire.UploadReply.ACCEPTED

    asyncio.run(play())


def test_another_update_for_the_same_task_begins_anew(tmp_path: Path, release: Release) -> None:
    """A phone that was killed itself has trained again, to other numbers."""
    first, second = device_of(release, 0.01), device_of(release, 0.02)

    async def play() -> None:
        async with gateway(tmp_path, release, table(devices=1)) as gate, gate.phone("ann", second) as phone:
            answer = await gate.ask(TASK)
            task = (await phone.check_in()).task
            content = to_content(first.train(TASK, release).delta, release.adapter.layout.shapes)
            head = upload_head(task, first.train(TASK, release), content)
            with pytest.raises(grpc.aio.AioRpcError):
                await phone.stub.Upload(chunks(head, content[:1000], size=100), metadata=phone.metadata)
            assert (await phone.visit()).outcome == "ACCEPTED"
            assert (await answer).delta["lora.0.q_proj.B"].max() == np.float32(0.02)

    asyncio.run(play())


def test_an_upload_that_was_whole_when_the_process_died_counts_without_its_phone(
    tmp_path: Path, release: Release
) -> None:
    device = device_of(release)

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device) as phone:
            await gate.ask(TASK)
            task = (await phone.check_in()).task
            content = to_content(device.train(TASK, release).delta, release.adapter.layout.shapes)
            head = upload_head(task, device.train(TASK, release), content)
            with pytest.raises(grpc.aio.AioRpcError):
                await phone.stub.Upload(chunks(head, content[:1000], size=100), metadata=phone.metadata)
        with (tmp_path / "spool" / task.id).open("ab") as file:  # as if the kill had come a moment later
            file.write(content[1000:])
        async with gateway(tmp_path, release) as gate:
            await until(lambda: gate.counts() == {"accepted": 1})

    asyncio.run(play())


def test_an_answer_that_cannot_be_written_is_not_in_the_sum(tmp_path: Path, release: Release) -> None:
    """The phone is told to try again, and then counts once."""
    device = device_of(release)

    async def play() -> None:
        async with gateway(tmp_path, release, table(devices=1)) as gate, gate.phone("ann", device) as phone:
            answer = await gate.ask(TASK)
            task = (await phone.check_in()).task
            content = to_content(device.train(TASK, release).delta, release.adapter.layout.shapes)
            head = upload_head(task, device.train(TASK, release), content)
            with pytest.raises(grpc.aio.AioRpcError):
                await phone.stub.Upload(chunks(head, content[:-4], size=len(content)), metadata=phone.metadata)
            other = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
            # From the moment on that the last bytes come, nothing can be written to the database.
            last = asyncio.create_task(gate.cohort.take(gate.open.gateway._ledger.task(task.id, "ann"), head=head))
            gate.open.gateway._spool.append(task.id, content[-4:])
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Refusal, match="could not be kept"):
                await last
            other.execute("ROLLBACK")
            other.close()
            assert gate.cohort.accepted == 0
            assert (await phone.upload(head, content)).outcome == wire.UploadReply.ACCEPTED
            assert (await answer).devices == 1

    asyncio.run(play())


@pytest.mark.parametrize("damage", ["cut off", "gone", "another shape", "a zip"])
def test_a_sum_that_cannot_be_read_ends_its_cohort_and_not_the_gateway(
    tmp_path: Path, release: Release, damage: str
) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            assert (await phone.visit()).outcome == "ACCEPTED"
        (sums,) = (tmp_path / "sums").iterdir()
        if damage == "gone":
            sums.unlink()
        elif damage == "another shape":
            np.save(sums, np.zeros(3))
        else:
            sums.write_bytes(sums.read_bytes()[:100] if damage == "cut off" else b"PK\x03\x04")
        async with gateway(tmp_path, release, table(devices=1)) as gate, gate.phone("ann", device_of(release)) as phone:
            assert "cannot be read any more" in gate.open.gateway._ledger.newest().failure
            answer = await gate.ask(TASK)
            assert (await phone.visit()).outcome == "ACCEPTED"
            assert (await answer).devices == 1

    asyncio.run(play())


def test_a_promoted_release_that_cannot_be_read_is_told_with_the_next_request(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            await gate.ask(TASK)
        (tmp_path / "promoted.head").write_bytes(b"\xff" * 4)
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            assert not (await phone.check_in()).HasField("promoted")
            await gate.ask(replace(TASK, round=2))
            assert (await phone.check_in()).promoted.digest == release.adapter.digest

    asyncio.run(play())


def test_what_is_durable_is_synced_before_it_is_told(tmp_path: Path) -> None:
    database = open_database(tmp_path / "gateway.db")
    try:
        with durable(database):
            assert database.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL: SQLite syncs at each commit
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    finally:
        database.close()


def test_a_journal_that_cannot_be_written_stops_no_later_request(
    tmp_path: Path, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release, table(devices=1)) as gate, gate.phone("ann", device_of(release)) as phone:
            answer = await gate.ask(TASK)
            (tmp_path / "gateway.jsonl").mkdir()
            assert (await phone.visit()).outcome == "ACCEPTED"
            assert (await answer).devices == 1
            await until(lambda: "the cohort's end could not be noted" in caplog.text)
            for number in (2, 3):
                answer = await gate.ask(replace(TASK, round=number))
                assert (await phone.visit()).outcome == "ACCEPTED"
                assert (await answer).devices == 1

    asyncio.run(play())


COMMAND = [sys.executable, "-c", "import sys; from fleetdraft.common.cli import main; sys.exit(main())"]


class Killed:
    """A gateway's process that is killed and started again, always on the same port."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.folder = folder / "g"
        make_certificates(folder, [])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = ["--name", "gate", "--server", "127.0.0.1:1", "--authority", str(folder / "ca.pem")]
        assert main(["gateway", "init", str(self.folder), *words, "--port", str(self.port)]) == 0
        path = self.folder / "gateway.toml"
        text = path.read_text().replace("devices = 100", f"devices = {devices}")
        path.write_text(text.replace("# least_s = 5.0", "least_s = 0.2").replace("# fill_s = 60.0", "fill_s = 0.2"))
        self.starts = 0
        self.process = self._started()

    def again(self) -> None:
        """kill -9, and a new process."""
        self.kill()
        self.process = self._started()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def _started(self) -> "subprocess.Popen[bytes]":
        self.starts += 1
        log = (self.folder / "said.log").open("ab")
        with log:
            return subprocess.Popen(
                bound([*COMMAND, "gateway", "start", str(self.folder)]),
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return (self.folder / "said.log").read_text()


def ask(gate: Killed, release: Release, task: TrainTask) -> bytes:
    """As Flower's ClientApp: patient while the gateway is away."""
    request = records_to_bytes(encode_request(task, release, TERMS))
    deadline = time.monotonic() + 4 * PATIENT_S
    while True:
        with grpc.insecure_channel(f"unix:{gate.folder}/local.sock") as channel:
            call = channel.unary_unary(f"/{LOCAL_SERVICE}/Answer")
            try:
                return call(request, metadata=((KIND, MessageType.TRAIN),), timeout=60, wait_for_ready=True)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_kills_at_any_moment_lose_no_answer_and_count_none_twice(
    tmp_path: Path, release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = [device_of(release, name=f"p{i}", seed=i) for i in range(40)]
    gate, rng = Killed(tmp_path, len(devices)), random.Random(0)
    capsys.readouterr()
    assert main(["gateway", "tokens", "new", str(gate.folder), *(d.client for d in devices)]) == 0
    tokens = dict(line.split() for line in capsys.readouterr().out.splitlines())
    task = TrainTask(round=1, seed=7, timeout_s=10 * PATIENT_S)

    async def live(device, start_s: float) -> str:
        config = PhoneConfig(token=tokens[device.client], base="base", family="spm", tries=60, first_wait_s=0.02)
        await asyncio.sleep(start_s)
        async with open_channel(f"127.0.0.1:{gate.port}", gate.folder / "tls/ca.pem") as channel:
            phone = Phone(channel, config, device, rng.random)
            while not (visit := await visited(phone)).outcome:
                if visit.why == "DONE":  # it was killed between the sum and the answer
                    return "ACCEPTED"
                await asyncio.sleep(0.1)
            return visit.outcome

    async def play() -> tuple[bytes, list[str]]:
        answer = asyncio.create_task(asyncio.to_thread(ask, gate, release, task))
        phones = [asyncio.create_task(live(device, rng.uniform(0, 8))) for device in devices]
        for _ in range(5):
            await asyncio.sleep(rng.uniform(0.5, 3))
            gate.again()
        return await answer, await asyncio.gather(*phones)

    try:
        answer, outcomes = asyncio.run(play())
    finally:
        gate.kill()
    update = decode_update(records_of(answer), Identity(client="gate", family="any"))
    direct = direct_mean(devices, release, task)
    assert update.devices == len(devices)
    assert all(np.array_equal(update.delta[name], direct[name]) for name in direct)
    assert set(outcomes) == {"ACCEPTED"}, outcomes
    assert gate.starts == 6


async def visited(phone: Phone):
    """One visit, however often the gateway dies in it."""
    while True:
        try:
            return await phone.visit()
        except FleetError as error:
            assert "UNAVAILABLE" in str(error), error
