"""Whether sampled text follows the target's own law: a test on the probability that the target gives each token.

The target reads a finished text once more and says, at each position, how much probability lay above the token that
was emitted: u = P(likelier tokens) + v P(tokens as likely as it), v uniform. If every token was drawn from the target's
law given the text before it, the u of all positions are independent and uniform on (0, 1), whatever the texts are
(Rosenblatt's transform, randomised for discrete laws). Kolmogorov and Smirnov's test says how likely it is that uniform
numbers lie as unevenly. It knows no drafter: a text of the target alone passes the same way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..decoding.options import Options
from ..decoding.processors import History, ProcessedRows
from ..decoding.sampling import target_probabilities
from ..runtimes.decoder import Decoder

ALARM = 1e-3
"""Probability of a false alarm over all tests of a run, whatever their number (Bonferroni)."""

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LawCheck:
    """tokens: emitted tokens that were tested. p_value: probability of such a result under the target's own law."""

    tokens: int
    p_value: float

    @classmethod
    def of(cls, values: Values) -> "LawCheck":
        """Tests the values of all texts together.

        Args:
          values: (n,), n >= 1, of ``law_values``.
        """
        return cls(tokens=len(values), p_value=uniform_p_value(values))


def law_values(
    target: Decoder, prompt: Sequence[int], tokens: Sequence[int], options: Options, rng: np.random.Generator
) -> Values:
    """Where each token of a text lies in the target's law, the likeliest first.

    Args:
      target: its context is replaced.
      prompt: target tokens, at least one.
      tokens: n >= 1 target tokens that were emitted behind it.
      options: of the text; its temperature is above 0.
      rng: breaks ties and spreads each token over its own probability.

    Returns:
      float64 (n,) in [0, 1].
    """
    target.rewind(0)
    raw = target.score([*prompt, *tokens[:-1]], len(tokens))
    history = History(prompt)
    history.propose(tokens)
    rows = ProcessedRows(raw, history, options.logits_processors)
    values = np.empty(len(tokens))
    for place, token in enumerate(tokens):
        law = target_probabilities(rows[place], options.sampling)
        own = law[token]
        values[place] = law[law > own].sum() + rng.random() * law[law == own].sum()
    return np.clip(values, 0.0, 1.0)


def uniform_p_value(values: Values) -> float:
    """Probability that as many uniform numbers are as uneven or more: Kolmogorov and Smirnov's test.

    Source: Stephens, EDF statistics for goodness of fit (1974): Kolmogorov's limit with a correction for n, within
    0.01 of the exact value from n = 5 on.
    """
    count, ordered = len(values), np.sort(values)
    steps = np.arange(count + 1) / count
    distance = max(float((steps[1:] - ordered).max()), float((ordered - steps[:-1]).max()))
    root = math.sqrt(count)
    return _kolmogorov((root + 0.12 + 0.11 / root) * distance)


def _kolmogorov(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution."""
    if x < 0.2:
        return 1.0  # the series alternates near one there; what it leaves out is below 1e-12
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))
