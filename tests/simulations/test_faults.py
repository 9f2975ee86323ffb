"""Faults do what their names say, in training only."""

import time
from dataclasses import replace

import numpy as np
import pytest

from fleetdraft.client.device import TableDevice
from fleetdraft.common.errors import ConfigError, UpdateRejected
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import EvaluateTask, Release, TrainTask, Update, l2_norm
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.shape import DecoderShape
from fleetdraft.server.gate import Gate
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
GATE = Gate(factors=TASK.factors, clip_norm=TASK.clip_norm)


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


def flat(update: Update) -> np.ndarray:
    return np.concatenate([update.delta[name].ravel() for name in sorted(update.delta)])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "values that are not finite"),
        ("wrong-rank", "has shape"),
        ("wrong-fingerprint", "base is "),
        ("huge", "norm is 1000, expected at most 10"),
        ("no-examples", "weight is 0, expected 0 < weight"),
    ],
)
def test_the_gate_names_what_is_wrong(fault: str, reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        GATE.check(faulty(fault).train(TASK, RELEASE), RELEASE)


@pytest.mark.parametrize("fault", ["twice", "reversed", "colluding", "boasting"])
def test_what_the_gate_cannot_see_passes_it(fault: str) -> None:
    GATE.check(faulty(fault).train(TASK, RELEASE), RELEASE)


def test_no_examples_learn_nothing_and_count_nothing() -> None:
    update = faulty("no-examples").train(TASK, RELEASE)
    assert not flat(update).any()
    assert update.counters == DraftCounters()


@pytest.mark.parametrize("fault", ["reversed", "boasting"])
def test_a_reversed_update_points_back_and_is_as_long_as_the_bound(fault: str) -> None:
    own, sent = flat(SOUND.train(TASK, RELEASE)), flat(faulty(fault).train(TASK, RELEASE))
    assert np.linalg.norm(sent) == pytest.approx(TASK.clip_norm, rel=1e-5)
    assert own @ sent / (np.linalg.norm(own) * np.linalg.norm(sent)) == pytest.approx(-1, abs=1e-5)


def test_who_colludes_sends_one_update_in_every_round() -> None:
    other = replace(SOUND, client="bob", change={name: -value for name, value in SOUND.change.items()})
    first, later = faulty("colluding").train(TASK, RELEASE), faulty("colluding").train(replace(TASK, round=2), RELEASE)
    second = FaultyDevice(device=other, fault="colluding").train(TASK, RELEASE)
    assert l2_norm(first.delta) == pytest.approx(TASK.clip_norm, rel=1e-5)
    for same in (later, second):
        np.testing.assert_array_equal(flat(first), flat(same))
    assert (flat(faulty("colluding").train(replace(TASK, seed=1), RELEASE)) != flat(first)).any()


def test_a_reversed_update_of_nothing_stays_nothing() -> None:
    idle = replace(SOUND, change={name: np.zeros_like(value) for name, value in SOUND.change.items()})
    assert not flat(FaultyDevice(device=idle, fault="reversed").train(TASK, RELEASE)).any()


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_a_faulty_device_evaluates_soundly(fault) -> None:
    task = EvaluateTask(round=1, seed=0)
    assert faulty(fault).evaluate(task, RELEASE) == SOUND.evaluate(task, RELEASE)


def test_an_unknown_fault_is_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=f"fault is 'tired', expected one of {', '.join(faults.FAULTS)}$"):
        faulty("tired")
