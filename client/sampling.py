"""How a row of logits becomes a distribution: temperature, top-k, top-p, min-p. It draws nothing."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConfigError, ModelError

Probabilities = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What the target's user asked for.

    | setting              | off | meaning                                                                |
    |----------------------|-----|------------------------------------------------------------------------|
    | `temperature`        | -   | 0 is greedy: all mass on the first argmax                              |
    | `top_k`              | 0   | the k likeliest tokens; ties with the k-th stay                        |
    | `top_p`              | 1   | the likeliest tokens until they hold this mass; the likeliest stays    |
    | `min_p`              | 0   | tokens with at least this share of the likeliest token's probability   |
    | `repetition_penalty` | 1   | divides (if negative, multiplies) the logits of tokens of the text     |

    They apply in Hugging Face's order: penalty, temperature, top-k, top-p, min-p.

    Raises:
      ConfigError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _expect(0 <= self.temperature < math.inf, "temperature", self.temperature, "a finite number >= 0")
        _expect(self.top_k >= 0, "top_k", self.top_k, "an integer >= 0 (0 is off)")
        _expect(0 < self.top_p <= 1, "top_p", self.top_p, "a number in (0, 1] (1 is off)")
        _expect(0 <= self.min_p <= 1, "min_p", self.min_p, "a number in [0, 1] (0 is off)")
        penalty = self.repetition_penalty
        _expect(0 < penalty < math.inf, "repetition_penalty", penalty, "a finite number > 0 (1 is off)")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _expect(holds: bool, field: str, value: float, expectation: str) -> None:
    if not holds:
        raise ConfigError(f"{field} is {value}, expected {expectation}")


def target_probabilities(logits: NDArray[np.float32], sampling: Sampling) -> Probabilities:
    """The distribution p that the target alone samples from.

    Args:
      logits: float32 (V,), after penalties (``processors.py``).
      sampling: temperature, top-k, top-p and min-p, applied in this order as Hugging Face does.

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
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    return _likely(probabilities, sampling.min_p) if sampling.min_p else probabilities


def most_likely(scores: NDArray[np.float32]) -> int:
    """The first argmax, which is what greedy decoding emits.

    Args:
      scores: float32 (n,).

    Raises:
      ModelError: the largest score is not finite.
    """
    best = int(scores.argmax())
    if not math.isfinite(scores[best]):
        raise ModelError("a row of logits has no finite maximum: the model's weights are broken")
    return best


def relative(scores: NDArray[np.float32], temperature: float) -> Probabilities:
    """Probabilities over that of the likeliest, in float64; a score of minus infinity gets exactly zero.

    Args:
      scores: float32 (n,).
      temperature: 0 for zero everywhere but at the first argmax.

    Returns:
      float64 (n,), a new array.

    Raises:
      ModelError: the largest score is not finite.
    """
    best = most_likely(scores)
    if temperature == 0:
        weights = np.zeros(len(scores))
        weights[best] = 1.0
        return weights
    weights = np.subtract(scores, scores[best], dtype=np.float64)
    if temperature != 1:
        weights /= temperature
    return np.exp(weights, out=weights)


def distribution(scores: NDArray[np.float32], temperature: float) -> Probabilities:
    """Softmax in float64: ``relative``, summing to one.

    A restriction to some tokens is a softmax over their scores: they keep their mass however unlikely all of them are
    in the full row.
    """
    weights = relative(scores, temperature)
    weights /= weights.sum()
    return weights


def _nucleus(probabilities: Probabilities, top_p: float) -> Probabilities:
    """Keeps each token above which there is less than ``top_p`` of the mass."""
    # Tokens below this hold less than 1 - top_p together, so none of them is in the nucleus; the rest is soon sorted.
    candidates = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    ranked = probabilities[order]
    kept = order[np.cumsum(ranked) - ranked < top_p]
    nucleus = np.zeros_like(probabilities)
    nucleus[kept] = probabilities[kept]
    return nucleus / nucleus.sum()


def _likely(probabilities: Probabilities, min_p: float) -> Probabilities:
    """Keeps tokens with at least ``min_p`` of the largest probability."""
    kept = np.where(probabilities < min_p * probabilities.max(), 0.0, probabilities)
    return kept / kept.sum()
