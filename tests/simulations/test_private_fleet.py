"""Secure aggregation and differential privacy on Flower's real simulation engine, with devices that load no model."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import ray.cloudpickle
from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp

from fleetdraft.client.app import make_client_app
from fleetdraft.client.device import Device, TableDevice
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import Identity
from fleetdraft.common.shape import DecoderShape
from fleetdraft.server.aggregation.aggregate import AggregationConfig
from fleetdraft.server.app import make_server_app
from fleetdraft.server.config import ServerConfig
from fleetdraft.server.privacy.config import PrivacyConfig, SecAggConfig
from fleetdraft.server.privacy.secure_exchange import STAGES
from fleetdraft.server.registry.registry import Registry
from fleetdraft.simulations.fleet import run_fleet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

# Workers cannot import a test module, so what it defines travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHAPE = DecoderShape(
    vocab_size=32, hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
LAYOUT = LoraLayout(rank=2, alpha=4, shape=SHAPE)
DEVICES, LOST = 10, (0, 4, 9)
#: The stage at which three devices drop out, by round.
BY_ROUND = (None, *STAGES)
KINDS = {"hello": "query.hello", **STAGES}


@dataclass(frozen=True)
class Fleet:
    """Device ``i`` moves every entry by ``(i + 1) / 256``; some drop out, by the round they count themselves."""

    def client_app(self) -> ClientApp:
        sound = make_client_app(device_for=self.device, identity_for=self.identity, least_threshold=5)
        app = ClientApp()

        def answer(message: Message, context: Context) -> Message:
            kind = message.metadata.message_type
            if kind == STAGES["setup"]:
                seen = context.state["seen"]["rounds"] if "seen" in context.state else 0
                context.state["seen"] = ConfigRecord({"rounds": seen + 1})
            rounds = context.state["seen"]["rounds"] if "seen" in context.state else 0
            stage = BY_ROUND[rounds - 1] if rounds else None
            if stage and kind == STAGES[stage] and self._place(context) in LOST:
                return Message(Error(code=2, reason="battery is low"), reply_to=message)
            return sound(message, context)

        for kind in KINDS.values():
            category, _, action = kind.partition(".")
            getattr(app, category)(action)(answer)
        return app

    def identity(self, context: Context) -> Identity:
        return Identity(client=f"phone-{self._place(context)}", family="spm")

    def device(self, context: Context) -> Device:
        place = self._place(context)
        change = {name: np.full(shape, (place + 1) / 256, np.float32) for name, shape in LAYOUT.shapes.items()}
        return TableDevice(client=f"phone-{place}", family="spm", weight=1.0, change=change)

    @staticmethod
    def _place(context: Context) -> int:
        return int(context.node_config["partition-id"])


def test_each_round_is_the_plain_mean_of_those_who_did_not_drop_out_at_whichever_stage(tmp_path) -> None:
    registry, reports = Registry(tmp_path / "registry", LAYOUT, "base"), []
    adapters = [registry.begin(LAYOUT.initial(seed=0)).adapter]
    config = ServerConfig(
        rounds=len(BY_ROUND),
        aggregation=AggregationConfig(weights="equal"),
        expected_clients=DEVICES,
        clip_norm=1.0,
        timeout_s=60.0,
        secure_aggregation=SecAggConfig(),
    )

    def on_round(report) -> None:
        reports.append(report)
        adapters.append(registry.head().adapter)

    app = make_server_app(config, registry, on_round)
    run_fleet(app, Fleet().client_app(), clients=DEVICES, workers=2, folder=tmp_path)

    assert len(reports) == len(BY_ROUND)
    for stage, report, before, after in zip(BY_ROUND, reports, adapters, adapters[1:], strict=False):
        absent = LOST if stage not in (None, "unmask") else ()
        left = [i for i in range(DEVICES) if i not in absent]
        assert report.accepted == tuple(sorted(f"phone-{i}" for i in left)), stage
        dropped = {name: tuple(s.dropped) for name, s in report.secure.stages.items() if s.dropped}
        assert dropped == ({stage: tuple(f"phone-{i}" for i in LOST)} if stage else {})
        mean = np.mean([(i + 1) / 256 for i in left])
        for name, moved in after.minus(before).items():
            np.testing.assert_allclose(moved, mean, atol=report.secure.step / 2 + 1e-7, err_msg=f"{stage} {name}")


def test_a_run_with_noise_and_secret_draws_ends_at_its_budget(tmp_path) -> None:
    registry, reports, stops = Registry(tmp_path / "registry", LAYOUT, "base"), [], []
    registry.begin(LAYOUT.initial(seed=0))
    config = ServerConfig(
        rounds=20,
        aggregation=AggregationConfig(weights="equal"),
        expected_clients=DEVICES,
        clients_per_round=7,
        clip_norm=1.0,
        timeout_s=60.0,
        privacy=PrivacyConfig(delta=1e-3, noise_multiplier=2.0, budget=4.0),
        secure_aggregation=SecAggConfig(),
    )

    class Whole(Fleet):
        def client_app(self) -> ClientApp:
            return make_client_app(device_for=self.device, identity_for=self.identity)

    app = make_server_app(config, registry, reports.append, stops.append)
    run_fleet(app, Whole().client_app(), clients=DEVICES, workers=2, folder=tmp_path)
    assert 1 <= len(reports) < 20
    assert len({report.participants for report in reports}) > 1
    assert stops[0].startswith("budget: ")
    assert reports[-1].privacy.epsilon <= 4.0
    assert registry.privacy()["epsilon"] <= 4.0
