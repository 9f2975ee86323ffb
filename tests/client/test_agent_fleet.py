"""What an agent does for a fleet: by consent, where it may, once; releases whole or not at all; purged when asked."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from agents import PLUGGED, asked, device, noisy, sense, text, until, update_request

from fleetdraft.client.agent.agent import Agent
from fleetdraft.client.agent.bridge import AgentDevice
from fleetdraft.client.agent.codec import delta_of
from fleetdraft.client.agent.fleet import Work
from fleetdraft.client.agent.releases import pull, release_head
from fleetdraft.client.bundle import Bundle
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.errors import FleetdraftError, UserError
from fleetdraft.common.messages import EvaluateTask, Release, TrainTask
from fleetdraft.common.wire import device_pb2 as wire
from fleetdraft.common.wire.device_pb2_grpc import DeviceStub

Code = grpc.StatusCode
LONG = {"learning": {"prompts_per_round": 500, "every_prompts": 1, "steps": 4, "batch_size": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "device"


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[Agent, DeviceStub]]:
    with asked(device(folder)) as both:
        yield both


@pytest.fixture
def long(folder: Path) -> Iterator[tuple[Agent, DeviceStub]]:
    """An agent whose training for the fleet takes minutes, and that is in."""
    with asked(device(folder, LONG)) as (agent, stub):
        stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
        yield agent, stub


def refused(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        list(call) if hasattr(call, "__iter__") else call()
    assert "\n" not in error.value.details()
    return error.value.code(), error.value.details()


def answer(events) -> tuple[wire.UpdateHead, bytes]:
    events = list(events)
    (head,) = [event.head for event in events if event.WhichOneof("what") == "head"]
    return head, b"".join(event.data for event in events)


def status(stub: DeviceStub) -> wire.StatusReply:
    return stub.Status(wire.StatusRequest(), timeout=20)


# --- consent and eligibility ----------------------------------------------------------------------------------------


def test_nothing_is_trained_until_the_user_opts_in(served: tuple[Agent, DeviceStub], bundle: Bundle) -> None:
    _, stub = served
    told = status(stub)
    assert (told.participates, told.eligible) == (False, False)
    assert "participation is off" in told.refusals[0]
    code, line = refused(stub.PushUpdate(update_request(bundle.adapter(), bundle.base), timeout=60))
    assert code is Code.FAILED_PRECONDITION
    assert "participation is off" in line


def test_consent_outlives_the_agent_and_can_be_withdrawn(folder: Path, bundle: Bundle) -> None:
    settings = device(folder)
    with asked(settings) as (_, stub):
        assert stub.Participate(wire.ParticipateRequest(participate=True), timeout=20).participates
        assert status(stub).eligible
    with asked(settings) as (_, stub):
        assert status(stub).participates
        assert not stub.Participate(wire.ParticipateRequest(), timeout=20).participates
    with asked(settings) as (_, stub):
        assert not status(stub).participates


def test_a_device_that_may_not_train_says_why(served: tuple[Agent, DeviceStub], folder: Path, bundle: Bundle) -> None:
    agent, stub = served
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    sense(folder, **PLUGGED | {"charging": False, "metered": None})
    agent._watch.look()
    told = status(stub)
    assert not told.eligible
    assert list(told.refusals) == [
        "the device is on battery",
        "whether the network is metered is not known, and unknown is 'refuse'",
    ]
    code, line = refused(stub.PushUpdate(update_request(bundle.adapter(), bundle.base), timeout=60))
    assert (code, line) == (Code.FAILED_PRECONDITION, "not eligible now: " + "; ".join(told.refusals))


def stopped(stub: DeviceStub, bundle: Bundle, stop) -> tuple[grpc.StatusCode, str]:
    """How training that was begun ended by ``stop``."""
    events = stub.PushUpdate(update_request(bundle.adapter(), bundle.base), timeout=120)
    next(event for event in events if event.progress.done > 1)
    stop()
    return refused(events)


def test_unplugging_stops_training_under_way_and_keeps_the_state(
    long: tuple[Agent, DeviceStub], folder: Path, bundle: Bundle
) -> None:
    _, stub = long
    text(stub, "def a(", max_new_tokens=8)
    before = status(stub)
    code, line = stopped(stub, bundle, lambda: sense(folder, **PLUGGED | {"charging": False}))
    assert (code, line) == (Code.FAILED_PRECONDITION, "training was stopped: the device is on battery")
    after = status(stub)
    assert not after.training
    assert (after.lessons, after.release_digest) == (before.lessons, before.release_digest)
    assert text(stub, "def a(", max_new_tokens=8)[0]


def test_a_stopping_agent_lets_texts_end_while_work_for_the_fleet_does(served: tuple[Agent, DeviceStub]) -> None:
    agent, stub = served
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    ends = threading.Event()
    job = agent.fleet.ask(Work(id="one", content=b"", run=lambda check, tell: bytes(ends.wait(60))))
    drained = threading.Event()
    threading.Thread(target=lambda: drained.set() if agent.drain(10) else None, daemon=True).start()
    assert drained.wait(20)
    assert not job.ended
    ends.set()
    until(lambda: job.ended)
    assert "the agent is stopping" in str(job.error)


def test_opting_out_ends_training_under_way(long: tuple[Agent, DeviceStub], bundle: Bundle) -> None:
    _, stub = long
    out = wire.ParticipateRequest(participate=False)
    code, line = stopped(stub, bundle, lambda: stub.Participate(out, timeout=60))
    assert (code, line) == (Code.FAILED_PRECONDITION, "training was stopped: participation was switched off")


def test_learning_for_the_device_alone_stops_when_unplugged_and_goes_on_when_plugged_in(
    folder: Path, prompts: list[Prompt]
) -> None:
    sense_local = {"eligibility.local": {"charging": True}}
    settings = device(folder, sense_local)
    sense(folder, **PLUGGED | {"charging": False})
    with asked(settings) as (agent, stub):
        for prompt in prompts[:5]:
            text(stub, prompt.text, max_new_tokens=16)
        told = status(stub)
        assert (told.training_steps, list(told.learning_refusals)) == (0, ["the device is on battery"])
        assert agent.engine._learning.learner.due
        sense(folder, **PLUGGED)
        until(lambda: status(stub).training_steps > 0)
        assert not status(stub).learning_refusals


# --- updates --------------------------------------------------------------------------------------------------------


def test_an_update_is_that_of_the_device_without_an_agent(
    served: tuple[Agent, DeviceStub], folder: Path, bundle: Bundle, prompts: list[Prompt]
) -> None:
    """Whatever the agent has learned for itself; and nothing of the training is in force afterwards."""
    agent, stub = served
    for prompt in prompts[:3]:  # one less than brings training, which would put another adapter in force
        text(stub, prompt.text, max_new_tokens=8)
    release = Release(number=1, adapter=noisy(bundle.adapter()), base=bundle.base)
    task = TrainTask(round=1, seed=3)
    expected = agent.device.participant().train(task, release)
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    in_force = agent.bundle.drafter.model.lora
    head, content = answer(stub.PushUpdate(update_request(release.adapter, bundle.base), timeout=120))
    delta = delta_of(head, content)
    assert delta.keys() == expected.delta.keys()
    assert all(np.array_equal(delta[name], value) for name, value in expected.delta.items())
    assert (head.weight, head.steps, head.release) == (expected.weight, expected.training.steps, release.adapter.digest)
    assert agent.bundle.drafter.model.lora is in_force


def test_work_that_is_asked_for_again_is_done_once_also_by_the_next_process(folder: Path, bundle: Bundle) -> None:
    settings, request = device(folder), update_request(bundle.adapter(), bundle.base)
    begun = list[str]()

    def counted(agent: Agent) -> None:
        participant = agent._participant
        agent._participant = lambda check, tell: [begun.append("a training"), participant(check, tell)][1]  # type: ignore[method-assign, return-value, func-returns-value]

    with asked(settings) as (agent, stub):
        counted(agent)
        stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
        first = answer(stub.PushUpdate(request, timeout=120))
        assert answer(stub.PushUpdate(request, timeout=120)) == first
    with asked(settings) as (agent, stub):
        counted(agent)
        assert answer(stub.PushUpdate(request, timeout=120)) == first
        assert begun == ["a training"]
        other = update_request(bundle.adapter(), bundle.base, seed=4)
        assert refused(stub.PushUpdate(other, timeout=60))[0] is Code.ALREADY_EXISTS
        stub.Participate(wire.ParticipateRequest(participate=False), timeout=20)
        assert refused(stub.PushUpdate(request, timeout=60))[0] is Code.FAILED_PRECONDITION


def test_who_asks_while_the_work_is_done_gets_the_same_answer_and_other_work_is_refused(
    served: tuple[Agent, DeviceStub], bundle: Bundle
) -> None:
    agent, stub = served
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    answers = list[tuple[wire.UpdateHead, bytes]]()
    request = update_request(bundle.adapter(), bundle.base)
    with agent.engine.turns.take():  # training waits for its turn meanwhile
        askers = [
            threading.Thread(target=lambda: answers.append(answer(stub.PushUpdate(request, timeout=120))))
            for _ in range(2)
        ]
        for asker in askers:
            asker.start()
        until(lambda: agent.fleet.training)
        other = update_request(bundle.adapter(), bundle.base, id="two")
        assert refused(stub.PushUpdate(other, timeout=60))[0] is Code.RESOURCE_EXHAUSTED
    for asker in askers:
        asker.join(60)
    assert len(answers) == 2
    assert answers[0] == answers[1]


def test_only_the_newest_answers_are_kept(served: tuple[Agent, DeviceStub], bundle: Bundle) -> None:
    agent, stub = served
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    for number in range(3):
        measure = update_request(bundle.adapter(), bundle.base, id=str(number), work=wire.PushUpdateRequest.EVALUATE)
        assert answer(stub.PushUpdate(measure, timeout=60))[0].drafting.prompts == 2
    assert len([blob for blob in agent._state.blobs() if blob.name.startswith("agent/answers/")]) == 2


WRONG_UPDATES = [
    ({"id": ""}, Code.INVALID_ARGUMENT, "id has 0 characters"),
    ({"work": 0}, Code.INVALID_ARGUMENT, "work is 0"),
    ({"factors": ["C"]}, Code.INVALID_ARGUMENT, "factors"),
    ({"clip_norm": 0.0}, Code.INVALID_ARGUMENT, "clip_norm"),
    ({"adapter": b"broken"}, Code.INVALID_ARGUMENT, "an adapter is damaged"),
    ({"adapter": b""}, Code.FAILED_PRECONDITION, "is not in force here; send its adapter"),
]


def test_wrong_requests_for_an_update_are_one_line_each_and_train_nothing(
    served: tuple[Agent, DeviceStub], bundle: Bundle
) -> None:
    agent, stub = served
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    for fields, code, line in WRONG_UPDATES:
        request = update_request(bundle.adapter(), bundle.base)
        for name, value in fields.items():
            request.ClearField(name)
            if name == "factors":
                request.factors.extend(value)  # type: ignore[arg-type]
            else:
                setattr(request, name, value)
        assert (code, True) == ((found := refused(stub.PushUpdate(request, timeout=60)))[0], line in found[1]), found
    other = update_request(bundle.adapter(), "another base")
    assert refused(stub.PushUpdate(other, timeout=60))[0] is Code.FAILED_PRECONDITION
    assert not agent.fleet.training


# --- releases -------------------------------------------------------------------------------------------------------


def test_a_release_is_in_force_and_stays(folder: Path, bundle: Bundle) -> None:
    settings, release = device(folder), noisy(bundle.adapter())
    with asked(settings) as (_, stub):
        text(stub, "def a(", max_new_tokens=8)
        assert pull(stub, 7, release, bundle.base).changed
        assert not pull(stub, 7, release, bundle.base).changed
    with asked(settings) as (_, stub):
        told = status(stub)
        assert (told.release, told.release_digest) == (7, release.digest)
        stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
        request = update_request(release, bundle.base)
        request.ClearField("adapter")  # it is in force here
        assert answer(stub.PushUpdate(request, timeout=120))[0].release == release.digest


def test_a_release_waits_for_no_text(served: tuple[Agent, DeviceStub], bundle: Bundle) -> None:
    """Not even for one whose program thinks; that goes on, and teaches."""
    agent, stub = served
    target, answers = bundle.pair("spm").target, queue.SimpleQueue[wire.FeedbackRequest]()
    begin = wire.FeedbackBegin(target="spm", prompt="def a(", context_limit=64, options=wire.Options(max_new_tokens=9))
    answers.put(wire.FeedbackRequest(begin=begin))
    call = stub.Feedback(iter(answers.get, None), timeout=60)
    for event in call:
        if event.WhichOneof("what") == "score":
            if not agent.release[0]:
                assert pull(stub, 3, noisy(bundle.adapter()), bundle.base).changed
            target.rewind(event.score.keep)
            rows = target.score(list(event.score.token_ids), event.score.rows)
            answers.put(wire.FeedbackRequest(scores=wire.Scores(logits=np.ascontiguousarray(rows, "<f4").tobytes())))
    assert event.finished.learned
    assert (status(stub).release, status(stub).lessons) == (3, 1)


def test_a_kill_between_a_release_and_its_number_loses_neither(
    served: tuple[Agent, DeviceStub], bundle: Bundle
) -> None:
    agent, stub = served
    release = noisy(bundle.adapter())
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    pull(stub, 7, release, bundle.base)
    agent._state.delete("agent/release")  # written behind the release
    assert (status(stub).release, status(stub).release_digest) == (0, release.digest)
    AgentDevice(agent.device).train(TrainTask(round=1, seed=1), Release(number=7, adapter=release, base=bundle.base))
    assert (status(stub).release, status(stub).release_digest) == (7, release.digest)
    assert not pull(stub, 0, release, bundle.base).changed  # by somebody who does not know the number
    assert status(stub).release == 7


def test_a_release_is_taken_only_where_the_device_may_learn(folder: Path, bundle: Bundle) -> None:
    """To re-base what was learned takes the drafter's training graph."""
    settings, release = device(folder, {"eligibility.local": {"charging": True}}), noisy(bundle.adapter())
    with asked(settings) as (agent, stub):
        stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
        sense(folder, **PLUGGED | {"charging": False})
        until(lambda: bool(status(stub).learning_refusals))
        code, line = refused(lambda: pull(stub, 3, release, bundle.base))
        assert (code, line) == (
            Code.FAILED_PRECONDITION,
            "a release is taken where the device may learn: the device is on battery",
        )
        with pytest.raises(UserError, match="^not eligible now: the device is on battery$"):
            AgentDevice(agent.device).train(
                TrainTask(round=1, seed=1), Release(number=3, adapter=release, base=bundle.base)
            )
        assert status(stub).release_digest == ""
        sense(folder, **PLUGGED)
        until(lambda: not status(stub).learning_refusals)
        assert pull(stub, 3, release, bundle.base).changed


@pytest.mark.parametrize("what", ["base", "layout", "digest", "torn", "too long", "no head"])
def test_a_release_that_is_not_what_it_says_changes_nothing(
    served: tuple[Agent, DeviceStub], bundle: Bundle, what: str
) -> None:
    _, stub = served
    release = noisy(bundle.adapter())
    head, data = release_head(1, release, bundle.base), release.to_bytes()
    if what in ("base", "layout", "digest"):
        setattr(head, what, "another")
    data = {"torn": data[: len(data) // 2], "too long": data * 2}.get(what, data)
    requests = [wire.PullReleaseRequest(head=head), wire.PullReleaseRequest(data=data)][what == "no head" :]
    code, line = refused(lambda: stub.PullRelease(iter(requests), timeout=60))
    expected = Code.FAILED_PRECONDITION if what in ("base", "layout") else Code.INVALID_ARGUMENT
    assert code is expected, line
    assert status(stub).release_digest == ""


# --- purge ----------------------------------------------------------------------------------------------------------


def test_a_purge_of_the_texts_leaves_what_was_learned(served: tuple[Agent, DeviceStub], bundle: Bundle) -> None:
    _, stub = served
    pull(stub, 1, noisy(bundle.adapter()), bundle.base)
    text(stub, "def a(", max_new_tokens=8)
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    stub.Purge(wire.PurgeRequest(what=wire.PurgeRequest.TEXTS), timeout=60)
    told = status(stub)
    assert (told.lessons, told.release, told.participates) == (0, 1, True)
    assert text(stub, "def a(", max_new_tokens=8)[1].learned


def test_a_purge_of_everything_leaves_nothing_not_even_the_consent(
    long: tuple[Agent, DeviceStub], bundle: Bundle
) -> None:
    """Also while a text is written and an update is trained: both end."""
    agent, stub = long
    text(stub, "def a(", max_new_tokens=8)
    updates = stub.PushUpdate(update_request(bundle.adapter(), bundle.base), timeout=120)
    next(updates)
    call = stub.Generate(wire.GenerateRequest(prompt="def a(", options=wire.Options(max_new_tokens=400)))
    next(call)
    assert stub.Purge(wire.PurgeRequest(what=wire.PurgeRequest.ALL), timeout=60).freed_bytes > 0
    assert refused(updates)[0] is Code.FAILED_PRECONDITION
    until(lambda: agent.engine.admission.active == 0)
    told = status(stub)
    assert (told.lessons, told.participates, told.targets[0].counters.prompts) == (0, False, 0)
    assert b"def a" not in b"".join(path.read_bytes() for path in (agent.device.folder / "state").iterdir())
    assert text(stub, "def a(", max_new_tokens=8)[1].learned


def test_a_purge_does_not_wait_for_a_program_that_thinks(served: tuple[Agent, DeviceStub]) -> None:
    agent, stub = served
    closing = threading.Event()

    def requests() -> Iterator[wire.FeedbackRequest]:
        yield wire.FeedbackRequest(begin=wire.FeedbackBegin(target="spm", prompt="def a(", context_limit=64))
        closing.wait(60)

    call = stub.Feedback(requests(), timeout=60)
    assert next(call).WhichOneof("what") == "score"
    stub.Purge(wire.PurgeRequest(what=wire.PurgeRequest.ALL), timeout=20)
    assert refused(call)[0] is Code.CANCELLED
    closing.set()
    until(lambda: agent.engine.admission.active == 0)
    assert text(stub, "def a(", max_new_tokens=8)[1].learned


def test_a_purge_says_what_it_is_to_forget(served: tuple[Agent, DeviceStub]) -> None:
    _, stub = served
    assert refused(lambda: stub.Purge(wire.PurgeRequest(), timeout=60))[0] is Code.INVALID_ARGUMENT


# --- the bridge of Flower's ClientApp -------------------------------------------------------------------------------


def test_the_bridge_answers_as_the_device_itself(served: tuple[Agent, DeviceStub], bundle: Bundle) -> None:
    agent, stub = served
    bridge, release = AgentDevice(agent.device), Release(number=4, adapter=noisy(bundle.adapter()), base=bundle.base)
    task, measured = TrainTask(round=2, seed=3, factors=("B",), clip_norm=0.05), EvaluateTask(round=2, seed=3)
    with pytest.raises(UserError, match="participation is off"):
        bridge.train(task, release)
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    expected = agent.device.participant().train(task, release)
    update = bridge.train(task, release)
    assert (update.client, update.family, update.layout) == ("ann", "spm-3072", expected.layout)
    assert all(np.array_equal(update.delta[name], value) for name, value in expected.delta.items())
    assert update.training == expected.training
    assert status(stub).release == 4  # what a round starts from is in force, and the guard watches it
    evaluation = bridge.evaluate(measured, release)
    wanted = agent.device.participant().evaluate(measured, release)
    assert (evaluation.counters.accepted, evaluation.counters.tokens) == (
        wanted.counters.accepted,
        wanted.counters.tokens,
    )


def test_the_same_task_from_another_release_is_other_work(served: tuple[Agent, DeviceStub], bundle: Bundle) -> None:
    agent, stub = served
    stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
    bridge, adapter, measured = AgentDevice(agent.device), bundle.adapter(), EvaluateTask(round=1, seed=3)
    for each in (adapter, noisy(adapter, 1.0)):
        release = Release(number=1, adapter=each, base=bundle.base)
        wanted = agent.device.participant().evaluate(measured, release)
        assert bridge.evaluate(measured, release).counters.accepted == wanted.counters.accepted


def test_the_bridge_says_in_one_line_that_no_agent_answers(tmp_path: Path, bundle: Bundle) -> None:
    release = Release(number=0, adapter=bundle.adapter(), base=bundle.base)
    with pytest.raises(FleetdraftError, match="no agent answers at .*; start it with: fleetdraft agent start"):
        AgentDevice(device(tmp_path / "d")).train(TrainTask(round=1, seed=1), release)


def test_an_agent_without_prompts_cannot_train_for_a_fleet_and_says_so(folder: Path, bundle: Bundle) -> None:
    settings = device(folder, {"": {"name": "ann", "target": "spm"}})
    with asked(settings) as (_, stub):
        stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
        code, line = refused(stub.PushUpdate(update_request(bundle.adapter(), bundle.base), timeout=60))
        assert code is Code.INVALID_ARGUMENT
        assert "key 'prompts' is missing" in line
