"""Bootstrap over prompts: how far figures that are made of sums would lie apart on other prompts of the same kind.

It knows no figure: a figure is a function of sums, evaluated once on the sums of all prompts and once on each resample.
"""

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
SHARE = 0.95
"""Of the resamples that an interval holds."""
LEAST = 6
"""Prompts that an interval needs: of fewer, all differ to the same side by chance in more than one of 20 cases."""

Sums = NDArray[np.float64]
Interval = tuple[float, float]


def resampled(rows: Sums, seed: int) -> Sums:
    """The sums of ``DRAWS`` resamples with replacement, each of as many rows as there are.

    Args:
      rows: (n, k), n >= 1: what each prompt adds to each of k sums.
      seed: the same rows with the same seed give the same resamples; so do other rows of the same n, which pairs them.

    Returns:
      (DRAWS, k).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), §6.
    """
    count = len(rows)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return weights.astype(np.float64) @ rows


def interval(values: NDArray[np.float64]) -> Interval:
    """The middle ``SHARE`` of resampled values (percentile interval)."""
    low, high = np.quantile(values, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)
