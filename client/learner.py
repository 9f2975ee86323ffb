"""The online learner: watches what the target decides, and after every few prompts improves the drafter's adapter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import ConfigError, TrainingError
from ..common.lora import LoraAdapter
from ..common.messages import TrainCounters, l2_norm
from .decoder import Logits
from .lesson import PROJECTIONS, LessonWriter, Projection
from .outcome import Outcome
from .replay import Replay
from .trainer import AdamW, AdamWConfig, Gradient, HybridLoss, TrainStep


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """When and how to learn."""

    every_prompts: int = 4
    steps: int = 4
    """Training steps each time."""
    batch_size: int = 8
    replay_capacity: int = 64
    max_lesson_tokens: int = 192
    loss: HybridLoss = HybridLoss()
    optimizer: AdamWConfig = AdamWConfig()
    projection: Projection = "prefix"
    """How the target's distribution is seen in drafter tokens (``lesson.py``)."""
    factors: tuple[str, ...] = ("A", "B")
    """LoRA factors that may change; FFA-LoRA trains ``B`` alone."""

    def __post_init__(self) -> None:
        for name in ("every_prompts", "steps", "batch_size", "replay_capacity", "max_lesson_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.projection not in PROJECTIONS:
            raise ConfigError(f"projection is {self.projection!r}, expected one of {', '.join(PROJECTIONS)}")
        if not self.factors or not set(self.factors) <= {"A", "B"}:
            raise ConfigError(f"factors is {self.factors}, expected A, B or both")


#: The newest steps whose losses are remembered: enough to see a run's course, bounded where prompts never end.
LOSSES_KEPT = 4096


class OnlineLearner:
    """A witness of generation that trains between prompts.

    The caller marks texts with ``begin`` and ``end``; training happens in ``end``, never while a text is generated.
    """

    def __init__(
        self,
        *,
        step: TrainStep,
        writer: LessonWriter,
        adapter: LoraAdapter,
        config: LearnerConfig,
        seed: int,
        on_change: Callable[[LoraAdapter], None],
    ) -> None:
        """Starts from ``adapter``; ``on_change`` puts each improved one in force."""
        self.adapter = adapter
        self.losses: list[float] = []
        """Of the newest ``LOSSES_KEPT`` steps."""
        self.training = TrainCounters()
        self._step, self._writer, self._config = step, writer, config
        self._on_change = on_change
        self._optimizer = AdamW(config.optimizer)
        self._replay = Replay(config.replay_capacity, np.random.default_rng(seed))
        self._prompt: Sequence[int] = ()
        self._since = 0
        self._tokens: list[int] = []
        self._rows: list[Logits] = []

    def begin(self, prompt: Sequence[int]) -> None:
        """Marks the beginning of a text; ``prompt`` in target tokens."""
        self._prompt, self._tokens, self._rows = prompt, [], []

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``."""
        self._tokens += outcome.tokens
        self._rows.append(outcome.rows.copy())

    def end(self) -> None:
        """Stores the text's lesson; every ``every_prompts`` texts, trains."""
        if self._tokens:
            rows = np.concatenate(self._rows)
            self._replay.add(self._writer.write(self._prompt, self._tokens, rows, self._config.max_lesson_tokens))
        self._since += 1
        if self._since >= self._config.every_prompts:
            self.train()

    def train(self) -> None:
        """Runs the configured number of steps on the replay and puts the result in force.

        All or nothing: if a step fails, ``adapter`` stays the one in force, and optimiser, losses and counters stay as
        before the first; lessons stay too.

        Raises:
          TrainingError: a loss or gradient is not finite.
        """
        self._since = 0
        if not len(self._replay):
            return
        adapter, optimizer, losses, done = self.adapter, self._optimizer.copy(), list[float](), TrainCounters()
        try:
            for _ in range(self._config.steps):
                gradient = self._gradient(adapter)
                adapter = optimizer.update(adapter, self._allowed(gradient))
                losses.append(gradient.loss)
                done += TrainCounters(steps=1, positions=gradient.rows, loss=gradient.loss * gradient.rows)
        finally:
            # Until the next time the device has the memory of a step for other things; opening is quick.
            self._step.close()
        self._on_change(adapter)
        self.adapter, self._optimizer = adapter, optimizer
        self.losses = (self.losses + losses)[-LOSSES_KEPT:]
        self.training += done

    def _gradient(self, adapter: LoraAdapter) -> Gradient:
        gradient = self._step(adapter.arrays, self._replay.batch(self._config.batch_size))
        _check_finite(gradient)
        return gradient

    def _allowed(self, gradient: Gradient) -> dict[str, np.ndarray]:
        return {n: g for n, g in gradient.arrays.items() if n.rpartition(".")[2] in self._config.factors}


def _check_finite(gradient: Gradient) -> None:
    if not (math.isfinite(gradient.loss) and math.isfinite(l2_norm(gradient.arrays))):
        raise TrainingError("training diverged: the loss or its gradient is not finite; try a lower learning rate")
