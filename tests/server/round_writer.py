"""Plays rounds over devices in memory until it is killed: ``round_writer.py DIR``. Prints each round that closed.

What a device answers follows from its name and the round, so that every release can be worked out by hand. Each device
writes down that it was asked before it answers.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.supercore.task_identity import TaskIdentity
from local_grid import LocalGrid, a_context, begun, config_of
from registry_writer import LAYOUT

from fleetdraft.client.app import make_client_app
from fleetdraft.client.device import TableDevice
from fleetdraft.common.lora import Arrays
from fleetdraft.common.messages import Evaluation, Identity
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.app import make_server_app

NAMES = tuple(f"device {number}" for number in range(6))
ROUNDS = 400


def value(place: int, round: int) -> float:
    """What a device adds to every entry; a sixty-fourth, so that sums of a few are exact."""
    return (place + 1) * (1 + round % 3) / 64


def change(place: int, round: int) -> Arrays:
    return {name: np.full(shape, value(place, round), np.float32) for name, shape in LAYOUT.shapes.items()}


@dataclass(frozen=True)
class Watched:
    """A device that notes each request for training."""

    folder: Path
    place: int

    def train(self, task, release):
        with (self.folder / "asked").open("a") as handle:
            handle.write(f"{task.round} {NAMES[self.place]}\n")
        device = TableDevice(client=NAMES[self.place], family="spm", weight=1.0, change=change(self.place, task.round))
        return device.train(task, release)

    def evaluate(self, task, release) -> Evaluation:
        counters = DraftCounters(drafted=100, accepted=50, blocks=20)
        return Evaluation(client=NAMES[self.place], family="spm", counters=counters)


def app(folder: Path, place: int):
    return make_client_app(
        device_for=lambda context: Watched(folder, place),
        identity_for=lambda context: Identity(client=NAMES[place], family="spm"),
    )


def main(folder: Path) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        setattr(TaskIdentity, name, 1)
    grid = LocalGrid({place: app(folder, place) for place in range(len(NAMES))})
    config = config_of(len(NAMES), rounds=ROUNDS, evaluate_every=2, timeout_s=60.0, clip_norm=1e6)
    with begun(folder / "registry", LAYOUT) as registry:
        make_server_app(config, registry, lambda report: print(report.round, flush=True))(grid, a_context())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
