"""What the server makes of an aggregated update before it changes the release. It knows no rule and no round.

The state between rounds is a value that becomes bytes and back, to be kept with the release that it belongs to.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...common.errors import ConfigError, RegistryError
from ...common.lora import Arrays
from .fed_svd import Basis

OPTIMIZERS = ("none", "fedavgm", "fedadam")
_FIRST, _SECOND = "first:", "second:"


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """Moments by tensor; a tensor that was not yet trained has none. Treat the arrays as read-only."""

    first: Arrays = field(default_factory=dict)
    second: Arrays = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The same bytes for the same values."""
        tensors = {_FIRST + name: value for name, value in self.first.items()}
        tensors |= {_SECOND + name: value for name, value in self.second.items()}
        return save({name: np.ascontiguousarray(value) for name, value in sorted(tensors.items())})

    @classmethod
    def from_bytes(cls, data: bytes) -> "OptimizerState":
        """Reads what ``to_bytes`` gave.

        Raises:
          RegistryError: the bytes are something else or torn.
        """
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise RegistryError(f"the server optimiser's state cannot be read: {error}") from error
        return cls(first=_part(tensors, _FIRST), second=_part(tensors, _SECOND))

    def rebased(self, basis: Basis) -> "OptimizerState":
        """The state for an adapter whose factors were changed by ``basis``.

        First moments turn as the factors do. Second moments are those of single entries, whose covariances are not
        known: taken as zero, variances turn by the squared entries of the matrix.
        """
        return OptimizerState(
            first={name: _turned(name, value, basis, squared=False) for name, value in self.first.items()},
            second={name: _turned(name, value, basis, squared=True) for name, value in self.second.items()},
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimiser the server has.

    ==========  ==================================================================================
    none        the update times ``learning_rate``; 1 is federated averaging
    fedavgm     ``m = momentum m + update``, step ``learning_rate m`` (Hsu et al., arXiv 1909.06335)
    fedadam     algorithm 2 of Reddi et al. (arXiv 2003.00295): ``m = beta1 m + (1 - beta1) update``,
                ``v = beta2 v + (1 - beta2) update^2`` from ``v = tau^2`` on, step
                ``learning_rate m / (sqrt v + tau)``; no correction of the bias, as there
    ==========  ==================================================================================

    Raises:
      ConfigError: a field is out of range.
    """

    name: str = "none"
    learning_rate: float = 1.0
    momentum: float = 0.9
    """Of fedavgm; beta1 of fedadam."""
    beta2: float = 0.99
    tau: float = 1e-3
    """How adaptive fedadam is: entries whose updates are well below it move in proportion to them."""

    def __post_init__(self) -> None:
        _check("optimizer", self.name, self.name in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        for name in ("learning_rate", "tau"):
            _check(name, value := getattr(self, name), math.isfinite(value) and value > 0, "a number > 0")
        for name in ("momentum", "beta2"):
            _check(name, value := getattr(self, name), 0 <= value < 1, "a number >= 0 and < 1")

    def step(self, update: Arrays, state: OptimizerState) -> tuple[Arrays, OptimizerState]:
        """(what to add to the release, the state after it); tensors that ``update`` has not keep their moments."""
        steps, first, second = dict[str, NDArray[np.float32]](), dict(state.first), dict(state.second)
        for name, value in update.items():
            change = value.astype(np.float64)
            step: NDArray[np.float64] = change
            if self.name != "none":
                step = self._moment(change, state.first.get(name))
                first[name] = step.astype(np.float32)
            if self.name == "fedadam":
                spread = self._spread(change, state.second.get(name))
                second[name] = spread.astype(np.float32)
                np.divide(step, np.sqrt(spread) + self.tau, out=step)
            steps[name] = (self.learning_rate * step).astype(np.float32)
        return steps, OptimizerState(first=first, second=second)

    def _moment(self, change: NDArray[np.float64], before: NDArray[np.float32] | None) -> NDArray[np.float64]:
        fresh = change if self.name == "fedavgm" else (1 - self.momentum) * change
        return fresh if before is None else self.momentum * before.astype(np.float64) + fresh

    def _spread(self, change: NDArray[np.float64], before: NDArray[np.float32] | None) -> NDArray[np.float64]:
        kept = np.full_like(change, self.tau**2) if before is None else before.astype(np.float64)
        return self.beta2 * kept + (1 - self.beta2) * np.square(change)


def _part(tensors: Mapping[str, NDArray[np.float32]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _turned(name: str, value: NDArray[np.float32], basis: Basis, squared: bool) -> NDArray[np.float32]:
    """``B R`` for a B and ``R^-1 A`` for an A; with R's or R^-1's entries squared for second moments."""
    _, layer, projection, factor = name.split(".")
    turn = basis[int(layer), projection]
    if factor == "A":
        turn = np.asarray(np.linalg.pinv(turn), np.float64)
    if squared:
        turn = np.square(turn)
    return (value @ turn if factor == "B" else turn @ value).astype(np.float32)


def _check(name: str, value: object, holds: bool, expectation: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}, expected {expectation}")
