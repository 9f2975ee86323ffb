"""Our contestants of the training benchmark, each made in a process of its own (``worker.py``). No torch is imported.

A folder holds what ``material.write_material`` put there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...client.learning.lesson import Lesson
from ...client.learning.trainer import AdamW, AdamWConfig, TrainStep
from ...client.runtimes.onnx_session import bind_weights
from ...common.fusion import fused, train_tensors
from ...common.lora import LoraAdapter, LoraLayout
from ...common.objective import Objective
from ...common.shape import DecoderShape
from ...common.weights import read_stored
from .curriculum import Curriculum
from .worker import Work

OBJECTIVE = Objective(divergence="reverse-kl", ngram_weight=0.2)
OPTIMIZER = AdamWConfig(learning_rate=1e-3)
#: The objective draws no tokens.
_UNUSED = np.random.default_rng(0)


def steps(folder: str, rank: int, alpha: float, threads: int, count: int, curriculum: dict[str, Any]) -> Work:
    """A lap is ``count`` training steps with one adapter; its value the mean loss of the last tenth."""
    layout, step = _opened(folder, rank, alpha, threads)
    learner = _Learner(layout, curriculum)

    def lap() -> float:
        losses = [learner.learn(step) for _ in range(count)]
        tail = losses[-max(1, count // 10) :]
        return sum(tail) / len(tail)

    return lap


def many(
    folder: str, rank: int, alpha: float, threads: int, clients: int, together: bool, curriculum: dict[str, Any]
) -> Work:
    """A lap is one step of each of many adapters, in one call or one by one; its value the sum of their losses."""
    layout, step = _opened(folder, rank, alpha, threads)
    learners = [_Learner(layout, curriculum | {"seed": client}) for client in range(clients)]

    def lap() -> float:
        if not together:
            return sum(learner.learn(step) for learner in learners)
        batches = [next(learner.batches) for learner in learners]
        gradients = step.each([learner.adapter.arrays for learner in learners], batches, OBJECTIVE, _UNUSED)
        for learner, gradient in zip(learners, gradients, strict=True):
            learner.adapter = learner.optimizer.update(learner.adapter, gradient.arrays)
        return sum(gradient.loss for gradient in gradients)

    return lap


class _Learner:
    """An adapter in training, with its optimiser and its lessons."""

    def __init__(self, layout: LoraLayout, curriculum: dict[str, Any]) -> None:
        self.adapter: LoraAdapter = layout.initial(0)
        self.optimizer = AdamW(OPTIMIZER)
        self.batches: Iterator[list[Lesson]] = Curriculum(**curriculum).batches()

    def learn(self, step: TrainStep) -> float:
        gradient = step(self.adapter.arrays, next(self.batches), OBJECTIVE, _UNUSED)
        self.adapter = self.optimizer.update(self.adapter, gradient.arrays)
        return gradient.loss


def _opened(folder: str, rank: int, alpha: float, threads: int) -> tuple[LoraLayout, TrainStep]:
    directory = Path(folder)
    shape = DecoderShape.from_directory(directory)
    weights = bind_weights(train_tensors(fused(read_stored(directory, shape), shape)))
    layout = LoraLayout(rank=rank, alpha=alpha, shape=shape)
    return layout, TrainStep(directory / "train.onnx", weights, threads)
