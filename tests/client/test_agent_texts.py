"""The agent's texts over its socket: those of the library, several at once, each ended when nobody waits for it."""

import contextlib
import json
import queue
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from agents import asked, channel, device, dialogue, sense, text, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fleetdraft.client.agent import server
from fleetdraft.client.agent.address import grpc_address
from fleetdraft.client.agent.agent import Agent
from fleetdraft.client.agent.codec import counters_of
from fleetdraft.client.agent.server import SERVICE
from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.decoding.sampling import Sampling
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.spelling.text import ReadText, TextCodec
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.wire import device_pb2 as wire
from fleetdraft.common.wire.device_pb2_grpc import DeviceStub

Code = grpc.StatusCode


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """Of this file alone: other tests leave their adapters in the drafter that they share."""
    return Bundle.open(EMBEDDED)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, DeviceStub]]:
    """Its learner sees texts, and is not plugged in: what drafts stays what it is."""
    tables = {"agent": {"also": ["bpe1"], "texts": 8, "waiting": 4}, "eligibility.local": {"charging": True}}
    settings = device(tmp_path_factory.mktemp("agent"), tables)
    sense(settings.folder, charging=False)
    with asked(settings) as both:
        yield both


@pytest.fixture
def agent(served: tuple[Agent, DeviceStub]) -> Agent:
    return served[0]


@pytest.fixture
def stub(served: tuple[Agent, DeviceStub]) -> DeviceStub:
    return served[1]


@pytest.mark.parametrize("target", ["spm", "bpe1"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("learn", [True, False])
def test_a_text_is_that_of_the_library(
    stub: DeviceStub, bundle: Bundle, prompts: list[Prompt], target: str, temperature: float, learn: bool
) -> None:
    options = Options(sampling=Sampling(temperature=temperature), max_new_tokens=40, seed=5)
    expected = bundle.pair(target).drafted.run(prompts[0].text, options)
    settings = {"temperature": temperature, "max_new_tokens": 40, "seed": 5, "target": target, "learn": learn}
    written, finished = text(stub, prompts[0].text, **settings)
    assert written == expected.text
    counted, wanted = finished.counters, expected.counters
    assert counters_of(counted) == replace(wanted, seconds=counted.seconds)
    assert finished.first_piece_s > 0
    assert finished.learned == (learn and target == "spm")


def test_eight_texts_at_once_are_those_of_the_target_alone(
    agent: Agent, stub: DeviceStub, bundle: Bundle, prompts: list[Prompt]
) -> None:
    pair, options = bundle.pair("spm"), Options(max_new_tokens=48)
    most = 0

    def write(prompt: Prompt) -> str:
        nonlocal most
        written, _ = text(stub, prompt.text, max_new_tokens=48)
        most = max(most, agent.engine.admission.active)
        return written

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(write, prompts[:16]))
    assert texts == [pair.alone.run(prompt.text, options).text for prompt in prompts[:16]]
    assert most > 1


def test_token_events_are_the_texts_blocks(stub: DeviceStub, bundle: Bundle, prompts: list[Prompt]) -> None:
    request = wire.GenerateRequest(
        prompt=prompts[1].text, options=wire.Options(max_new_tokens=30), token_events=True, learn=False
    )
    events = list(stub.Generate(request, timeout=60))
    blocks = [event.tokens for event in events if event.WhichOneof("what") == "tokens"]
    expected = bundle.pair("spm").drafted.run(prompts[1].text, Options(max_new_tokens=30))
    assert tuple(token for block in blocks for token in block.token_ids) == expected.token_ids
    assert sum(block.accepted for block in blocks) == events[-1].finished.counters.accepted > 0
    assert sum(block.proposed for block in blocks) == events[-1].finished.counters.drafted


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_new_tokens": 7}, wire.Finished.LENGTH),
        ({"max_new_tokens": 400, "stop": ["return"]}, wire.Finished.STOP),
        ({"max_new_tokens": 5000}, wire.Finished.CONTEXT),
    ],
)
def test_the_end_of_a_text_says_why_it_ended(stub: DeviceStub, bundle: Bundle, settings, reason: int) -> None:
    prompt = "def parse(self, text):\n"
    options = Options(max_new_tokens=settings["max_new_tokens"], stop=tuple(settings.get("stop", ())))
    expected = bundle.pair("spm").drafted.run(prompt, options)
    written, finished = text(stub, prompt, learn=False, **settings)
    assert (written, finished.reason) == (expected.text, reason)
    assert wire.Finished.Reason.Name(reason).lower().startswith(expected.finish_reason[:4])


def test_a_text_of_the_learner_becomes_one_lesson_and_one_that_may_not_teach_none(stub: DeviceStub) -> None:
    def lessons() -> int:
        return stub.Status(wire.StatusRequest(), timeout=20).lessons

    before = lessons()
    text(stub, "def a(self):\n", max_new_tokens=8)
    assert lessons() == before + 1
    text(stub, "def a(self):\n", max_new_tokens=8, learn=False)
    text(stub, "def a(self):\n", max_new_tokens=8, target="bpe1")
    text(stub, "def a(self):\n", max_new_tokens=8, draft_tokens=0)
    assert lessons() == before + 1


@pytest.mark.parametrize("workers", [1, 3])
def test_eight_texts_at_once_all_teach_what_they_teach_one_after_the_other(
    tmp_path: Path, prompts: list[Prompt], workers: int
) -> None:
    def lessons(name: str, at_once: int) -> list[bytes]:
        tables = {"agent": {"workers": workers}, "eligibility.local": {"charging": True}}
        settings = device(tmp_path / name, tables)
        sense(settings.folder, charging=False)
        with asked(settings) as (agent, stub), ThreadPoolExecutor(at_once) as pool:
            ends = list(pool.map(lambda prompt: text(stub, prompt.text, max_new_tokens=24)[1], prompts[:16]))
            assert all(finished.learned for finished in ends)
            assert stub.Status(wire.StatusRequest(), timeout=20).lessons == 16
            held = agent.engine._learning.learner.lessons.values()
            return sorted(replace(lesson, written=0.0).to_bytes() for lesson in held)

    found = lessons("together", 8)
    assert len(set(found)) == 16
    assert found == lessons("alone", 1)


def test_a_cancelled_text_teaches_what_was_accepted(tmp_path: Path, prompts: list[Prompt]) -> None:
    settings = device(tmp_path / "d", {"eligibility.local": {"charging": True}})
    sense(settings.folder, charging=False)
    with asked(settings) as (agent, stub):
        request = wire.GenerateRequest(
            prompt=prompts[0].text, options=wire.Options(max_new_tokens=120), token_events=True
        )
        calls, tokens = [stub.Generate(request) for _ in range(3)], list[int]()
        for event in calls[0]:
            tokens += event.tokens.token_ids
            if len(tokens) > 8:
                break
        for call in calls:
            call.cancel()
        until(lambda: agent.engine.admission.active == 0)
        held, pair = agent.engine._learning.learner.lessons.values(), agent.targets.first.pair
        begins = pair.spelling.context([*pair.target_codec.prompt_tokens(prompts[0].text), *tokens])
        assert any(lesson.tokens[: len(begins)].tolist() == begins for lesson in held)
        assert stub.Status(wire.StatusRequest(), timeout=20).targets[0].counters.prompts == len(held)


def test_a_cancelled_text_ends_and_makes_room(agent: Agent, stub: DeviceStub) -> None:
    before = stub.Status(wire.StatusRequest(), timeout=20).targets[0].counters.prompts
    calls = [
        stub.Generate(wire.GenerateRequest(prompt="def a(", options=wire.Options(max_new_tokens=500))) for _ in "ab"
    ]
    for call in calls:
        next(call)
        call.cancel()
    until(lambda: agent.engine.admission.active == 0)
    assert text(stub, "def a(", max_new_tokens=4)[0]
    assert stub.Status(wire.StatusRequest(), timeout=20).targets[0].counters.prompts == before + 3


def test_a_deadline_ends_a_text(agent: Agent, stub: DeviceStub) -> None:
    request = wire.GenerateRequest(prompt="def a(", options=wire.Options(max_new_tokens=500))
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(request, timeout=0.1))
    assert error.value.code() is Code.DEADLINE_EXCEEDED
    until(lambda: agent.engine.admission.active == 0)


def test_one_text_more_than_may_wait_is_refused_and_the_others_are_written(agent: Agent, stub: DeviceStub) -> None:
    request = wire.GenerateRequest(prompt="def a(", options=wire.Options(max_new_tokens=200))
    with agent.engine.turns.take():  # nobody writes meanwhile
        calls = [stub.Generate(request) for _ in range(12)]
        until(lambda: (agent.engine.admission.active, agent.engine.admission.waiting) == (8, 4))
        with pytest.raises(grpc.RpcError) as error:
            list(stub.Generate(request))
        assert error.value.code() is Code.RESOURCE_EXHAUSTED
        status = stub.Status(wire.StatusRequest(), timeout=20)
        assert (status.texts_active, status.texts_waiting) == (8, 4)
    texts = {"".join(event.piece for event in call) for call in calls}
    assert len(texts) == 1


WRONG = [
    ({"prompt": "x", "target": "nobody"}, Code.INVALID_ARGUMENT, "target is 'nobody', expected one of spm, bpe1"),
    ({"prompt": "x", "target": "bpe3"}, Code.INVALID_ARGUMENT, "expected one of spm, bpe1"),
    ({"prompt": ""}, Code.INVALID_ARGUMENT, "prompt is empty"),
    ({"prompt": "a b " * 400}, Code.INVALID_ARGUMENT, "the prompt has 802 tokens, expected 1 to 511"),
    ({"prompt": "a b " * 20000}, Code.INVALID_ARGUMENT, "prompt has 80000 bytes, expected at most"),
    ({"prompt": "x", "temperature": -1.0}, Code.INVALID_ARGUMENT, "temperature is -1.0"),
    ({"prompt": "x", "temperature": float("nan")}, Code.INVALID_ARGUMENT, "temperature is nan"),
    ({"prompt": "x", "top_p": 2.0}, Code.INVALID_ARGUMENT, "top_p is 2.0"),
    ({"prompt": "x", "draft_tokens": 1000}, Code.INVALID_ARGUMENT, "draft_tokens is 1000"),
    ({"prompt": "x", "controller": "best"}, Code.INVALID_ARGUMENT, "best"),
    ({"prompt": "x", "stop": ["y"] * 17}, Code.INVALID_ARGUMENT, "stop has 17 strings of up to 1 characters"),
    ({"prompt": "x", "stop": ["y" * 129]}, Code.INVALID_ARGUMENT, "stop has 1 strings of up to 129 characters"),
    ({"prompt": "x", "stop": [""]}, Code.INVALID_ARGUMENT, "a stop string is ''"),
]


@pytest.mark.parametrize(("request_", "code", "line"), WRONG)
def test_wrong_input_is_one_line_with_its_code_and_changes_nothing(
    agent: Agent, stub: DeviceStub, request_, code, line: str
) -> None:
    before = stub.Status(wire.StatusRequest(), timeout=20)
    with pytest.raises(grpc.RpcError) as error:
        text(stub, **dict(request_))
    assert error.value.code() is code
    assert line in error.value.details()
    assert "\n" not in error.value.details()
    after = stub.Status(wire.StatusRequest(), timeout=20)
    assert (after.lessons, after.texts_active) == (before.lessons, 0)


# --- a target that the program runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("target", "learn"), [("spm", True), ("spm", False), ("bpe1", True), ("bpe3", True)])
def test_a_program_with_a_target_of_its_own_gets_the_same_text(
    stub: DeviceStub, bundle: Bundle, prompts: list[Prompt], temperature: float, target: str, learn: bool
) -> None:
    pair = bundle.pair(target)
    options = Options(sampling=Sampling(temperature=temperature), max_new_tokens=32, seed=7)
    expected = pair.drafted.run(prompts[2].text, options)
    wanted = wire.Options(temperature=temperature, max_new_tokens=32, seed=7)
    begin = wire.FeedbackBegin(
        target=target, prompt=prompts[2].text, options=wanted, context_limit=pair.target.limit, learn=learn
    )
    written, finished, questions = dialogue(stub, pair.target, begin)
    assert written == expected.text
    assert finished.counters.accepted == expected.counters.accepted
    assert finished.learned == (learn and target == "spm")
    assert questions == expected.counters.target_calls + 1  # and the prompt


def without_weights(bundle: Bundle, folder: Path) -> Path:
    """The shipped bundle, but that it has no weights of its first target."""
    shutil.copytree(bundle.directory, folder)
    told = json.loads((folder / "bundle.json").read_text())
    for target in told["targets"]:
        target["self_contained"] &= target["name"] != "spm"
    (folder / "bundle.json").write_text(json.dumps(told))
    (folder / "targets/spm/model.safetensors").unlink()
    return folder


def test_an_agent_without_weights_drafts_for_a_program_and_learns_from_it(bundle: Bundle, tmp_path: Path) -> None:
    top = {"name": "ann", "target": "spm", "bundle": str(without_weights(bundle, tmp_path / "bundle"))}
    pair, options = bundle.pair("spm"), wire.Options(max_new_tokens=24)
    with asked(device(tmp_path / "d", {"": top})) as (_, stub):
        begin = wire.FeedbackBegin(prompt="def a(self):\n", options=options, context_limit=256)
        written, finished, _ = dialogue(stub, pair.target, begin)
        assert written == pair.alone.run("def a(self):\n", Options(max_new_tokens=24)).text
        assert finished.learned
        assert finished.counters.accepted > 0
        told = stub.Status(wire.StatusRequest(), timeout=20)
        assert (told.lessons, told.targets[0].generates) == (1, False)
        with pytest.raises(grpc.RpcError) as error:
            text(stub, "def a(self):\n")
        assert error.value.code() is Code.FAILED_PRECONDITION
        assert "no weights of spm" in error.value.details()


def test_others_are_written_while_a_prompt_is_tokenised(
    agent: Agent, stub: DeviceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, reading, goes_on = agent.targets.first.pair.target_codec, threading.Event(), threading.Event()
    tokens = TextCodec.prompt_tokens

    def slow(self: TextCodec, prompt: str) -> list[int]:
        if str(prompt) == "a long one" and not isinstance(prompt, ReadText):
            reading.set()
            assert goes_on.wait(30)
        return tokens(self, prompt)

    monkeypatch.setattr(TextCodec, "prompt_tokens", slow)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(text, stub, "a long one", max_new_tokens=4)
        assert reading.wait(20)
        assert text(stub, "def b(", max_new_tokens=8)[0]
        goes_on.set()
        assert other.result(20)[0]
    long = "def name(self, text):\n" * 1000
    assert codec.prompt_tokens(codec.read(long)) == codec.prompt_tokens(long)


@pytest.mark.parametrize(
    ("size", "limit", "line"),
    [(10, (1 << 17) + 1, "context_limit is 131073"), ((1 << 20) + 1, 1 << 17, "expected at most 1048576 for a")],
)
def test_a_program_with_too_large_a_context_or_prompt_is_refused(
    stub: DeviceStub, size: int, limit: int, line: str
) -> None:
    begin = wire.FeedbackBegin(target="spm", prompt="x" * size, context_limit=limit)
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Feedback(iter([wire.FeedbackRequest(begin=begin)]), timeout=20))
    assert error.value.code() is Code.INVALID_ARGUMENT
    assert line in error.value.details()


def test_others_are_written_while_a_program_thinks(stub: DeviceStub) -> None:
    thinking, answer = threading.Event(), threading.Event()

    def requests() -> Iterator[wire.FeedbackRequest]:
        yield wire.FeedbackRequest(begin=wire.FeedbackBegin(target="spm", prompt="def a(", context_limit=64))
        thinking.set()
        answer.wait(30)

    call = stub.Feedback(requests())
    assert next(call).WhichOneof("what") == "score"
    assert thinking.wait(10)
    assert text(stub, "def b(", max_new_tokens=8)[0]
    answer.set()
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    assert error.value.code() is Code.CANCELLED
    assert "stopped answering" in error.value.details()


def test_a_program_that_goes_in_the_middle_of_a_block_has_taught_what_was_accepted_before(
    bundle: Bundle, prompts: list[Prompt], tmp_path: Path
) -> None:
    target, answers, tokens = bundle.pair("spm").target, queue.SimpleQueue[wire.FeedbackRequest](), list[int]()
    begin = wire.FeedbackBegin(target="spm", prompt=prompts[0].text, context_limit=256, token_events=True)
    with asked(device(tmp_path / "d")) as (agent, stub):
        answers.put(wire.FeedbackRequest(begin=begin))
        call = stub.Feedback(iter(answers.get, None), timeout=60)
        for event in call:
            tokens += event.tokens.token_ids
            if event.WhichOneof("what") == "score":
                if len(tokens) > 4:
                    break
                target.rewind(event.score.keep)
                rows = target.score(list(event.score.token_ids), event.score.rows)
                answers.put(
                    wire.FeedbackRequest(scores=wire.Scores(logits=np.ascontiguousarray(rows, "<f4").tobytes()))
                )
        call.cancel()
        until(lambda: agent.engine.admission.active == 0)
        (lesson,), pair = agent.engine._learning.learner.lessons.values(), agent.targets.first.pair
        prompt = pair.target_codec.prompt_tokens(prompts[0].text)
        assert lesson.tokens.tolist() == pair.spelling.context([*prompt, *tokens])


def scores(size: int, value: float = 0.0) -> bytes:
    return np.full(size, value, "<f4").tobytes()


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (wire.FeedbackRequest(scores=wire.Scores(logits=b"short")), "logits has 5 bytes, expected 12288"),
        (wire.FeedbackRequest(scores=wire.Scores(logits=scores(3072, float("nan")))), "without a finite maximum"),
        (wire.FeedbackRequest(scores=wire.Scores(logits=scores(3072, float("-inf")))), "without a finite maximum"),
        (wire.FeedbackRequest(), "a FeedbackRequest has no scores"),
    ],
)
def test_a_programs_wrong_answer_ends_its_text_alone(agent: Agent, stub: DeviceStub, answer, line: str) -> None:
    begin = wire.FeedbackRequest(begin=wire.FeedbackBegin(target="spm", prompt="def a(", context_limit=64))
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Feedback(iter([begin, answer]), timeout=20))
    assert error.value.code() is Code.INVALID_ARGUMENT
    assert line in error.value.details()
    until(lambda: agent.engine.admission.active == 0)
    assert text(stub, "def b(", max_new_tokens=4)[1].learned


@pytest.mark.parametrize("first", [[], [wire.FeedbackRequest(scores=wire.Scores())]])
def test_a_dialogue_begins_with_its_beginning(stub: DeviceStub, first) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Feedback(iter(first), timeout=20))
    assert error.value.code() is Code.INVALID_ARGUMENT


# --- the server -----------------------------------------------------------------------------------------------------


def test_health_and_reflection_know_the_service(agent: Agent) -> None:
    address = grpc_address(agent.settings.listen, agent.device.folder)
    with grpc.insecure_channel(address) as opened:
        check = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        asks = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (reply,) = reflection_pb2_grpc.ServerReflectionStub(opened).ServerReflectionInfo(asks, timeout=20)
        assert SERVICE in {each.name for each in reply.list_services_response.service}


@pytest.mark.parametrize("silent", ["PullRelease", "Feedback", "ServerReflectionInfo", "Watch"])
def test_calls_that_hang_leave_room_for_status_consent_and_purge_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """More than there are threads, over two connections, by a caller that says nothing."""
    monkeypatch.setattr(server, "_BACKSTOP_S", 2.0)
    settings = device(tmp_path / "d", {"agent": {"texts": 1, "waiting": 0, "text_limit_s": 0.1}})
    over = threading.Event()

    def nothing() -> Iterator[wire.PullReleaseRequest]:
        over.wait(60)
        yield from ()

    def call(opened: grpc.Channel) -> grpc.Future:
        if silent == "Watch":
            return health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        if silent == "ServerReflectionInfo":
            return reflection_pb2_grpc.ServerReflectionStub(opened).ServerReflectionInfo(nothing())
        stub = DeviceStub(opened)
        return stub.PullRelease.future(nothing()) if silent == "PullRelease" else stub.Feedback(nothing())

    with asked(settings) as (agent, stub), contextlib.ExitStack() as stack:
        stack.callback(over.set)
        address = grpc_address(agent.settings.listen, agent.device.folder)
        alone = [("grpc.use_local_subchannel_pool", 1)]
        channels = [stack.enter_context(grpc.insecure_channel(address, options=alone)) for _ in "ab"]
        calls = [call(opened) for opened in channels * 20]
        until(lambda: sum(each.done() for each in calls) > 20)  # the others are refused; of Watch, all
        assert stub.Status(wire.StatusRequest(), timeout=20).base
        assert not stub.Participate(wire.ParticipateRequest(), timeout=20).participates
        stub.Purge(wire.PurgeRequest(what=wire.PurgeRequest.TEXTS), timeout=20)
        until(lambda: all(each.done() for each in calls))
        with pytest.raises(grpc.RpcError) as error:
            stub.PullRelease(iter(()), timeout=20)
        assert error.value.code() is Code.INVALID_ARGUMENT  # not for want of room


def test_the_socket_is_for_its_owner_alone(agent: Agent) -> None:
    assert (agent.device.folder / "agent.sock").stat().st_mode & 0o077 == 0


def test_a_draining_agent_lets_texts_end_and_begins_none(tmp_path) -> None:
    settings = device(tmp_path / "d")
    with asked(settings) as (agent, stub):
        agent.engine.turns._acquire(False)
        call = stub.Generate(wire.GenerateRequest(prompt="def a(", options=wire.Options(max_new_tokens=20)))
        until(lambda: agent.engine.admission.active == 1)
        drained = ThreadPoolExecutor(1).submit(agent.drain, 20)
        until(lambda: agent.engine.admission.draining)
        with pytest.raises(grpc.RpcError) as error:
            text(stub, "def b(")
        assert error.value.code() is Code.UNAVAILABLE
        assert stub.Status(wire.StatusRequest(), timeout=20).draining
        agent.engine.turns._release()
        assert "".join(event.piece for event in call)
        assert drained.result(20)
    assert not (tmp_path / "d/agent.sock").exists()
    with channel(settings) as stub, pytest.raises(grpc.RpcError):
        stub.Status(wire.StatusRequest(), timeout=5)


def test_a_text_that_does_not_end_in_time_is_cut_and_counted(tmp_path) -> None:
    settings = device(tmp_path / "d", {"agent": {"drain_s": 0.05}})
    with asked(settings) as (agent, stub):
        call = stub.Generate(wire.GenerateRequest(prompt="def a(", options=wire.Options(max_new_tokens=500)))
        next(call)
        slow = agent.engine.turns
        slow._acquire(False)
        threading.Timer(0.5, slow._release).start()
    with pytest.raises(grpc.RpcError):
        list(call)
    with asked(settings) as (_, stub):
        assert stub.Status(wire.StatusRequest(), timeout=20).targets[0].counters.prompts == 1
