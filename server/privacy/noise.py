"""The noise of differential privacy: Gaussian, on a grid, from the system's generator. It counts no budget."""

import math
import os
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError
from ...common.lora import Arrays

Entropy = Callable[[int], bytes]
"""n to n random bytes. ``os.urandom`` is a cryptographic generator: past noise says nothing about noise to come."""

_GRID_BITS = 20


def noisy_mean(
    total: Mapping[str, NDArray[np.float64]], *, std: float, devices: float, entropy: Entropy = os.urandom
) -> Arrays:
    """``(total + noise) / devices``, float32; the only thing about ``total`` that may leave the server.

    Guarantees:
      - The noise is independent in every entry, normal with mean 0 and standard deviation ``std``.
      - Sum and noise are rounded together to a grid of 2^-20 ``std`` or finer, the same whatever the sum is. Rounding
        is done after the noise, so the Gaussian mechanism's analysis holds for it; and the low bits of float64, by
        which Mironov (CCS 2012) told sums apart, are gone. Not covered: the noise itself is computed in float64 from
        53-bit uniform numbers, so probabilities are right to about 2^-30 of their size and end at 8.5 ``std``.

    Args:
      total: sums of clipped updates of equal weight.
      std: noise multiplier times the sum's sensitivity: what one device can change it by, in L2 norm.
      devices: how many were to take part, a number that was fixed before the round. Not how many answered: the mean
        over those would have another sensitivity.

    Raises:
      ConfigError: ``std`` or ``devices`` is not a number > 0.
    """
    for name, value in (("std", std), ("devices", devices)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value!r}, expected a number > 0")
    grid = 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS)
    return {name: _noisy(value, std, grid, entropy) / np.float32(devices) for name, value in total.items()}


def standard_normal(count: int, entropy: Entropy = os.urandom) -> NDArray[np.float64]:
    """``count`` independent normal numbers of mean 0 and variance 1.

    Source: Box and Muller 1958.
    """
    pairs = (count + 1) // 2
    uniform = (np.frombuffer(entropy(16 * pairs), "<u8") >> 11).reshape(2, pairs) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-uniform[0]))  # 1 - u is in (0, 1]
    angle = 2 * np.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _noisy(value: NDArray[np.float64], std: float, grid: float, entropy: Entropy) -> NDArray[np.float32]:
    noise = standard_normal(value.size, entropy).reshape(value.shape) * std
    return (np.rint((value + noise) / grid) * grid).astype(np.float32)
