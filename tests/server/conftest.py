"""A two-layer decoder's LoRA layout and updates that fit it."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import Release, Update
from fleetdraft.common.shape import DecoderShape

# Tests are no packages; this lets them import what several of them share.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "client")]


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
