"""Secure aggregation by messages, with real ClientApps: the sum, drop-outs at each stage, ends, deadlines."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from wire import WireGrid, passed

from fleetdraft.client.app import make_client_app
from fleetdraft.client.device import TableDevice
from fleetdraft.client.secagg import Secrets
from fleetdraft.common.errors import SecAggError, TrainingError
from fleetdraft.common.fixed_point import FixedPoint
from fleetdraft.common.masking import new_key_pair
from fleetdraft.common.messages import Identity, Release, TrainTask, Update, l2_norm
from fleetdraft.common.records import encode_request
from fleetdraft.common.secagg import PublicKeys, Setup
from fleetdraft.common.secagg_records import decode_flat, decode_message, encode_message
from fleetdraft.server.mailbox import Mailbox
from fleetdraft.server.privacy.config import SecAggConfig
from fleetdraft.server.privacy.secagg import SecAggServer
from fleetdraft.server.privacy.secure_exchange import STAGES, SecureExchange

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CLIENTS = 10
CLIP = 1.0
NAMES = [f"phone-{i}" for i in range(CLIENTS)]
Reply = Callable[[Message], Message | None]


@pytest.fixture(autouse=True)
def identity(monkeypatch) -> None:
    """Messages take their sender from here; Flower's runtimes set it before a ServerApp starts."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


def secrets_of(context: Context) -> Secrets:
    return decode_flat(Secrets, context.state["secagg.secrets"])


def silent(message: Message) -> None:
    return None


def breaking(message: Message) -> Message:
    return Message(Error(code=2, reason="battery\n is low"), reply_to=message)


class Fleet:
    """Ten devices with random updates of norm 1, their server part and the messages between.

    Args:
      failing: by stage, the clients that do not answer from it on, each by number.
    """

    def __init__(
        self,
        release: Release,
        failing: Mapping[str, Collection[int]] | None = None,
        reply: Reply = breaking,
        clients: int = CLIENTS,
        neighbours: int = 32,
        factors: tuple[str, ...] = ("A", "B"),
        stage_timeout_s: float = 5.0,
    ) -> None:
        self.release = release
        self.failing = failing or {}
        self.reply = reply
        self.task = TrainTask(round=1, seed=0, clip_norm=CLIP, timeout_s=5.0, factors=factors)
        shapes = {n: s for n, s in release.adapter.layout.shapes.items() if n[-1] in factors}
        rng = np.random.default_rng(1)
        self.changes = []
        for _ in range(clients):
            change = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
            norm = l2_norm(change)
            self.changes.append({name: value / np.float32(norm) for name, value in change.items()})
        entries = sum(value.size for value in self.changes[0].values())
        self.encoding = FixedPoint.finest(clip_norm=CLIP, clients=clients, entries=entries)
        self.server = SecAggServer(
            SecAggConfig(neighbours=neighbours),
            clients=clients,
            encoding=self.encoding,
            session=os.urandom(16),
            rng=rng,
        )
        self.grid = WireGrid({100 + i: self.app(i) for i in range(clients)})
        nodes = [(100 + i, Identity(client=f"phone-{i}", family="spm")) for i in range(clients)]
        self.exchange = SecureExchange(Mailbox(self.grid), nodes, self.server, stage_timeout_s=stage_timeout_s)

    def device(self, i: int) -> TableDevice:
        return TableDevice(client=f"phone-{i}", family="spm", change=self.changes[i], weight=1.0)

    def app(self, i: int):
        app = make_client_app(
            device_for=lambda context: self.device(i),
            identity_for=lambda context: Identity(client=f"phone-{i}", family="spm"),
        )
        kinds = {STAGES[stage] for stage, clients in self.failing.items() if i in clients}

        def answer(message: Message, context: Context) -> Message | None:
            return self.reply(message) if message.metadata.message_type in kinds else app(message, context)

        return answer

    def total(self) -> np.ndarray:
        return self.exchange.run(encode_request(self.task, self.release), self.task.timeout_s)

    def plain(self, clients: Collection[int]) -> np.ndarray:
        order = self.changes[0]
        vectors = [np.concatenate([self.changes[i][n].ravel() for n in order]).astype(np.float64) for i in clients]
        return np.sum(vectors, axis=0)

    def check_total(self, total: np.ndarray, clients: Collection[int]) -> None:
        assert self.exchange.survivors == tuple(sorted(f"phone-{i}" for i in clients))
        error = np.abs(total - self.plain(clients)).max()
        assert error <= len(clients) * self.encoding.step / 2 * (1 + 1e-6)  # 1e-6: rounding of the plain sum
        assert np.abs(total).max() > 1000 * self.encoding.step  # so the bound says something


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("lost", [(), (4,), (0, 4, 9)], ids=["0%", "10%", "30%"])
def test_the_sum_is_the_plain_sum_within_the_step_whoever_drops_out(release, stage, lost) -> None:
    fleet = Fleet(release, {stage: lost})
    total = fleet.total()
    fleet.check_total(total, [i for i in range(CLIENTS) if i not in lost or stage == "unmask"])
    report = fleet.exchange.report()
    assert {name: set(s.dropped) for name, s in report.stages.items() if s.dropped} == (
        {stage: {f"phone-{i}" for i in lost}} if lost else {}
    )


def test_who_drops_out_is_named_with_stage_and_reason(release) -> None:
    fleet = Fleet(release, {"setup": [1], "share": [2], "mask": [3], "unmask": [4]})
    fleet.check_total(fleet.total(), [0, 4, 5, 6, 7, 8, 9])
    stages = fleet.exchange.report().stages
    assert {name: s.asked for name, s in stages.items()} == {"setup": 10, "share": 9, "mask": 8, "unmask": 7}
    assert stages["unmask"].dropped == {"phone-4": "battery is low"}
    assert fleet.exchange.dropped == {
        f"phone-{i}": f"dropped out of secure aggregation at stage {stage!r}: battery is low"
        for i, stage in ((1, "setup"), (2, "share"), (3, "mask"))
    }


def test_silence_ends_at_the_deadline_of_the_stage(release) -> None:
    fleet = Fleet(release, {"share": [2]}, reply=silent, stage_timeout_s=0.5)
    started = time.monotonic()
    fleet.check_total(fleet.total(), [i for i in range(CLIENTS) if i != 2])
    assert fleet.exchange.report().stages["share"].dropped == {"phone-2": "no answer within 0.5 s"}
    assert 0.5 <= fleet.exchange.report().stages["share"].seconds <= time.monotonic() - started


@pytest.mark.parametrize("stage", STAGES)
def test_the_threshold_is_enough_and_one_device_fewer_ends_the_round_with_nothing_revealed(release, stage) -> None:
    most = CLIENTS - 6  # five neighbours of each must be left
    Fleet(release, {stage: range(most)}).total()
    fleet = Fleet(release, {stage: range(most + 1)})
    with pytest.raises(SecAggError, match=f"ended at stage '{stage}': 5 of 10 .* no update was revealed"):
        fleet.total()
    assert fleet.exchange.report().aborted.startswith("secure aggregation ended")
    later = list(STAGES)[list(STAGES).index(stage) + 1 :]
    assert not {STAGES[name] for name in later} & set(fleet.grid.kinds)  # nobody was asked on


def test_only_the_factors_of_the_task_travel(release) -> None:
    fleet = Fleet(release, factors=("B",))
    fleet.check_total(fleet.total(), range(CLIENTS))


NONSENSE: dict[str, Reply] = {
    "malformed": lambda message: Message(RecordDict(), reply_to=message),
    "is a int, expected": lambda message: Message(
        RecordDict({"secagg": ConfigRecord({"channel": 1, "masking": 2})}), reply_to=message
    ),
    "fields are": lambda message: Message(RecordDict({"secagg": ConfigRecord({"x": 1})}), reply_to=message),
    "not a public key (": lambda message: Message(
        encode_message(PublicKeys(channel=new_key_pair()[1], masking=b"masking")), reply_to=message
    ),
    "not a public key": lambda message: Message(
        encode_message(PublicKeys(channel=b"channel", masking=b"masking")), reply_to=message
    ),
}


@pytest.mark.parametrize("reason", NONSENSE)
def test_an_answer_that_is_nonsense_costs_only_its_sender_the_round(release, reason) -> None:
    fleet = Fleet(release, {"setup": [5]}, reply=NONSENSE[reason])
    fleet.check_total(fleet.total(), [i for i in range(CLIENTS) if i != 5])
    assert reason in fleet.exchange.report().stages["setup"].dropped["phone-5"]


@pytest.mark.parametrize("size", [0, 4])
def test_a_masked_vector_of_another_size_costs_only_its_sender_the_round(release, size) -> None:
    def short(message: Message) -> Message:
        array = Array("uint32", (size // 4,), "raw", bytes(size))
        return Message(RecordDict({"masked": ArrayRecord({"masked": array})}), reply_to=message)

    fleet = Fleet(release, {"mask": [5]}, reply=short)
    fleet.check_total(fleet.total(), [i for i in range(CLIENTS) if i != 5])
    assert f"has {size} bytes" in fleet.exchange.report().stages["mask"].dropped["phone-5"]


class BadDevice(TableDevice):
    """Answers with something that must not be masked."""

    def train(self, task: TrainTask, release: Release) -> Update:
        update = super().train(task, release)
        name = next(iter(update.delta))
        if self.family == "raises":
            raise TrainingError("training diverged")
        bad = {
            "nan": {name: np.full_like(update.delta[name], np.nan)},
            "loud": {name: np.full_like(update.delta[name], 10.0)},
            "shape": {name: np.zeros((1, 1), np.float32)},
            "unknown": {"lora.9.q_proj.A": update.delta[name]},
        }
        return replace(update, delta={**update.delta, **bad[self.family]})


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "norm is nan"),
        ("loud", "norm is"),
        ("shape", "has shape (1, 1), expected"),
        ("unknown", "is unknown"),
        ("raises", "training diverged"),
    ],
)
def test_a_device_masks_no_update_that_it_cannot_vouch_for_and_forgets_the_round(release, fault, reason) -> None:
    fleet = Fleet(release)
    fleet.device = lambda i: (BadDevice if i == 5 else TableDevice)(
        client=f"phone-{i}", family=fault, change=fleet.changes[i], weight=1.0
    )
    fleet.check_total(fleet.total(), [i for i in range(CLIENTS) if i != 5])
    (dropped,) = fleet.exchange.report().stages["mask"].dropped.items()
    assert dropped[0] == "phone-5"
    assert reason in dropped[1]
    assert secrets_of(fleet.grid.contexts[105]) == Secrets(stage="done")


def test_a_device_keeps_no_secret_after_the_last_stage(release) -> None:
    fleet = Fleet(release)
    fleet.total()
    assert {secrets_of(context) for context in fleet.grid.contexts.values()} == {Secrets(stage="done")}


def test_a_refused_request_leaves_no_second_try(release) -> None:
    """The secrets are stored before the error leaves the device, so a restarted one does not answer either."""
    fleet = Fleet(release, {"unmask": range(CLIENTS)})
    with pytest.raises(SecAggError):
        fleet.total()
    request = fleet.server.unmask_requests()[0]
    greedy = replace(request, dropped=request.survivors[:1])
    context = fleet.grid.contexts[100]
    for asked, reason in ((greedy, "both secrets"), (request, "expected 'done'")):
        message = Message(encode_message(asked), 100, STAGES["unmask"], ttl=60)
        message.metadata.__dict__["_message_id"] = "again"
        reply = make_client_app(device_for=fleet.device, identity_for=fleet.device)(message, context)
        assert reason in reply.error.reason


def test_a_device_that_demands_secure_aggregation_gives_its_update_to_nobody_else(release) -> None:
    def no_device(context):
        raise AssertionError("opened the device")

    app = make_client_app(
        device_for=no_device, identity_for=lambda context: Identity(client="a", family="spm"), least_threshold=6
    )
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    fleet = Fleet(release)
    plain = Message(encode_request(fleet.task, release), 1, "train", ttl=60)
    weak = Message(encode_message(fleet.server.setups()[0]), 1, STAGES["setup"], ttl=60)
    for message, reason in ((plain, "to secure aggregation only"), (weak, "threshold is 5, this device expects")):
        message.metadata.__dict__["_message_id"] = "request"
        assert reason in app(message, context).error.reason


def test_messages_survive_the_wire(release) -> None:
    setup = Fleet(release).server.setups()[3]
    assert decode_message(Setup, passed(encode_message(setup))) == setup


def test_bytes_are_counted_both_ways(release) -> None:
    fleet = Fleet(release)
    fleet.total()
    stages = fleet.exchange.report().stages
    assert stages["mask"].bytes_up == CLIENTS * 4 * fleet.encoding.entries
    assert stages["share"].bytes_up > CLIENTS * (CLIENTS - 1) * 100  # a sealed share for each neighbour
    assert all(s.bytes_down > 0 for s in stages.values())
