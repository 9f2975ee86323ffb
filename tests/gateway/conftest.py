"""A gateway on a loopback port, phones of any change, and a two-layer decoder's release."""

import sys
from pathlib import Path

import pytest

from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import Release
from fleetdraft.common.shape import DecoderShape

# Tests are no packages; this lets them import what several of them share.
sys.path.append(str(Path(__file__).parent))


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
