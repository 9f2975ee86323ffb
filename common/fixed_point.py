"""Numbers as integers modulo 2^32, in which sums are exact and can be masked. It knows neither masks nor messages."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, UpdateRejected

MODULUS = 2**32
"""An entry takes four bytes on the wire, as in float32."""

CLIP_SLACK = 1e-3
"""Float32 rounding on the device may leave a clipped update this much above its bound."""


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How the sum of ``clients`` vectors of norm at most ``clip_norm`` is carried in integers modulo 2^32.

    Guarantees:
      - No vector that ``encode`` accepts, nor the sum of ``clients`` of them, leaves the range: nothing saturates and
        nothing wraps around. A configuration that could not promise this is an error.
      - The decoded sum of m encoded vectors is within ``m * step / 2`` of their sum in every entry. Rounding is to the
        nearest multiple of ``step`` (ties to even), without randomness.

    Args:
      clip_norm: L2 bound on each vector, so also on each entry.
      clients: the most vectors that are ever added.
      entries: length of the vectors.
      step: what one unit of the integers is worth. A power of two keeps decoding free of rounding.

    Raises:
      ConfigError: a field is out of range, or the modulus does not hold the sum.
    """

    clip_norm: float
    clients: int
    entries: int
    step: float

    def __post_init__(self) -> None:
        for name in ("clip_norm", "step"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ConfigError(f"{name} is {value!r}, expected a number > 0")
        for name in ("clients", "entries"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value!r}, expected a number >= 1")
        if self._most(self.clients) >= MODULUS // 2:
            raise ConfigError(
                f"step is {self.step:g}, too fine for the sum of {self.clients} updates of norm {self.clip_norm:g} "
                f"modulo 2^32, expected at least {_finest_step(self.clip_norm, self.clients):g}"
            )

    @classmethod
    def finest(cls, *, clip_norm: float, clients: int, entries: int) -> Self:
        """With the smallest power of two as step for which the modulus holds the sum."""
        return cls(clip_norm=clip_norm, clients=clients, entries=entries, step=_finest_step(clip_norm, clients))

    @property
    def norm_bound(self) -> float:
        """The largest norm that an encoded vector can decode to: the sensitivity of the sum, in the norm's own unit."""
        return self.clip_norm * (1 + CLIP_SLACK) + self.step * math.sqrt(self.entries) / 2

    def encode(self, vector: NDArray[np.floating]) -> NDArray[np.uint32]:
        """``vector`` (entries,) as integers modulo 2^32.

        Raises:
          UpdateRejected: the shape is another, a value is not finite or the norm is above the bound.
        """
        if vector.shape != (self.entries,):
            raise UpdateRejected(f"the vector has shape {vector.shape}, expected ({self.entries},)")
        exact = vector.astype(np.float64)
        norm = float(np.sqrt(np.square(exact).sum()))
        if not norm <= self.clip_norm * (1 + CLIP_SLACK):  # so that NaN is refused too
            raise UpdateRejected(f"norm is {norm:.6g}, expected at most {self.clip_norm:g}")
        return np.rint(exact / self.step).astype(np.int64).astype(np.uint32)

    def decode(self, total: NDArray[np.uint32], clients: int) -> NDArray[np.float64]:
        """The sum of ``clients`` encoded vectors, as numbers.

        Raises:
          UpdateRejected: an entry is larger than so many clients can make it; somebody did not keep to the encoding.
        """
        signed = total.astype(np.int32)
        worst = int(np.abs(signed.astype(np.int64)).max())
        if worst > self._most(clients):
            raise UpdateRejected(
                f"an entry of the sum is {worst * self.step:g}, expected at most {clients} times {self.clip_norm:g}"
            )
        return signed.astype(np.float64) * self.step

    def _most(self, clients: int) -> int:
        """The largest magnitude that an entry of a sum can have, in steps."""
        return clients * _levels(self.clip_norm, self.step)


def _levels(clip_norm: float, step: float) -> int:
    return math.floor(clip_norm * (1 + CLIP_SLACK) / step) + 1


def _finest_step(clip_norm: float, clients: int) -> float:
    step = 2.0 ** math.floor(math.log2(clip_norm * clients / MODULUS))
    while clients * _levels(clip_norm, step) >= MODULUS // 2:
        step *= 2
    return step
