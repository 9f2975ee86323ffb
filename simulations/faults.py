"""Devices that fail, as data: an experiment names a fault, a wrapper commits it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..client.device import Device
from ..common.errors import ConfigError
from ..common.messages import EvaluateTask, Evaluation, Release, TrainTask, Update

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


def _silent(device: Device, task: TrainTask, release: Release) -> Update:
    """Out of reach until nobody waits any more; ends, so that no process stays behind."""
    time.sleep(task.timeout_s + GRACE_S)
    return device.train(task, release)


def _raises(device: Device, task: TrainTask, release: Release) -> Update:
    """A defect on the device."""
    raise RuntimeError("this device fails on purpose")


#: Fault by name.
FAULTS: dict[str, Callable[[Device, TrainTask, Release], Update]] = {
    "nan": _nan,
    "wrong-rank": _wrong_rank,
    "silent": _silent,
    "raises": _raises,
}
