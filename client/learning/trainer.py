"""The training step on ONNX Runtime: a batch of lessons in, loss and LoRA gradients out, AdamW in NumPy.

No training framework is involved: forward and backward are one plain graph (``export/train_graph.py``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...common.errors import ConfigError, ModelError
from ...common.lora import Arrays, LoraAdapter
from ...common.messages import clipped
from ...common.objective import Objective
from ..runtimes.onnx_session import BoundWeights, open_session
from .lesson import Lesson


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Mean loss over the rows of a batch that teach something, and its gradient by LoRA tensor name."""

    loss: float
    rows: int
    overlap: float
    """Mean Σ min(p, q) of the rows with a teacher, an upper bound of the share of drafts accepted there; NaN if none"""
    arrays: Arrays


class TrainStep:
    """The train graph over a drafter's frozen weights; stateless between calls.

    Its session, with the memory of a step, is opened by the first call and kept until ``close``.
    """

    def __init__(self, graph: Path, weights: BoundWeights, threads: int = 1) -> None:
        """Opens nothing yet.

        Args:
          graph: path of ``train.onnx``.
          weights: as ``fusion.train_tensors`` names them; each run reads them where they are.
          threads: intra-op threads; 1 runs on the caller's thread.
        """
        self._graph, self._weights, self._threads = graph, weights, threads
        self._session: ort.InferenceSession | None = None
        self._buffers: Arrays = {}

    def __call__(
        self,
        adapter: Mapping[str, NDArray[np.float32]],
        lessons: Sequence[Lesson],
        objective: Objective,
        rng: np.random.Generator,
    ) -> Gradient:
        """Runs forward and backward on one batch.

        Args:
          adapter: LoRA tensors by name.
          lessons: the batch; padded to the longest.
          objective: of this step.
          rng: for a loss that draws tokens; others leave it alone.

        Raises:
          ConfigError: there is no lesson.
          ModelError: the graph is missing, cannot be opened, or is of another version.
        """
        return self.each([adapter], [lessons], objective, rng)[0]

    def each(
        self,
        adapters: Sequence[Mapping[str, NDArray[np.float32]]],
        batches: Sequence[Sequence[Lesson]],
        objective: Objective,
        rng: np.random.Generator,
    ) -> list[Gradient]:
        """Runs many adapters in one call, each on its own batch: the same numbers as one at a time, but for draws.

        Memory grows with the sum of all positions, not with the number of adapters.

        Raises:
          ConfigError: there is no batch, or one without lessons.
          ModelError: as for one.
        """
        _check_batches(batches)
        batch = collate(batches, objective, rng)
        session = self._opened(batch)
        names = [output.name for output in session.get_outputs()]
        feeds = {**self._weights, **self._together(adapters), **batch}
        values = dict(zip(names, session.run(names, feeds), strict=True))
        taught = batch["kl_weight"].sum(axis=1)
        gradients = {name.removeprefix("grad."): value for name, value in values.items() if name.startswith("grad.")}
        return [
            Gradient(
                loss=float(values["loss"][client]),
                rows=sum(lesson.rows for lesson in lessons),
                overlap=float(values["overlap"][client] / taught[client]) if taught[client] else math.nan,
                arrays={name: value[client] for name, value in gradients.items()},
            )
            for client, lessons in enumerate(batches)
        ]

    @property
    def is_open(self) -> bool:
        """Whether a session, and so a step's memory, is held."""
        return self._session is not None

    def close(self) -> None:
        """Gives the session's memory back; a later call opens it again."""
        self._session = None
        self._buffers.clear()

    def _opened(self, batch: Mapping[str, NDArray[Any]]) -> ort.InferenceSession:
        if self._session is None:
            session = open_session(self._graph, {}, self._threads, varying=True)
            unknown = batch.keys() - {value.name for value in session.get_inputs()}
            if unknown:
                raise ModelError(f"{self._graph} does not read {', '.join(sorted(unknown))}; build the bundle anew")
            self._session = session
        return self._session

    def _together(self, adapters: Sequence[Mapping[str, NDArray[np.float32]]]) -> Arrays:
        """Adapters with an axis of clients before their own, in memory that is used again by the next call."""
        if len(adapters) == 1:
            return {name: value[None] for name, value in adapters[0].items()}
        for name, value in adapters[0].items():
            size = (len(adapters), *value.shape)
            if name not in self._buffers or self._buffers[name].shape != size:
                self._buffers[name] = np.empty(size, np.float32)
            np.stack([adapter[name] for adapter in adapters], out=self._buffers[name])
        return self._buffers


def _check_batches(batches: Sequence[Sequence[Lesson]]) -> None:
    sizes = [len(lessons) for lessons in batches]
    if not sizes or not all(sizes):
        raise ConfigError(
            f"batches of {sizes} lessons, expected at least one batch and a lesson in each; leave out clients without"
        )


def collate(
    batches: Sequence[Sequence[Lesson]], objective: Objective, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Inputs of the train graph but adapters and weights, for one batch of lessons a client.

    Texts are padded on the right, judged rows too; a client's weights are divided by its own rows that teach.
    """
    length = max(len(lesson.tokens) for lessons in batches for lesson in lessons)
    clients = [_inputs(lessons, length, objective) for lessons in batches]
    feeds = {name: _stacked([client[name] for client in clients], -1 if name == "rows" else 0) for name in clients[0]}
    return feeds | {
        "uniforms": objective.uniforms(feeds["rows"].shape, rng),
        "divergences": objective.weights,
        "beta": np.array(objective.beta, np.float32),
        "eta": np.array(objective.eta, np.float32),
    }


def _inputs(lessons: Sequence[Lesson], length: int, objective: Objective) -> dict[str, NDArray[Any]]:
    """One client's inputs; a position is its text times ``length`` plus its place in it."""
    places = [np.flatnonzero(lesson.judged) for lesson in lessons]

    def judged(field: str) -> NDArray[Any]:
        return np.concatenate([getattr(lesson, field)[at] for lesson, at in zip(lessons, places, strict=True)])

    rows = np.concatenate([text * length + at for text, at in enumerate(places)])
    share = np.float32(1 / max(1, len(rows)))
    likelihood = judged("ngram").astype(np.float32) * np.float32(objective.ngram_weight) * share
    return {
        "tokens": _stacked([lesson.tokens for lesson in lessons]),
        "rows": rows.astype(np.int64),
        "teacher_ids": judged("teacher_ids"),
        "teacher_probs": judged("teacher_probs"),
        "kl_weight": judged("taught").astype(np.float32) * share,
        "labels": judged("labels"),
        "nll_weight": likelihood * judged("label_probs") if objective.dynamic else likelihood,
    }


def _stacked(arrays: Sequence[NDArray[Any]], fill: int = 0) -> NDArray[Any]:
    """Stacks arrays after filling each up to the largest size and to 1 at least, at the end of every axis."""
    most = np.max([array.shape for array in arrays], axis=0).clip(min=1)
    return np.stack(
        [np.pad(a, [(0, m - own) for m, own in zip(most, a.shape, strict=True)], constant_values=fill) for a in arrays]
    )


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
            raise ConfigError(f"learning_rate is {self.learning_rate}, expected a number above 0 and below 1")
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

    def copy(self) -> "AdamW":
        """Another that has seen the same; what either sees from now on is its own."""
        other = AdamW(self._config)
        # Averages are replaced and never written into.
        other._step, other._mean, other._square = self._step, dict(self._mean), dict(self._square)
        return other

    def to_bytes(self) -> bytes:
        """All that it has seen, in the safetensors format; the config is not in it."""
        averages = {"mean": self._mean, "square": self._square}
        tensors = {f"{kind}.{name}": value for kind, arrays in averages.items() for name, value in arrays.items()}
        return save({"step": np.array([self._step], np.int64), **tensors})

    @classmethod
    def from_bytes(cls, config: AdamWConfig, data: bytes) -> "AdamW":
        """The optimiser that ``to_bytes`` was called on, to the bit; it goes on under ``config``.

        Raises:
          ModelError: the bytes are not those of an optimiser.
        """
        tensors = _optimizer_tensors(data)
        found = cls(config)
        found._step = int(tensors.pop("step")[0])
        for name, value in tensors.items():
            kind, _, name = name.partition(".")
            (found._mean if kind == "mean" else found._square)[name] = value
        return found

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


_NO_OPTIMIZER = "not an optimiser's state; delete it to start afresh"


def _optimizer_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Reads what ``AdamW.to_bytes`` wrote: a step, and the two averages of each tensor."""
    try:
        tensors: dict[str, NDArray[Any]] = load(data)
    except SafetensorError as error:
        raise ModelError(f"{_NO_OPTIMIZER}: {str(error).splitlines()[0]}") from error
    step = tensors.get("step", np.zeros(0))
    if step.shape != (1,) or step.dtype != np.int64 or step[0] < 0:
        raise ModelError(f"{_NO_OPTIMIZER}: there is no number of steps in it")
    averaged = {name.removeprefix("mean.") for name in tensors if name.startswith("mean.")}
    if set(tensors) != {"step", *(f"{kind}.{name}" for kind in ("mean", "square") for name in averaged)}:
        raise ModelError(f"{_NO_OPTIMIZER}: the averages in it are not two of each tensor")
    for name in averaged:
        if not _are_averages(tensors[f"mean.{name}"], tensors[f"square.{name}"]):
            raise ModelError(f"{_NO_OPTIMIZER}: its averages of {name} are none")
    return tensors


def _are_averages(mean: NDArray[Any], square: NDArray[Any]) -> bool:
    if mean.shape != square.shape or not mean.dtype == square.dtype == np.float32:
        return False
    return bool(np.isfinite(mean).all() and np.isfinite(square).all() and (square >= 0).all())
