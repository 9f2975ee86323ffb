"""What Flower gets from a gateway: its answers, patience with its restarts, and errors of one line."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from loopback import PATIENT_S, device_of, gateway, table

from fleetdraft.client.deployed import app as deployed
from fleetdraft.common.messages import EvaluateTask, Identity, Release, SumTerms, TrainTask
from fleetdraft.common.records import decode_evaluation, decode_identity, decode_update, encode_request
from fleetdraft.server.deployment.tls import make_certificates
from fleetdraft.server.gateway.client_app import answer
from fleetdraft.server.gateway.setup import make_gateway

TERMS = SumTerms(weights="equal", devices=10)
GATE = Identity(client="gate", family="gateway")
HELLO = RecordDict({"hello": ConfigRecord({"hello": True})})

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages take their sender from here; Flower's runtimes set it before an app starts."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_certificates(tmp_path, [])
    made = make_gateway(
        tmp_path / "g", name="gate", server="127.0.0.1:1", authority=tmp_path / "ca.pem", host="127.0.0.1", port=9444,
        names=[], devices=1,
    )  # fmt: skip
    return made.folder


def message(kind: str, records: RecordDict, ttl: float = PATIENT_S) -> Message:
    made = Message(records, 7, kind, ttl=ttl)
    made.metadata.__dict__["_message_id"] = "1"
    return made


def context(folder: Path) -> Context:
    return Context(run_id=1, node_id=7, node_config={"gateway": str(folder)}, state=RecordDict(), run_config={})


def test_a_supernode_of_a_gateway_answers_for_it_and_not_as_a_device(folder: Path) -> None:
    assert decode_identity(deployed(message("query.hello", HELLO), context(folder)).content) == GATE


def test_a_request_is_answered_by_the_phones(folder: Path, release: Release) -> None:
    train = encode_request(TrainTask(round=1, seed=0, timeout_s=PATIENT_S), release, TERMS)
    evaluate = encode_request(EvaluateTask(round=1, seed=0, timeout_s=PATIENT_S), release, TERMS)

    async def play() -> None:
        async with gateway(folder, release, table(devices=1)) as gate, gate.phone("ann", device_of(release)) as phone:
            replies = []
            for kind, records in (("train", train), ("evaluate", evaluate)):
                reply = asyncio.create_task(asyncio.to_thread(answer, message(kind, records), context(folder)))
                while not (await phone.visit()).outcome:
                    await asyncio.sleep(0.05)
                replies.append((await reply).content)
            update = decode_update(replies[0], GATE)
            assert (update.devices, update.delta["lora.0.q_proj.B"].max()) == (1, np.float32(0.01))
            assert decode_evaluation(replies[1], GATE).families["spm"].drafted == 10

    asyncio.run(play())


def test_it_waits_while_the_gateway_is_away(folder: Path, release: Release) -> None:
    records = encode_request(TrainTask(round=1, seed=0, timeout_s=PATIENT_S), release, TERMS)

    async def serve(phones: int) -> None:
        async with gateway(folder, release, table(devices=1)) as gate:
            while gate.cohort is None:
                await asyncio.sleep(0.05)
            for number in range(phones):
                async with gate.phone(f"p{number}", device_of(release)) as phone:
                    await phone.visit()
                await gate.cohort.closed.wait()
                await asyncio.sleep(1.0)

    replies: list[Message] = []
    asking = threading.Thread(target=lambda: replies.append(answer(message("train", records), context(folder))))
    asking.start()
    asyncio.run(serve(0))  # it comes, takes the request, and goes
    asyncio.run(serve(1))
    asking.join(PATIENT_S)
    assert decode_update(replies[0].content, GATE).devices == 1


def test_it_gives_up_when_nobody_waits_for_the_answer_any_more(folder: Path, release: Release) -> None:
    records = encode_request(TrainTask(round=1, seed=0), release, TERMS)
    reply = answer(message("train", records, ttl=0.5), context(folder))
    assert "has not answered in time" in reply.error.reason


def test_a_refusal_of_the_gateway_reaches_flower_as_one_line(folder: Path, release: Release) -> None:
    records = encode_request(TrainTask(round=1, seed=0), release)

    async def play() -> str:
        async with gateway(folder, release):
            return (await asyncio.to_thread(answer, message("train", records), context(folder))).error.reason

    assert "name it in fleet.toml: gateways" in asyncio.run(play())


@pytest.mark.parametrize("kind", ["query.secagg_setup", "train.secagg_mask", "query.secagg_unmask"])
def test_it_takes_no_part_in_secure_aggregation(folder: Path, kind: str) -> None:
    assert "no mask of one device hides" in answer(message(kind, HELLO), context(folder)).error.reason


def test_a_folder_that_is_none_is_said_so(tmp_path: Path) -> None:
    assert "no folder of a gateway" in answer(message("query.hello", HELLO), context(tmp_path)).error.reason
