"""The gateway's guarantees towards Flower and phones in the ordinary course: one mean, everyone accounted for."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.app import MessageType
from loopback import PATIENT_S, Loopback, device_of, direct_mean, gateway, table, until

from fleetdraft.client.device import TableDevice
from fleetdraft.client.phone import chunks, release_of, upload_head
from fleetdraft.common.content import to_content
from fleetdraft.common.errors import FleetError, UpdateRejected
from fleetdraft.common.fleet_wire import release_content, release_head
from fleetdraft.common.messages import EvaluateTask, Release, TrainTask
from fleetdraft.common.records import encode_request
from fleetdraft.common.wire import fleet_pb2 as wire
from fleetdraft.server.gateway.ask import records_to_bytes
from fleetdraft.server.gateway.cohort import CohortTable

TASK = TrainTask(round=1, seed=7, timeout_s=PATIENT_S)


def test_the_answer_is_the_mean_of_the_phones_bit_by_bit(tmp_path: Path, release: Release) -> None:
    devices = [device_of(release, name=f"p{i}", seed=i) for i in range(3)]

    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            answer = await gate.ask(TASK)
            for device in devices:
                async with gate.phone(device.client, device) as phone:
                    assert (await phone.visit()).outcome == "ACCEPTED"
            update = await answer
            direct = direct_mean(devices, release, TASK)
            assert all(np.array_equal(update.delta[name], direct[name]) for name in direct)
            assert (update.devices, update.weight, update.counters.drafted) == (3, 3.0, 30)
            assert gate.counts() == {"accepted": 3}

    asyncio.run(play())


def test_phones_are_weighed_as_the_fleet_says(tmp_path: Path, release: Release) -> None:
    devices = [replace(device_of(release, name=f"p{i}", seed=i), weight=w) for i, w in enumerate((1.0, 2.0, 5.0))]

    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            answer = await gate.ask(TASK, weights="tokens")
            await visits(gate, devices)
            direct = direct_mean(devices, release, TASK, [1.0, 2.0, 5.0])
            update = await answer
            assert all(np.array_equal(update.delta[name], direct[name]) for name in direct)
            assert (update.weight, update.devices) == (8.0, 3)

    asyncio.run(play())


def test_figures_are_kept_by_the_phones_families(tmp_path: Path, release: Release) -> None:
    devices = [device_of(release, name=f"p{i}", family=family) for i, family in enumerate(("spm", "bpe", "spm"))]

    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            answer = await gate.ask(EvaluateTask(round=1, seed=7, timeout_s=PATIENT_S))
            await visits(gate, devices)
            families = (await answer).families
            assert {name: counters.drafted for name, counters in families.items()} == {"bpe": 10, "spm": 20}

    asyncio.run(play())


def test_a_request_asked_again_is_the_same_cohort(tmp_path: Path, release: Release) -> None:
    devices = [device_of(release, name=f"p{i}", seed=i) for i in range(3)]

    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            first, second = await gate.ask(TASK), await gate.ask(TASK)
            await visits(gate, devices)
            third = await gate.ask(TASK)
            answers = [await first, await second, await third]
            assert all(np.array_equal(a.delta[n], answers[0].delta[n]) for a in answers for n in a.delta)
            assert gate.cohort.entry.number == 1

    asyncio.run(play())


def test_another_request_ends_the_cohort_before_it(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            first = await gate.ask(TASK)
            await gate.ask(replace(TASK, round=2))
            with pytest.raises(UpdateRejected, match="asked for something else"):
                await first

    asyncio.run(play())


def test_a_cohort_of_too_few_gives_no_answer(tmp_path: Path, release: Release) -> None:
    settings = table(cohort=CohortTable(devices=3, min_devices=2))

    async def play() -> None:
        async with gateway(tmp_path, release, settings) as gate:
            answer = await gate.ask(replace(TASK, timeout_s=2.0))
            await visits(gate, [device_of(release)])
            with pytest.raises(UpdateRejected, match="1 devices have answered, expected at least min_devices = 2"):
                await answer

    asyncio.run(play())


def test_the_deadline_closes_a_cohort_with_those_that_have_answered(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            answer = await gate.ask(replace(TASK, timeout_s=3.0))
            await visits(gate, [device_of(release)])
            async with gate.phone("silent", device_of(release)) as phone:
                task = (await phone.check_in()).task
                assert (await answer).devices == 1
                assert gate.counts() == {"accepted": 1, "dropped": 1}
                late = await phone.train(task, release)
                assert late.outcome == wire.UploadReply.LATE
                assert gate.counts() == {"accepted": 1, "late": 1}

    asyncio.run(play())


def test_an_upload_that_the_end_of_its_cohort_cuts_off_is_late(tmp_path: Path, release: Release) -> None:
    device = device_of(release)
    content = to_content(device.train(TASK, release).delta, release.adapter.layout.shapes)

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device) as phone:
            await gate.ask(TASK)
            head = upload_head((await phone.check_in()).task, device.train(TASK, release), content)

            async def slowly() -> AsyncIterator[wire.UploadChunk]:
                async for chunk in chunks(head, content, size=len(content) // 2):
                    yield chunk
                    await until(lambda: gate.open.gateway.spooled_bytes or gate.cohort.closed.is_set())
                    gate.cohort.end("over")
                    await gate.cohort.closed.wait()

            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await phone.stub.Upload(slowly(), metadata=phone.metadata)
            assert cut.value.code() == grpc.StatusCode.OUT_OF_RANGE
            assert (await phone.upload(head, content)).outcome == wire.UploadReply.LATE
            assert gate.counts() == {"late": 1}

    asyncio.run(play())


def test_an_upload_that_is_whole_just_after_its_cohort_closed_is_late(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            task = (await phone.check_in()).task
            gate.cohort.end("over")
            await gate.cohort.closed.wait()
            entry = gate.open.gateway._ledger.task(task.id, "ann")
            async with asyncio.timeout(PATIENT_S):
                settled = await gate.cohort.take(entry, head=wire.UploadHead())
            assert settled.outcome == "late"

    asyncio.run(play())


def test_so_many_phones_are_given_the_task_as_over_selection_says(tmp_path: Path, release: Release) -> None:
    settings = table(cohort=CohortTable(devices=10, min_devices=1, over_selection=0.3))

    async def play() -> list[str]:
        async with gateway(tmp_path, release, settings) as gate:
            await gate.ask(TASK)
            return [await kind_of_answer(gate, f"p{i}", release) for i in range(14)]

    assert asyncio.run(play()) == ["task"] * 13 + ["ROUND_FULL"]


def test_the_place_of_a_phone_that_took_too_long_is_given_to_another(tmp_path: Path, release: Release) -> None:
    settings = table(cohort=CohortTable(devices=1, min_devices=1, over_selection=0, task_s=0.3))

    async def play() -> list[str]:
        async with gateway(tmp_path, release, settings) as gate:
            await gate.ask(TASK)
            before = [await kind_of_answer(gate, name, release) for name in ("slow", "next")]
            await asyncio.sleep(0.4)
            return [*before, await kind_of_answer(gate, "next", release)]

    assert asyncio.run(play()) == ["task", "ROUND_FULL", "task"]


def test_a_phone_that_is_not_eligible_any_more_gives_its_place_back(tmp_path: Path, release: Release) -> None:
    settings = table(cohort=CohortTable(devices=1, min_devices=1, over_selection=0))

    async def play() -> None:
        async with gateway(tmp_path, release, settings) as gate:
            await gate.ask(TASK)
            async with gate.phone("ann", device_of(release)) as phone:
                assert (await phone.check_in()).HasField("task")
                assert (await phone.check_in(eligible=False)).come_back.reason == wire.ComeBack.NOT_ELIGIBLE
                assert gate.counts() == {"declined": 1}
                assert await kind_of_answer(gate, "bob", release) == "task"

    asyncio.run(play())


def test_a_phone_answers_a_round_once(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            await gate.ask(TASK)
            async with gate.phone("ann", device_of(release)) as phone:
                assert (await phone.visit()).outcome == "ACCEPTED"
                assert (await phone.visit()).why == "DONE"
                assert gate.cohort.accepted == 1

    asyncio.run(play())


def test_an_unsound_update_is_rejected_and_counted_with_its_reason(tmp_path: Path, release: Release) -> None:
    bad = device_of(release, float("nan"))

    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            await gate.ask(TASK)
            async with gate.phone("ann", bad) as phone:
                visit = await phone.visit()
                assert (visit.outcome, "not finite" in visit.reason) == ("REJECTED", True)
            assert gate.counts() == {"rejected": 1}
            assert gate.cohort.accepted == 0

    asyncio.run(play())


def test_phones_are_told_what_is_promoted(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            assert not (await phone.check_in()).HasField("promoted")
            await gate.ask(TASK)
            assert (await phone.fetch((await phone.check_in()).promoted)).adapter.digest == release.adapter.digest

    asyncio.run(play())


def test_a_phone_drafts_with_what_is_promoted_whatever_it_trains_from(tmp_path: Path, release: Release) -> None:
    change = {n: np.ones(shape, np.float32) for n, shape in release.adapter.layout.shapes.items()}
    other = replace(release, number=2, adapter=release.adapter.plus(change))

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            assert (await phone.visit()).why == "NO_ROUND"
            assert phone.in_force is None
            await gate.ask(TASK)
            gate.open.gateway.promote(other)
            assert (await phone.visit()).outcome == "ACCEPTED"
            assert (phone.in_force.number, phone.in_force.adapter.digest) == (2, other.adapter.digest)
            gate.open.gateway.promote(replace(release, base="another drafter's"))
            await phone.visit()
            assert phone.in_force.number == 2

    asyncio.run(play())


def test_a_phone_that_is_outrun_comes_back(tmp_path: Path, release: Release) -> None:
    """What it was told of when it checked in is gone when it fetches."""
    change = {n: np.ones(shape, np.float32) for n, shape in release.adapter.layout.shapes.items()}
    newer = replace(release, number=4, adapter=release.adapter.plus(change))

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            gate.open.gateway.promote(release)
            check_in = phone.check_in

            async def outrun(eligible: bool) -> wire.CheckInReply:
                reply = await check_in(eligible)
                gate.open.gateway.promote(newer)
                return reply

            phone.check_in = outrun
            visit = await phone.visit()
            assert (visit.come_back_s, "NOT_FOUND" in visit.why) == (phone.config.first_wait_s, True)
            await phone.visit()
            assert phone.in_force.number == 4

    asyncio.run(play())


def test_a_download_goes_on_at_any_byte(tmp_path: Path, release: Release) -> None:
    content = release_content(release)

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            await gate.ask(TASK)
            for offset in (0, 1, 1000, len(content) - 1, len(content)):
                request = wire.FetchReleaseRequest(digest=release.adapter.digest, offset=offset)
                found = [chunk async for chunk in phone.stub.FetchRelease(request, metadata=phone.metadata)]
                assert b"".join(chunk.data for chunk in found) == content[offset:]
            beyond = wire.FetchReleaseRequest(digest=release.adapter.digest, offset=len(content) + 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await phone.stub.FetchRelease(beyond, metadata=phone.metadata).read()
            assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE

    asyncio.run(play())


@pytest.mark.parametrize("name", ["content_sha256", "digest", "layout_fingerprint"])
def test_a_phone_uses_no_release_that_is_not_what_its_head_says(release: Release, name: str) -> None:
    head = release_head(release)
    release_of(head, release_content(release))
    setattr(head, name, "0" * 64)
    with pytest.raises(FleetError, match="does not match"):
        release_of(head, release_content(release))


def test_a_fleet_that_takes_no_sums_is_told_so_before_any_phone_works(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            request = records_to_bytes(encode_request(TASK, release))
            with pytest.raises(UpdateRejected, match="name it in fleet.toml: gateways"):
                await gate.open.gateway.ask(MessageType.TRAIN, request)
            assert gate.cohort is None

    asyncio.run(play())


async def visits(gate: Loopback, devices: list[TableDevice]) -> None:
    for device in devices:
        async with gate.phone(device.client, device) as phone:
            assert (await phone.visit()).outcome == "ACCEPTED"


async def kind_of_answer(gate: Loopback, name: str, release: Release) -> str:
    async with gate.phone(name, device_of(release)) as phone:
        reply = await phone.check_in()
        return "task" if reply.HasField("task") else wire.ComeBack.Reason.Name(reply.come_back.reason)
