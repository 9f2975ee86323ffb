"""Faults do what their names say, in training only."""

import time

import numpy as np
import pytest

from fleetdraft.client.device import TableDevice
from fleetdraft.common.errors import ConfigError
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import EvaluateTask, Release, TrainTask
from fleetdraft.common.shape import DecoderShape
from fleetdraft.simulations import faults
from fleetdraft.simulations.faults import FaultyDevice

SHAPE = DecoderShape(
    vocab_size=32, hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
LAYOUT = LoraLayout(rank=2, alpha=4, shape=SHAPE)
RELEASE = Release(number=0, adapter=LAYOUT.initial(seed=0), base="base")
SOUND = TableDevice(
    client="ann", family="spm", weight=1.0, change={n: np.ones(s, np.float32) for n, s in LAYOUT.shapes.items()}
)
TASK = TrainTask(round=1, seed=0, timeout_s=0.2)


def faulty(fault: str) -> FaultyDevice:
    return FaultyDevice(device=SOUND, fault=fault)


def test_nan_spoils_one_tensor() -> None:
    spoilt = [name for name, value in faulty("nan").train(TASK, RELEASE).delta.items() if np.isnan(value).any()]
    assert len(spoilt) == 1


def test_wrong_rank_is_one_rank_more() -> None:
    delta = faulty("wrong-rank").train(TASK, RELEASE).delta
    assert (delta["lora.0.q_proj.A"].shape, delta["lora.0.q_proj.B"].shape) == ((3, 8), (8, 3))


def test_silence_outlasts_the_servers_patience_and_ends(monkeypatch) -> None:
    monkeypatch.setattr(faults, "GRACE_S", 0.1)
    started = time.monotonic()
    faulty("silent").train(TASK, RELEASE)
    assert 0.3 <= time.monotonic() - started < 5


def test_raises_raises() -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        faulty("raises").train(TASK, RELEASE)


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_a_faulty_device_evaluates_soundly(fault) -> None:
    task = EvaluateTask(round=1, seed=0)
    assert faulty(fault).evaluate(task, RELEASE) == SOUND.evaluate(task, RELEASE)


def test_an_unknown_fault_is_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="fault is 'tired', expected one of nan, wrong-rank, silent, raises"):
        faulty("tired")
