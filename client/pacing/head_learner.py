"""Trains an acceptance head from verdicts, online: a bounded memory of boundaries and AdamW. It knows no drafter."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...common.errors import ConfigError
from ..runtimes.decoder import Hidden
from .acceptance_head import Examples, Floats, acceptance, initial_tensors, loss_and_gradient
from .boundary import Boundary
from .head_file import Arrays, fill, head_bytes, head_read

_FORMAT = "fleetdraft acceptance head 2"
_NEWEST = 128
"""Half of each batch is drawn from so many newest boundaries: texts of one kind come one after the other."""
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a head learns.

    capacity: boundaries remembered, the oldest are overwritten; with all of them a head on states of 1,024 numbers is
    kept in less than 4 MB. batch_size: of a step; 16 stays below the size from which BLAS starts threads, which would
    wait for those of the models. steps: of one ``train``. mismatch_weight: 6 in the paper, for its
    threshold; 1 where the probability is to be one.
    """

    capacity: int = 768
    batch_size: int = 16
    steps: int = 1
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    mismatch_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("capacity", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate is {self.learning_rate}, expected between 0 and 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay is {self.weight_decay}, expected a finite number >= 0")
        if not 0 < self.mismatch_weight < math.inf:
            raise ConfigError(f"mismatch_weight is {self.mismatch_weight}, expected a finite number > 0")


class HeadLearner:
    """An acceptance head that learns.

    Args:
      hidden_size: of the drafter's states.
      config: how it learns.
      seed: of the first weights and of what is drawn from memory.
    """

    def __init__(self, hidden_size: int, config: HeadConfig, seed: int) -> None:
        first = initial_tensors(hidden_size, seed)
        self.hidden_size, self._config = hidden_size, config
        self._sizes = {name: value.shape for name, value in first.items()}
        # One vector each for weights and both averages: a step of AdamW is a few operations on all of them.
        self._weights = np.concatenate([value.ravel() for value in first.values()])
        self._mean, self._square = np.zeros_like(self._weights), np.zeros_like(self._weights)
        self._tensors = _views(self._weights, self._sizes)
        self.steps = 0
        """Training steps so far."""
        self.seen = 0
        """Boundaries so far; the newest ``config.capacity`` are remembered."""
        # The last column is the label. States are kept as the head takes them, over their RMS, so float16 spans them.
        self._memory = np.zeros((config.capacity, hidden_size + 1), np.float16)
        self._rng = np.random.default_rng(seed)

    def __call__(self, hidden: Hidden) -> float:
        """P(the next proposal is accepted), given that those before it are; see ``acceptance_head.acceptance``."""
        return acceptance(self._tensors, hidden)

    @property
    def mismatch_weight(self) -> float:
        """See ``HeadConfig``."""
        return self._config.mismatch_weight

    def __len__(self) -> int:
        return min(self.seen, self._config.capacity)

    def doubt(self, seen: Hidden) -> float:
        """It does not know: 0."""
        return 0.0

    def see(self, boundary: Boundary) -> Hidden:
        """float32 (hidden size,): the drafter's state."""
        return boundary.hidden

    def observe(self, seen: Sequence[Hidden], labels: Iterable[float]) -> None:
        """Remembers the states at boundaries and how the proposals behind them were judged: min(1, p / r)."""
        for state, label in zip(seen, labels, strict=False):
            if np.isfinite(state).all():
                row = self._memory[self.seen % self._config.capacity]
                row[:-1], row[-1] = _over_rms(state), label
                self.seen += 1

    def train(self) -> float:
        """Runs the configured steps on what is remembered; returns their mean loss, 0 where there is nothing.

        A step whose gradient is not finite is left out.
        """
        if not len(self):
            return 0.0
        return sum(self._step(self._drawn()) for _ in range(self._config.steps)) / self._config.steps

    def loss(self, examples: Examples) -> float:
        """Of the head as it is, with the configured mismatch weight."""
        return loss_and_gradient(self._tensors, examples, self._config.mismatch_weight)[0]

    def _drawn(self) -> Examples:
        size, newest = self._config.batch_size, min(len(self), _NEWEST)
        anywhere = self._rng.integers(len(self), size=size - size // 2)
        lately = (self.seen - 1 - self._rng.integers(newest, size=size // 2)) % self._config.capacity
        rows = self._memory[np.concatenate((anywhere, lately))].astype(np.float32)
        return Examples(hidden=rows[:, :-1], labels=rows[:, -1])

    def _step(self, examples: Examples) -> float:
        """AdamW (Loshchilov & Hutter 2019) over all tensors as one vector."""
        loss, by_name = loss_and_gradient(self._tensors, examples, self._config.mismatch_weight)
        gradient = np.concatenate([by_name[name].ravel() for name in self._sizes])
        if not math.isfinite(loss) or not np.isfinite(gradient).all():
            return 0.0
        self.steps += 1
        fast, slow = _BETAS
        self._mean += np.float32(1 - fast) * (gradient - self._mean)
        self._square += np.float32(1 - slow) * (gradient**2 - self._square)
        change = self._mean / np.float32(1 - fast**self.steps)
        change /= np.sqrt(self._square / np.float32(1 - slow**self.steps)) + np.float32(_EPSILON)
        change += np.float32(self._config.weight_decay) * self._weights
        self._weights -= np.float32(self._config.learning_rate) * change
        return loss

    # --- state ------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Everything: what ``from_bytes`` makes of it goes on exactly as this one would."""
        head = {
            "format": _FORMAT,
            "hidden_size": self.hidden_size,
            "config": asdict(self._config),
            "steps": self.steps,
            "seen": self.seen,
            "rng": self._rng.bit_generator.state,
        }
        return head_bytes(
            head,
            weights=self._weights,
            mean=self._mean,
            square=self._square,
            memory=self._memory[: len(self)],
        )

    @classmethod
    def from_bytes(cls, data: bytes, hidden_size: int) -> "HeadLearner":
        """What ``to_bytes`` wrote.

        Raises:
          ModelError: it did not, or the bytes are torn.
          FingerprintError: of a drafter with another hidden size.
        """
        with head_read(data, _FORMAT, hidden_size) as (head, arrays):
            learner = cls(hidden_size, HeadConfig(**head["config"]), seed=0)
            learner._restore(head, arrays)
        return learner

    def _restore(self, head: dict[str, Any], arrays: Arrays) -> None:
        for own, name in ((self._weights, "weights"), (self._mean, "mean"), (self._square, "square")):
            fill(own, name, arrays)
        self._memory[: len(arrays["memory"])] = arrays["memory"]
        self.steps, self.seen = int(head["steps"]), int(head["seen"])
        self._rng.bit_generator.state = head["rng"]


def _over_rms(state: Hidden) -> Floats:
    """A state as the head takes it; zeros stay."""
    wide = state.astype(np.float64)  # the square of a large number is no float32
    normed: Floats = (wide / (np.sqrt(np.square(wide).mean()) or 1.0)).astype(np.float32)
    return normed


def _views(vector: Floats, sizes: dict[str, tuple[int, ...]]) -> dict[str, Floats]:
    """The tensors of a vector, in order, over the same memory."""
    views, start = {}, 0
    for name, size in sizes.items():
        end = start + math.prod(size)
        views[name], start = vector[start:end].reshape(size), end
    return views
