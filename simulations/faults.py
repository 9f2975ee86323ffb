"""Devices that fail or attack, as data: an experiment names a fault, a wrapper commits it."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..client.device import Device
from ..common.errors import ConfigError
from ..common.lora import Arrays
from ..common.messages import EvaluateTask, Evaluation, Release, TrainTask, Update, l2_norm
from ..common.metrics import DraftCounters

#: The fault of a sound device whose updates the transport delivers twice (``twice.py``).
TWICE = "twice"
#: A silent device stays silent this much longer than the server waits.
GRACE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class FaultyDevice:
    """A device that fails whenever it trains; it still evaluates.

    Raises:
      ConfigError: no such fault.
    """

    device: Device
    fault: str

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ConfigError(f"fault is {self.fault!r}, expected one of {', '.join(FAULTS)}")

    def train(self, task: TrainTask, release: Release) -> Update:
        """Trains, then fails in its own way."""
        return FAULTS[self.fault](self.device, task, release)

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        """As the sound device."""
        return self.device.evaluate(task, release)


def _nan(device: Device, task: TrainTask, release: Release) -> Update:
    """Training diverged: one tensor is not a number."""
    update = device.train(task, release)
    name = next(iter(update.delta))
    return replace(update, delta={**update.delta, name: np.full_like(update.delta[name], np.nan)})


def _wrong_rank(device: Device, task: TrainTask, release: Release) -> Update:
    """An old bundle: every factor has one rank more than the release."""
    update = device.train(task, release)
    grown = {
        name: np.pad(value, ((0, 1), (0, 0)) if name.endswith(".A") else ((0, 0), (0, 1)))
        for name, value in update.delta.items()
    }
    return replace(update, delta=grown)


def _wrong_fingerprint(device: Device, task: TrainTask, release: Release) -> Update:
    """Trained on another drafter than the fleet's."""
    return replace(device.train(task, release), base=hashlib.sha256(b"another drafter").hexdigest())


def _huge(device: Device, task: TrainTask, release: Release) -> Update:
    """It does not clip: its update is a hundred times as long as the bound."""
    update = device.train(task, release)
    return replace(update, delta=_stretched(update.delta, 100 * task.clip_norm))


def _no_examples(device: Device, task: TrainTask, release: Release) -> Update:
    """Nobody has used it since the last round: nothing was learned, and it counts nothing."""
    update = device.train(task, release)
    nothing = {name: np.zeros_like(value) for name, value in update.delta.items()}
    return replace(update, delta=nothing, weight=0.0, counters=DraftCounters())


def _silent(device: Device, task: TrainTask, release: Release) -> Update:
    """Out of reach until nobody waits any more; ends, so that no process stays behind."""
    time.sleep(task.timeout_s + GRACE_S)
    return device.train(task, release)


def _raises(device: Device, task: TrainTask, release: Release) -> Update:
    """A defect on the device."""
    raise RuntimeError("this device fails on purpose")


def _twice(device: Device, task: TrainTask, release: Release) -> Update:
    """Sound; what its transport does is ``twice.py``."""
    return device.train(task, release)


def _reversed(device: Device, task: TrainTask, release: Release) -> Update:
    """An attack that no gate can see: its own update turned round, and as long as the bound allows."""
    update = device.train(task, release)
    return replace(update, delta=_stretched(update.delta, -task.clip_norm))


def _colluding(device: Device, task: TrainTask, release: Release) -> Update:
    """An attack in concert: all send the same update, one direction in every round, as long as the bound allows."""
    update = device.train(task, release)
    rng = np.random.default_rng([task.seed, *b"colluding"])
    drawn = {name: rng.standard_normal(update.delta[name].shape, np.float32) for name in sorted(update.delta)}
    return replace(update, delta=_stretched(drawn, task.clip_norm))


def _boasting(device: Device, task: TrainTask, release: Release) -> Update:
    """As ``_reversed``, and it claims to have verified a million tokens."""
    return replace(_reversed(device, task, release), weight=1e6)


def _stretched(delta: Mapping[str, NDArray[np.float32]], length: float) -> Arrays:
    """``delta`` with a norm of ``abs(length)``, turned round where ``length`` is negative; zeros stay."""
    norm = l2_norm(delta)
    factor = np.float32(length / norm if norm else 0.0)
    return {name: value * factor for name, value in delta.items()}


#: Fault by name.
FAULTS: dict[str, Callable[[Device, TrainTask, Release], Update]] = {
    "nan": _nan,
    "wrong-rank": _wrong_rank,
    "wrong-fingerprint": _wrong_fingerprint,
    "huge": _huge,
    "no-examples": _no_examples,
    "silent": _silent,
    "raises": _raises,
    TWICE: _twice,
    "reversed": _reversed,
    "colluding": _colluding,
    "boasting": _boasting,
}
