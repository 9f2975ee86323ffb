"""The gateway's guarantees towards Flower and phones in the ordinary course: one mean, everyone accounted for."""

import asyncio
import contextlib
import threading
import time
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
from fleetdraft.common.messages import EvaluateTask, Evaluation, Release, SumTerms, TrainTask, Update, l2_norm
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.records import MAX_FAMILIES, encode_request
from fleetdraft.common.wire import fleet_pb2 as wire
from fleetdraft.server.aggregation.aggregate import MAX_WEIGHT
from fleetdraft.server.counted import MOST
from fleetdraft.server.gateway.ask import Ask, records_to_bytes
from fleetdraft.server.gateway.cohort import CohortTable
from fleetdraft.server.gateway.ledger import Outcome, Settled
from fleetdraft.server.gateway.partial_sum import PartialSum
from fleetdraft.server.gateway.spool import Spool

TASK = TrainTask(round=1, seed=7, timeout_s=PATIENT_S)


class Adding:
    """Holds answers back on their way into a sum, until ``go``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go, real = threading.Event(), threading.Event(), PartialSum.take

        def take(running: PartialSum, update: Update) -> None:
            self.begun.set()
            assert self.go.wait(PATIENT_S)
            real(running, update)

        monkeypatch.setattr(PartialSum, "take", take)


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


@pytest.mark.parametrize(
    ("families", "told"),
    [
        ("aaaa", {"a": 40}),
        ("aaab", {"a": 30}),
        ("aabc", {"a": 20, "other": 20}),
        ("abcd", {"other": 40}),
    ],
)
def test_no_figures_are_told_of_a_family_of_fewer_than_min_devices(
    tmp_path: Path, release: Release, families: str, told: dict[str, int]
) -> None:
    devices = [device_of(release, name=f"p{i}", family=family) for i, family in enumerate(families)]
    settings = table(cohort=CohortTable(devices=4, min_devices=2))

    async def play() -> None:
        async with gateway(tmp_path, release, settings) as gate:
            answer = await gate.ask(TASK)
            await visits(gate, devices[:2])
        async with gateway(tmp_path, release, settings) as gate:  # how many of each there are outlives the process
            answer = await gate.ask(TASK)
            await visits(gate, devices[2:])
            update = await answer
            assert ({name: each.drafted for name, each in update.families.items()}, update.devices) == (told, 4)

    asyncio.run(play())


def test_a_phone_that_boasts_weighs_no_more_than_a_device_may(tmp_path: Path, release: Release) -> None:
    """Else one of a hundred would decide what the canary sees."""
    boast = DraftCounters(prompts=1, blocks=10**12, drafted=10**12, tokens=10**12)
    devices = [replace(device_of(release, name="eve"), counters=boast), device_of(release, name="bob")]

    async def play() -> None:
        async with gateway(tmp_path, release, table(devices=2)) as gate:
            answer = await gate.ask(EvaluateTask(round=1, seed=7, timeout_s=PATIENT_S))
            await visits(gate, devices)
            found = (await answer).families["spm"]
            assert (found.drafted, found.accepted, found.blocks) == (MOST + 10, 4, MOST + 5)

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


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_moves_no_deadline(tmp_path: Path, release: Release, hours: int) -> None:
    step = [0.0]

    async def play() -> None:
        async with gateway(tmp_path, release, clock=lambda: time.time() + step[0]) as gate:
            answer = await gate.ask(replace(TASK, timeout_s=3.0))
            step[0] = 3600.0 * hours
            await visits(gate, [device_of(release)])
            assert not gate.cohort.closed.is_set()
            async with asyncio.timeout(PATIENT_S):
                assert (await answer).devices == 1

    asyncio.run(play())


def test_a_clock_that_was_set_back_while_the_gateway_was_away_lengthens_no_cohort(
    tmp_path: Path, release: Release
) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            await gate.ask(replace(TASK, timeout_s=1.0))
        async with gateway(tmp_path, release, clock=lambda: time.time() - 3600.0) as gate:
            await until(gate.cohort.closed.is_set)

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


def test_a_tasks_deadline_is_that_of_its_cohort(tmp_path: Path, release: Release) -> None:
    """Also where its place was given to another: its answer counts as long as the cohort is open, and no longer."""
    settings = table(cohort=CohortTable(devices=1, min_devices=1, over_selection=0, task_s=0.001))

    async def play() -> None:
        async with gateway(tmp_path, release, settings) as gate, gate.phone("slow", device_of(release)) as phone:
            await gate.ask(TASK)
            first = (await phone.check_in()).task
            assert first.deadline_s > 0.5 * PATIENT_S
            assert await kind_of_answer(gate, "next", release) == "task"  # so that the first has lost its place
            again = (await phone.check_in()).task
            assert (again.id, again.deadline_s > 0.5 * PATIENT_S) == (first.id, True)
            assert (await phone.train(again, release)).outcome == wire.UploadReply.ACCEPTED

    asyncio.run(play())


def test_no_task_is_given_whose_time_is_over(tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it that the cohort is still busy with an answer, and so not closed."""
    adding, device = Adding(monkeypatch), device_of(release)

    async def play() -> None:
        async with (
            gateway(tmp_path, release) as gate,
            gate.phone("ann", device) as ann,
            gate.phone("bob", device) as bob,
        ):
            await gate.ask(replace(TASK, timeout_s=1.0))
            assert (await ann.check_in()).HasField("task")
            last = asyncio.create_task(bob.visit())
            await until(adding.begun.is_set)
            await until(lambda: gate.cohort.is_over)
            assert (await ann.check_in()).come_back.reason == wire.ComeBack.NO_ROUND
            adding.go.set()
            assert (await last).outcome == "ACCEPTED"

    asyncio.run(play())


def test_a_task_that_was_declined_is_forgotten(tmp_path: Path, release: Release) -> None:
    """Neither is its upload told as done, which it is not, nor is an answer taken."""
    device = device_of(release)

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device) as phone:
            await gate.ask(TASK)
            task = (await phone.check_in()).task
            await phone.check_in(eligible=False)
            for call in (
                lambda: phone.stub.UploadState(wire.UploadStateRequest(task_id=task.id), metadata=phone.metadata),
                lambda: phone.train(task, release),
            ):
                with pytest.raises((grpc.aio.AioRpcError, FleetError), match="NOT_FOUND"):
                    await call()
            assert gate.counts() == {"declined": 1}

    asyncio.run(play())


def test_so_many_phones_are_given_the_task_as_over_selection_says(tmp_path: Path, release: Release) -> None:
    settings = table(cohort=CohortTable(devices=10, min_devices=1, over_selection=0.3))

    async def play() -> list[str]:
        async with gateway(tmp_path, release, settings) as gate:
            await gate.ask(TASK)
            return [await kind_of_answer(gate, f"p{i}", release) for i in range(14)]

    assert asyncio.run(play()) == ["task"] * 13 + ["ROUND_FULL"]


def test_no_more_phones_are_given_the_task_than_the_server_wants_answers_for(tmp_path: Path, release: Release) -> None:
    settings = table(cohort=CohortTable(devices=100, min_devices=1, over_selection=0.5))

    async def play() -> list[str]:
        async with gateway(tmp_path, release, settings) as gate:
            await gate.ask(TASK, devices=2)
            return [await kind_of_answer(gate, f"p{i}", release) for i in range(4)]

    assert asyncio.run(play()) == ["task"] * 3 + ["ROUND_FULL"]


def test_phones_that_have_answered_count_among_those_that_were_given_the_task(tmp_path: Path, release: Release) -> None:
    settings = table(cohort=CohortTable(devices=2, min_devices=1, over_selection=0))

    async def play() -> list[str]:
        async with gateway(tmp_path, release, settings) as gate:
            await gate.ask(TASK)
            await visits(gate, [device_of(release)])
            return [await kind_of_answer(gate, f"p{i}", release) for i in range(2)]

    assert asyncio.run(play()) == ["task", "ROUND_FULL"]


def test_the_place_of_a_phone_that_took_too_long_is_given_to_another(tmp_path: Path, release: Release) -> None:
    settings = table(cohort=CohortTable(devices=1, min_devices=1, over_selection=0, task_s=10.0))
    step = [0.0]

    async def play() -> list[str]:
        async with gateway(tmp_path, release, settings, monotonic=lambda: time.monotonic() + step[0]) as gate:
            await gate.ask(replace(TASK, timeout_s=10 * PATIENT_S))
            before = [await kind_of_answer(gate, name, release) for name in ("slow", "next")]
            step[0] = 10.0
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


def test_a_phone_that_declines_while_its_answer_is_added_up_is_counted_once(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding, device = Adding(monkeypatch), device_of(release)

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("eve", device) as phone:
            await gate.ask(TASK)
            task = (await phone.check_in()).task
            first = asyncio.create_task(phone.train(task, release))
            await until(adding.begun.is_set)
            await phone.check_in(eligible=False)
            again = (await phone.check_in()).task.id
            adding.go.set()
            assert (again, (await first).outcome) == (task.id, wire.UploadReply.ACCEPTED)
            assert (await phone.visit()).why == "DONE"
            assert (gate.cohort.accepted, gate.counts()) == (1, {"accepted": 1})

    asyncio.run(play())


def test_an_answer_sent_again_while_it_closes_the_cohort_is_accepted_both_times(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a phone does whose connection broke."""
    adding, device = Adding(monkeypatch), device_of(release)

    async def play() -> None:
        async with gateway(tmp_path, release, table(devices=1)) as gate, gate.phone("ann", device) as phone:
            answer = await gate.ask(TASK)
            task = (await phone.check_in()).task
            first = asyncio.create_task(phone.train(task, release))
            await until(adding.begun.is_set)
            second = asyncio.create_task(phone.train(task, release))
            await until(gate.cohort._waiting.qsize)
            adding.go.set()
            assert [(await each).outcome for each in (first, second)] == [wire.UploadReply.ACCEPTED] * 2
            assert ((await answer).devices, gate.counts()) == (1, {"accepted": 1})

    asyncio.run(play())


def test_an_answer_whose_task_is_not_open_any_more_comes_into_no_sum(tmp_path: Path, release: Release) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("eve", device_of(release)) as phone:
            await gate.ask(TASK)
            task, ledger = (await phone.check_in()).task, gate.open.gateway._ledger
            ledger.set_outcome(task.id, Outcome.DECLINED)
            with pytest.raises(FleetError, match="0 of 1 tasks are open"):
                ledger.settle(1, [Settled(task=task.id, outcome=Outcome.ACCEPTED)], "{}", "1-1.npy")
            assert (ledger.newest().sums, gate.counts()) == ("", {"declined": 1})

    asyncio.run(play())


def test_an_upload_that_is_dropped_while_it_is_read_is_empty(tmp_path: Path) -> None:
    """So that its own answer is refused, and not all that are added up with it."""
    spool = Spool(tmp_path / "spool", 100)
    spool.append("a", b"content")
    (tmp_path / "spool/a").unlink()
    assert spool.read("a") == b""


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


@pytest.mark.parametrize(("share", "outcome"), [(0.999, "ACCEPTED"), (1.01, "REJECTED")])
def test_an_update_beyond_the_clip_is_rejected(tmp_path: Path, release: Release, share: float, outcome: str) -> None:
    device = device_of(release, seed=1)
    clip = l2_norm(device.train(TASK, release).delta) / share

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device) as phone:
            await gate.ask(replace(TASK, clip_norm=clip))
            task = (await phone.check_in()).task
            update = device.train(TASK, release)  # as a device that does not clip
            content = to_content(update.delta, release.adapter.layout.shapes)
            reply = await phone.upload(upload_head(task, update, content), content)
            assert wire.UploadReply.Outcome.Name(reply.outcome) == outcome

    asyncio.run(play())


@pytest.mark.parametrize("weights", ["tokens", "examples"])
@pytest.mark.parametrize(("share", "outcome"), [(1.0, "ACCEPTED"), (1.01, "REJECTED")])
def test_a_weight_beyond_the_bound_is_rejected(
    tmp_path: Path, release: Release, weights: str, share: float, outcome: str
) -> None:
    weight = share * MAX_WEIGHT
    device = replace(device_of(release), weight=weight if weights == "tokens" else 9.0)
    device = replace(device, counters=DraftCounters(prompts=int(weight) if weights == "examples" else 1))

    async def play() -> None:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device) as phone:
            await gate.ask(TASK, weights=weights)
            assert (await phone.visit()).outcome == outcome

    asyncio.run(play())


def test_there_are_no_more_families_than_the_server_takes(release: Release) -> None:
    """A family is a device's own word; else each could have one, and memory would grow with them."""
    ask = Ask("evaluate", TASK, release, SumTerms(weights="equal", devices=1000))
    running = PartialSum(replace(ask, task=EvaluateTask(round=1, seed=7, timeout_s=1.0)), 1)
    for number in range(MAX_FAMILIES):
        running.measure(Evaluation(client="any", family=f"f{number}", counters=DraftCounters()))
    running.measure(Evaluation(client="any", family="f0", counters=DraftCounters()))
    with pytest.raises(UpdateRejected, match="one more than"):
        running.measure(Evaluation(client="any", family="another", counters=DraftCounters()))
    assert running.devices == MAX_FAMILIES + 1


def test_phones_that_came_together_are_told_different_times(tmp_path: Path, release: Release) -> None:
    async def play() -> list[float]:
        async with gateway(tmp_path, release) as gate, gate.phone("ann", device_of(release)) as phone:
            return [(await phone.check_in()).come_back.after_s for _ in range(20)]

    waits = asyncio.run(play())
    assert len(set(waits)) == 20
    assert all(0.25 <= wait <= 0.75 for wait in waits)  # half to one and a half times least_s


@pytest.mark.parametrize(("timeout_s", "margin_s"), [(30.0, 3.0), (3000.0, 30.0)])
def test_a_cohort_closes_before_flower_stops_to_wait(
    tmp_path: Path, release: Release, timeout_s: float, margin_s: float
) -> None:
    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            await gate.ask(replace(TASK, timeout_s=timeout_s))
            entry = gate.cohort.entry
            assert entry.closes - entry.opened == pytest.approx(timeout_s - margin_s)

    asyncio.run(play())


def test_an_answer_beyond_those_that_were_wanted_is_late(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it that it is added up together with the last one."""
    adding, devices = Adding(monkeypatch), [device_of(release, name=f"p{i}", seed=i) for i in range(3)]
    settings = table(cohort=CohortTable(devices=2, min_devices=1, over_selection=0.5))

    async def play() -> None:
        async with gateway(tmp_path, release, settings) as gate, contextlib.AsyncExitStack() as stack:
            answer = await gate.ask(TASK)
            phones = [await stack.enter_async_context(gate.phone(device.client, device)) for device in devices]
            visits = [asyncio.create_task(phones[0].visit())]
            await until(adding.begun.is_set)
            visits += [asyncio.create_task(phone.visit()) for phone in phones[1:]]
            await until(lambda: gate.cohort._waiting.qsize() == 2)
            adding.go.set()
            outcomes = [(await visit).outcome for visit in visits]
            assert sorted(outcomes) == ["ACCEPTED", "ACCEPTED", "LATE"]
            assert ((await answer).devices, gate.counts()) == (2, {"accepted": 2, "late": 1})

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
