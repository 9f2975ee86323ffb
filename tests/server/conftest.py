"""A two-layer decoder's LoRA layout, updates that fit it, and a small fleet."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from fleetdraft.client.app import make_client_app
from fleetdraft.client.device import TableDevice
from fleetdraft.common.lora import Arrays, LoraLayout
from fleetdraft.common.messages import Identity, Release, Update
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.shape import DecoderShape
from fleetdraft.server.registry.registry import Registry

# Tests are no packages; this lets them import what several of them share.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "client")]

from local_grid import begun


@pytest.fixture(scope="session")
def layout() -> LoraLayout:
    shape = DecoderShape(
        vocab_size=32, hidden_size=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
        context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
    )  # fmt: skip
    return LoraLayout(rank=2, alpha=4, shape=shape)


@pytest.fixture(scope="session")
def release(layout: LoraLayout) -> Release:
    return Release(number=3, adapter=layout.initial(seed=0), base="base")


@pytest.fixture
def update_of(release: Release) -> Callable[..., Update]:
    """Makes an update whose every entry is ``value``, with whatever else is to be different."""

    def make(value: float = 0.01, factors: str = "AB", **changes: object) -> Update:
        layout = release.adapter.layout
        delta = {n: np.full(s, value, np.float32) for n, s in layout.shapes.items() if n[-1] in factors}
        sound = {
            "client": "ann", "family": "spm", "base": release.base, "layout": layout.fingerprint,
            "release": release.adapter.digest, "delta": delta, "weight": 1.0,
        }  # fmt: skip
        return Update(**(sound | changes))

    return make


@pytest.fixture
def identity(monkeypatch) -> None:
    """Messages take their sender from here; Flower's runtimes set it before a ServerApp starts."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


@pytest.fixture
def registry(tmp_path, layout) -> Registry:
    return begun(tmp_path, layout)


@pytest.fixture
def app_of(layout) -> Callable[..., ClientApp]:
    def make(
        client: str,
        value: float = 0.01,
        weight: float = 1.0,
        family: str = "spm",
        accepted: int = 4,
        change: Arrays | None = None,
    ) -> ClientApp:
        device = TableDevice(
            client=client,
            family=family,
            weight=weight,
            change=change or {name: np.full(shape, value, np.float32) for name, shape in layout.shapes.items()},
            counters=DraftCounters(drafted=10, accepted=accepted),
        )
        return make_client_app(
            device_for=lambda context: device, identity_for=lambda context: Identity(client=client, family=family)
        )

    return make
