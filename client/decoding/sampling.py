"""How a row of logits becomes a distribution: temperature, top-k, top-p, min-p. It draws nothing."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError, ModelError

Probabilities = NDArray[np.float64]
Numerators = NDArray[np.float32] | NDArray[np.float64]

RUN = 128

PENALTIES = 1e-30, 1e30
"""Repetition penalties that float32 has room for: logits up to 1e8 times or by them are finite (at most 3.4e38)."""


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
        penalty, (least, most) = self.repetition_penalty, PENALTIES
        _expect(least <= penalty <= most, "repetition_penalty", penalty, f"{least:g} to {most:g} (1 is off)")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _expect(holds: bool, field: str, value: float, expectation: str) -> None:
    if not holds:
        raise ConfigError(f"{field} is {value}, expected {expectation}")


class Weights:
    """A distribution as its numerators and their sum: what is drawn by weight need not be divided first.

    Guarantees:
      - ``probability(i)`` is the double ``values[i] / total``; there is no other definition of p, q or r.

    Why float32 is enough for the numerators: the law that is emitted is exact for the p of this class whatever the
    numerators are, as all of decoding reads p from here, the target alone included. So float32 only says how near p is
    to the softmax of the row. A logit of 16 is known to 1e-6 in float32, and so is a softmax in any precision; a
    rounded exponential adds 2e-7 to that, and the models themselves round by far more from one batch size to the next.
    Tokens below e^-103 of the likeliest get exactly zero. Sums are float64, as the error of a sum would be in all p.

    Attributes:
      values: (n,), >= 0 and not all zero; float32 where they are a softmax.
      runs: the values themselves if there are no more than ``RUN``; else float64 (ceil(n / ``RUN``),), the sums of runs
        of ``RUN`` values. A draw looks for the run first: running sums over a whole vocabulary cost more than its
        softmax.
      total: the sum of all.
      top: the score that a weight of one stands for, where somebody compares two distributions.
    """

    __slots__ = ("runs", "top", "total", "values")

    def __init__(self, values: Numerators, top: float = 0.0) -> None:
        self.values, self.top = values, top
        few = len(values) <= RUN
        self.runs = values if few else np.add.reduceat(values, _starts(len(values)), dtype=np.float64)
        self.total = float(np.add.reduce(self.runs, dtype=np.float64))

    def probability(self, index: int) -> float:
        return self.values.item(index) / self.total

    @property
    def probabilities(self) -> Probabilities:
        """float64 (n,), summing to one."""
        return np.divide(self.values, self.total, dtype=np.float64)


@lru_cache(maxsize=64)
def _starts(length: int) -> NDArray[np.intp]:
    """Where the runs of an array of ``length`` begin."""
    return np.arange(0, length, RUN)


def target_weights(logits: NDArray[np.float32], sampling: Sampling) -> Weights:
    """The distribution p that the target alone samples from.

    Args:
      logits: float32 (V,), after penalties (``processors.py``).
      sampling: temperature, top-k, top-p and min-p, applied in this order as Hugging Face does.

    Returns:
      (V,) weights.

    Raises:
      ModelError: the largest logit is not finite.
    """
    if 0 < sampling.top_k < len(logits) and not sampling.greedy:
        lowest = np.partition(logits, -sampling.top_k)[-sampling.top_k]
        logits = np.where(logits < lowest, np.float32(-np.inf), logits)
    values = relative(logits, most_likely(logits), sampling.temperature)
    if sampling.top_p < 1:
        _keep_nucleus(values, sampling.top_p)
    if sampling.min_p:
        values[values < min(sampling.min_p, 1.0)] = 0.0  # the largest is one
    return Weights(values)


def target_probabilities(logits: NDArray[np.float32], sampling: Sampling) -> Probabilities:
    """``target_weights`` as float64 (V,), summing to one."""
    return target_weights(logits, sampling).probabilities


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


def relative(scores: NDArray[np.float32], best: int, temperature: float) -> NDArray[np.float32]:
    """exp((score - largest) / temperature), all in float32.

    No exponent is above zero, so nothing overflows, and the likeliest has weight one. A score of minus infinity gets
    exactly zero.

    Args:
      scores: float32 (n,).
      best: index of the largest, which is finite.
      temperature: 0 for zero everywhere but at ``best``.

    Returns:
      float32 (n,), a new array.
    """
    if temperature == 0:
        values = np.zeros(len(scores), np.float32)
        values[best] = 1.0
        return values
    values = scores - scores[best]
    if temperature != 1:
        with np.errstate(over="ignore"):  # a masked token may be at the least float32: minus infinity is right
            values /= np.float32(min(max(temperature, 1e-37), 1e37))  # not 0 or infinity, which would make NaN
    return np.exp(values, out=values)


def distribution(scores: NDArray[np.float32], temperature: float) -> Probabilities:
    """Softmax as float64 (n,), summing to one.

    A restriction to some tokens is a softmax over their scores: they keep their mass however unlikely all of them are
    in the full row.
    """
    return Weights(relative(scores, most_likely(scores), temperature)).probabilities


def _keep_nucleus(values: NDArray[np.float32], top_p: float) -> None:
    """Zeroes each token above which there is at least ``top_p`` of the mass."""
    probabilities = Weights(values).probabilities
    # Tokens below this hold less than 1 - top_p together, so none of them is in the nucleus; the rest is soon sorted.
    candidates = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    ranked = probabilities[order]
    kept = order[np.cumsum(ranked) - ranked < top_p]
    weights = values[kept]
    values[:] = 0.0
    values[kept] = weights
