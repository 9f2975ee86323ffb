"""What a fleet asks of a device, in two verbs. It knows neither how a device learns nor how messages reach it."""

from dataclasses import dataclass, field
from typing import Protocol

from ..common.lora import Arrays
from ..common.messages import EvaluateTask, Evaluation, Release, TrainTask, Update, clipped
from ..common.metrics import DraftCounters


class Device(Protocol):
    """A device that learns and measures; the release comes whole with every request."""

    def train(self, task: TrainTask, release: Release) -> Update:
        """Trains ``task.factors`` from ``release`` on the device's own text; the update's norm is within the clip."""

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        """Measures ``release`` on the device's own held-out prompts."""


@dataclass(frozen=True, kw_only=True)
class TableDevice:
    """The in-memory twin: whatever the release, training moves the adapter by ``change``.

    It restricts itself to the factors of the task and clips, as every device must.
    """

    client: str
    family: str
    change: Arrays
    weight: float
    counters: DraftCounters = field(default_factory=DraftCounters)

    def train(self, task: TrainTask, release: Release) -> Update:
        """Answers with the part of ``change`` that the task allows."""
        trained = {name: value for name, value in self.change.items() if name.rpartition(".")[2] in task.factors}
        return Update(
            client=self.client,
            family=self.family,
            base=release.base,
            layout=release.adapter.layout.fingerprint,
            release=release.adapter.digest,
            delta=clipped(trained, task.clip_norm),
            weight=self.weight,
            counters=self.counters,
        )

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        """Answers with ``counters``."""
        return Evaluation(client=self.client, family=self.family, counters=self.counters)
