"""The acceptance head: how likely the drafter's next proposal is accepted, from the drafter's own state. NumPy only.

    x = h / rms(h),    x <- x + silu(x W + b) three times,    P = sigmoid(x v + c)

with h the drafter's last hidden state at a position boundary. v begins at zero, so an untrained head says a prior
whatever it is shown. Source: SpecDec++ (Huang et al., 2024), section 3; the RMS is ours, and so is x <- x U before the
blocks where h is wider than ``WIDEST``: three matrices of 1,024 x 1,024 would be 12.6 MB to read for each proposal, and
38 MB to keep with their averages. It is shown nothing but h, and knows no drafter and no text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError
from ..runtimes.decoder import Hidden

Floats = NDArray[np.float32]
Tensors = Mapping[str, Floats]

BLOCKS = 3
WIDEST = 128
"""Of the blocks."""
PRIOR = 0.6
"""What is expected of a proposal before anything was seen; hope, so that it is tried."""
_TINY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Examples:
    """n boundaries and what became of the proposals behind them.

    hidden: float32 (n, hidden size). labels: float32 (n,), min(1, p / r).
    """

    hidden: Floats
    labels: Floats

    def __len__(self) -> int:
        return len(self.labels)


def initial_tensors(hidden_size: int, seed: int) -> dict[str, Floats]:
    """The tensors of an untrained head."""
    if hidden_size < 1:
        raise ConfigError(
            f"the hidden size is {hidden_size}, expected at least 1; this drafter's graph gives no states"
        )
    rng, width, tensors = np.random.default_rng(seed), min(hidden_size, WIDEST), dict[str, Floats]()
    if width < hidden_size:
        tensors["in.weight"] = _first(rng, hidden_size, width)
    for n in range(BLOCKS):
        tensors[f"{n}.weight"] = _first(rng, width, width)
        tensors[f"{n}.bias"] = np.zeros(width, np.float32)
    return tensors | {
        "out.weight": np.zeros(width, np.float32),
        "out.bias": np.array([math.log(PRIOR / (1 - PRIOR))], np.float32),
    }


def _first(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A matrix that keeps the size of what it is given."""
    return (rng.standard_normal((rows, columns)) / math.sqrt(rows)).astype(np.float32)


def acceptance(tensors: Tensors, hidden: Hidden) -> float:
    """P(the proposal behind one boundary is accepted).

    Args:
      tensors: as ``initial_tensors`` names them.
      hidden: float32 (hidden size,).
    """
    x: Floats = hidden * np.float32(1 / math.sqrt(float(hidden @ hidden) / len(hidden) + _TINY))
    if "in.weight" in tensors:
        x = x @ tensors["in.weight"]
    for n in range(BLOCKS):
        z: Floats = x @ tensors[f"{n}.weight"]
        z += tensors[f"{n}.bias"]
        x = x + z * _sigmoid(z)
    logit = float(x @ tensors["out.weight"]) + tensors["out.bias"].item()
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))


def loss_and_gradient(tensors: Tensors, examples: Examples, mismatch_weight: float) -> tuple[float, dict[str, Floats]]:
    """Weighted binary cross-entropy with soft labels y, mean over examples, and its gradient by tensor name.

    -(y log P + w (1 - y) log(1 - P)). w = 1 makes P the probability; the paper takes 6 for its threshold.

    Args:
      tensors: as ``initial_tensors`` names them; their dtype is the result's.
      examples: at least one.
      mismatch_weight: w.
    """
    states, sums = _normed(examples.hidden), []
    first: Floats = states @ tensors["in.weight"] if "in.weight" in tensors else states
    inputs = [first]
    for n in range(BLOCKS):
        sums.append(inputs[-1] @ tensors[f"{n}.weight"] + tensors[f"{n}.bias"])
        inputs.append(inputs[-1] + sums[-1] * _sigmoid(sums[-1]))
    logits = inputs[-1] @ tensors["out.weight"] + tensors["out.bias"]
    y, w = examples.labels, mismatch_weight
    # log P = -softplus(-z), log(1 - P) = -softplus(z)
    loss = float(np.mean(y * np.logaddexp(0, -logits) + w * (1 - y) * np.logaddexp(0, logits)))
    p = _sigmoid(logits)
    d = ((w * (1 - y) * p - y * (1 - p)) / len(examples)).astype(logits.dtype)
    gradient = {"out.weight": inputs[-1].T @ d, "out.bias": d.sum(keepdims=True)}
    behind = np.outer(d, tensors["out.weight"])
    for n in reversed(range(BLOCKS)):
        gate = _sigmoid(sums[n])
        dz = behind * gate * (1 + sums[n] * (1 - gate))
        gradient[f"{n}.weight"], gradient[f"{n}.bias"] = inputs[n].T @ dz, dz.sum(axis=0)
        behind = behind + dz @ tensors[f"{n}.weight"].T
    if "in.weight" in tensors:
        gradient["in.weight"] = states.T @ behind
    return loss, gradient


def _normed(hidden: Floats) -> Floats:
    scale = np.sqrt((hidden**2).mean(axis=1, keepdims=True, dtype=hidden.dtype) + hidden.dtype.type(_TINY))
    normed: Floats = hidden / scale
    return normed


def _sigmoid(z: Floats) -> Floats:
    half = z.dtype.type(0.5)
    sigmoid: Floats = half * (1 + np.tanh(half * z))  # an exponential would overflow
    return sigmoid
