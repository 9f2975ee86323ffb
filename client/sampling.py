"""How a row of logits becomes a distribution: temperature, then top-k, then top-p. It draws nothing."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConfigError, ModelError

Probabilities = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What the target's user asked for.

    | setting       | edge | meaning                              |
    |---------------|------|--------------------------------------|
    | `temperature` | 0    | greedy: all mass on the first argmax |
    | `top_k`       | 0    | off; ties with the k-th token stay   |
    | `top_p`       | 1    | off; the likeliest token stays       |

    Raises:
      ConfigError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _expect(0 <= self.temperature < math.inf, "temperature", self.temperature, "a finite number >= 0")
        _expect(self.top_k >= 0, "top_k", self.top_k, "an integer >= 0 (0 is off)")
        _expect(0 < self.top_p <= 1, "top_p", self.top_p, "a number in (0, 1]")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _expect(holds: bool, field: str, value: float, expectation: str) -> None:
    if not holds:
        raise ConfigError(f"{field} is {value}, expected {expectation}")


def target_probabilities(logits: NDArray[np.float32], sampling: Sampling) -> Probabilities:
    """The distribution p that the target alone samples from.

    Args:
      logits: float32 (V,).
      sampling: temperature, top-k and top-p, applied in this order as Hugging Face does.

    Returns:
      float64 (V,), summing to one.

    Raises:
      ModelError: the largest logit is not finite.
    """
    scores = logits
    if sampling.greedy:
        return distribution(scores, 0)
    if 0 < sampling.top_k < len(scores):
        lowest = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores = np.where(scores < lowest, np.float32(-np.inf), scores)
    probabilities = distribution(scores, sampling.temperature)
    return probabilities if sampling.top_p == 1 else _nucleus(probabilities, sampling.top_p)


def distribution(scores: NDArray[np.float32], temperature: float) -> Probabilities:
    """Softmax in float64; a score of minus infinity gets exactly no mass.

    A restriction to some tokens is a softmax over their scores: they keep their mass however unlikely all of them are
    in the full row.

    Args:
      scores: float32 (n,).
      temperature: 0 for all mass on the first argmax.

    Returns:
      float64 (n,), summing to one.

    Raises:
      ModelError: the largest score is not finite.
    """
    best = int(scores.argmax())
    if not math.isfinite(scores[best]):
        raise ModelError("a row of logits has no finite maximum: the model's weights are broken")
    if temperature == 0:
        probabilities = np.zeros(len(scores))
        probabilities[best] = 1.0
        return probabilities
    probabilities = scores.astype(np.float64)
    probabilities -= probabilities[best]
    probabilities /= temperature
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum()
    return probabilities


def _nucleus(probabilities: Probabilities, top_p: float) -> Probabilities:
    """Keeps each token above which there is less than ``top_p`` of the mass."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    kept = order[np.cumsum(ranked) - ranked < top_p]
    nucleus = np.zeros_like(probabilities)
    nucleus[kept] = probabilities[kept]
    return nucleus / nucleus.sum()
