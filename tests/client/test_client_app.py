"""The device's door to Flower answers every request that somebody still waits for."""

import time

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fleetdraft.client.app import make_client_app
from fleetdraft.common.messages import Identity
from fleetdraft.common.records import decode_identity

CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
ANN = Identity(client="ann", family="spm")


@pytest.fixture(autouse=True)
def identity(monkeypatch) -> None:
    """Messages take their sender from here; Flower's runtimes set it before an app starts."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


def request(kind: str, ttl: float = 60.0) -> Message:
    message = Message(RecordDict({"x": ConfigRecord({"x": 1})}), 7, kind, ttl=ttl)
    message.metadata.__dict__["_message_id"] = "request"
    return message


def no_device(context: Context):
    raise AssertionError("opened the device")


def test_hello_is_answered_without_opening_the_device() -> None:
    app = make_client_app(device_for=no_device, identity_for=lambda context: ANN)
    assert decode_identity(app(request("query.hello"), CONTEXT).content) == ANN


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_an_expired_request_does_not_open_the_device(kind) -> None:
    late = request(kind, ttl=0.05)
    time.sleep(0.1)
    app = make_client_app(device_for=no_device, identity_for=lambda context: ANN)
    assert "expired before the device could start" in app(late, CONTEXT).error.reason


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_malformed_request_is_answered_with_the_reason_and_does_not_open_the_device(kind) -> None:
    app = make_client_app(device_for=no_device, identity_for=lambda context: ANN)
    reply = app(request(kind), CONTEXT)
    assert reply.metadata.reply_to_message_id == "request"
    assert reply.error.reason.startswith("malformed ")
