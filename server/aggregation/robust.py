"""Rules that bound what a few arbitrary updates can do. They know vectors, neither adapters nor families nor weights.

Every update has one vote, since a weight is a device's own claim. In all of them n is the number of updates and f how
many of them may be arbitrary; they refuse a cohort for which their proof does not hold.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ...common.errors import FleetError
from .cohort import blocks
from .vector import Vector

_Matrix = NDArray[np.float64]


def tolerated(updates: int, byzantine: float) -> int:
    """How many updates may be arbitrary, f: a share of them, rounded up."""
    # A share such as 0.2 is a little more than a fifth in binary; that must not round 2 of 10 up to 3.
    return math.ceil(byzantine * updates - 1e-9)


def trimmed_mean(vectors: list[Vector], byzantine: int) -> _Matrix:
    """Coordinate by coordinate, the mean without the f smallest and the f largest values; needs n > 2 f.

    Source: Yin et al., Byzantine-Robust Distributed Learning (arXiv 1803.01498), definition 2.
    """
    count = len(vectors)
    _check("trimmed-mean", count, byzantine, needed=2 * byzantine + 1)
    result = np.empty(len(vectors[0]))
    for part, matrix in blocks(vectors):
        inner = np.partition(matrix, sorted({byzantine, count - byzantine - 1}), axis=0)[byzantine : count - byzantine]
        result[part] = inner.mean(axis=0, dtype=np.float64)
    return result


def median(vectors: list[Vector], byzantine: int) -> _Matrix:
    """Coordinate by coordinate, the middle value, or the mean of the two; needs n > 2 f.

    Source: Yin et al. (arXiv 1803.01498), definition 1.
    """
    _check("median", len(vectors), byzantine, needed=2 * byzantine + 1)
    result = np.empty(len(vectors[0]))
    for part, matrix in blocks(vectors):
        result[part] = np.median(matrix.astype(np.float64), axis=0)
    return result


def krum(vectors: list[Vector], byzantine: int) -> _Matrix:
    """The one update whose n - f - 2 nearest others are nearest in squared distance; needs n > 2 f + 2.

    Source: Blanchard et al., Machine Learning with Adversaries (NeurIPS 2017), section 4 and proposition 1.
    """
    _check("krum", len(vectors), byzantine, needed=2 * byzantine + 3)
    return vectors[_nearest(vectors, byzantine)[0]].astype(np.float64)


def multi_krum(vectors: list[Vector], byzantine: int) -> _Matrix:
    """The mean of the n - f - 2 updates that Krum scores best; needs n > 2 f + 2.

    Source: Blanchard et al. (NeurIPS 2017), section 5; the number of them is the largest that El Mhamdi et al.,
    The Hidden Vulnerability of Distributed Learning in Byzantium (arXiv 1802.07927), work with.
    """
    _check("multi-krum", len(vectors), byzantine, needed=2 * byzantine + 3)
    chosen = _nearest(vectors, byzantine)[: len(vectors) - byzantine - 2]
    return np.sum([vectors[place].astype(np.float64) for place in chosen], axis=0) / len(chosen)


def _nearest(vectors: list[Vector], byzantine: int) -> list[int]:
    """Places of the updates, the one with the best score first; between equals, the earlier."""
    distances = _squared_distances(vectors)
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, : len(vectors) - byzantine - 2].sum(axis=1)
    return [int(place) for place in np.argsort(scores, kind="stable")]


def _squared_distances(vectors: list[Vector]) -> _Matrix:
    """Of each update to each other, from inner products in float64."""
    products = np.zeros((len(vectors), len(vectors)))
    for _, matrix in blocks(vectors):
        wide = matrix.astype(np.float64)
        products += wide @ wide.T
    squares = np.diag(products)
    return np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)


def _check(rule: str, count: int, byzantine: int, needed: int) -> None:
    if count < needed:
        raise FleetError(
            f"{rule} has {count} updates, expected at least {needed} where {byzantine} may be arbitrary; "
            "ask more devices or lower byzantine"
        )
