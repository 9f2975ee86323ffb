"""The training step on ONNX Runtime: a batch of lessons in, loss and LoRA gradients out, AdamW in NumPy.

No training framework is involved: forward and backward are one plain graph (``export/train_graph.py``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConfigError
from ..common.lora import Arrays, LoraAdapter
from ..common.messages import clipped
from .lesson import Lesson
from .runtime import BoundWeights, open_session


@dataclass(frozen=True, kw_only=True)
class HybridLoss:
    """Weights of the hybrid loss (ALGORITHMS §3): divergence on direct rows + ``ngram_weight`` x n-gram NLL."""

    ngram_weight: float = 0.2
    forward_mix: float = 0.0
    """1 is forward KL(p‖q), 0 reverse KL(q‖p), linear between."""

    def __post_init__(self) -> None:
        if not 0 <= self.ngram_weight < math.inf:
            raise ConfigError(f"ngram_weight is {self.ngram_weight}, expected a finite number >= 0")
        if not 0 <= self.forward_mix <= 1:
            raise ConfigError(f"forward_mix is {self.forward_mix}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Mean loss over the rows of a batch that teach something, and its gradient by LoRA tensor name."""

    loss: float
    rows: int
    arrays: Arrays


class TrainStep:
    """The train graph over a drafter's frozen weights; stateless between calls."""

    def __init__(self, graph: Path, weights: BoundWeights, loss: HybridLoss, threads: int = 1) -> None:
        self._session = open_session(graph, weights, threads)
        self._loss = loss
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, adapter: Mapping[str, NDArray[np.float32]], lessons: Sequence[Lesson]) -> Gradient:
        """Runs forward and backward on one batch.

        Args:
          adapter: LoRA tensors by name.
          lessons: the batch; padded to the longest.
        """
        feeds = collate(lessons, self._loss) | dict(adapter)
        values = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        grads = {name.removeprefix("grad."): value for name, value in values.items() if name.startswith("grad.")}
        return Gradient(loss=float(values["loss"]), rows=sum(lesson.rows for lesson in lessons), arrays=grads)


def collate(lessons: Sequence[Lesson], loss: HybridLoss) -> dict[str, NDArray[np.generic]]:
    """Inputs of the train graph but the adapter: padded on the right, weights divided by the rows that teach."""
    length = max(len(lesson.tokens) for lesson in lessons)

    def stack(field: str) -> NDArray[np.generic]:
        values = [getattr(lesson, field) for lesson in lessons]
        return np.stack([np.pad(v, [(0, length - len(v)), *[(0, 0)] * (v.ndim - 1)]) for v in values])

    rows = max(1, sum(lesson.rows for lesson in lessons))
    return {
        "tokens": stack("tokens"),
        "teacher_ids": stack("teacher_ids"),
        "teacher_probs": stack("teacher_probs"),
        "kl_weight": stack("taught").astype(np.float32) / np.float32(rows),
        "labels": stack("labels"),
        "nll_weight": stack("ngram").astype(np.float32) * np.float32(loss.ngram_weight / rows),
        "mix": np.array(loss.forward_mix, dtype=np.float32),
    }


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW as published for online drafting: betas 0.9 and 0.999, constant rate; plus a bound on the gradient."""

    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate is {self.learning_rate}, expected between 0 and 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay is {self.weight_decay}, expected a finite number >= 0")
        if not 0 < self.max_grad_norm < math.inf:
            raise ConfigError(f"max_grad_norm is {self.max_grad_norm}, expected a finite number > 0")


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) over named arrays."""

    def __init__(self, config: AdamWConfig) -> None:
        self._config = config
        self._step = 0
        self._mean: Arrays = {}
        self._square: Arrays = {}

    def update(self, adapter: LoraAdapter, gradient: Mapping[str, NDArray[np.float32]]) -> LoraAdapter:
        """One step on the tensors that ``gradient`` names; its norm over all of them is bounded first."""
        self._step += 1
        bounded = clipped(gradient, self._config.max_grad_norm)
        return adapter.plus({name: self._change(name, g, adapter.arrays[name]) for name, g in bounded.items()})

    def _change(self, name: str, g: NDArray[np.float32], value: NDArray[np.float32]) -> NDArray[np.float32]:
        c = self._config
        mean = self._mean[name] = self._average(self._mean.get(name), g, c.beta1)
        square = self._square[name] = self._average(self._square.get(name), np.square(g), c.beta2)
        mean = mean / (1 - c.beta1**self._step)
        square = square / (1 - c.beta2**self._step)
        change = -c.learning_rate * (mean / (np.sqrt(square) + c.epsilon) + c.weight_decay * value)
        return change.astype(np.float32)

    @staticmethod
    def _average(old: NDArray[np.float32] | None, new: NDArray[np.float32], beta: float) -> NDArray[np.float32]:
        fresh = new * np.float32(1 - beta)
        return fresh if old is None else old * np.float32(beta) + fresh
