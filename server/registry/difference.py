"""How far two releases are apart: norms of what they change in the drafter's weights. It knows no rule and no figures.

The norms are of ``scaling B A``, not of the factors, in which two adapters may differ that compute the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.errors import RegistryError
from ...common.low_rank import LowRank
from ...common.peft_format import Projection


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Frobenius norms: of what the first release changes, what the second does, and of their difference."""

    first: float
    second: float
    difference: float

    @property
    def relative(self) -> float | None:
        """The difference in units of what the first release changes; None where that is nothing."""
        return self.difference / self.first if self.first else None

    @classmethod
    def over(cls, parts: "list[Norms]") -> "Norms":
        """Of several matrices together."""
        first, second, difference = (
            math.hypot(*(getattr(part, name) for part in parts)) for name in ("first", "second", "difference")
        )
        return cls(first=first, second=second, difference=difference)


def norms(first: Mapping[Projection, LowRank], second: Mapping[Projection, LowRank]) -> dict[Projection, Norms]:
    """By projection.

    Raises:
      RegistryError: the two have other projections or ranks.
    """
    if {key: (c.size, c.rank) for key, c in first.items()} != {key: (c.size, c.rank) for key, c in second.items()}:
        raise RegistryError("the releases have adapters of other projections or ranks; compare two of one registry")
    return {key: _norms(first[key], second[key]) for key in first}


def by_layer(found: Mapping[Projection, Norms]) -> dict[int, Norms]:
    """Of all projections of each layer together."""
    layers = sorted({layer for layer, _ in found})
    return {layer: Norms.over([n for (of, _), n in found.items() if of == layer]) for layer in layers}


def by_module(found: Mapping[Projection, Norms]) -> dict[str, Norms]:
    """Of each kind of projection over all layers."""
    kinds = dict.fromkeys(name for _, name in found)
    return {kind: Norms.over([n for (_, name), n in found.items() if name == kind]) for kind in kinds}


def _norms(first: LowRank, second: LowRank) -> Norms:
    a, b = first.a.astype(np.float64), first.scaling * first.b.astype(np.float64)
    c, d = second.a.astype(np.float64), second.scaling * second.b.astype(np.float64)
    # D C - B A = (D - B) C + B (C - A): exactly zero for equal factors, and no cancellation between close ones.
    difference = _norm(np.hstack([d - b, b]), np.vstack([c, c - a]))
    return Norms(first=_norm(b, a), second=_norm(d, c), difference=difference)


def _norm(b: NDArray[np.float64], a: NDArray[np.float64]) -> float:
    """Of ``B A``, from the small matrices: the trace of ``(B^T B)(A A^T)``."""
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))
