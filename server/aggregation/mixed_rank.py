"""The mean of the devices' products ``B A``, cut to the release's rank, for devices of mixed ranks. It knows no round.

A device of rank r_i trains the first r_i rows of A and columns of B of the release and leaves the rest, so its product
is that of the release's factors with its change added to their leading part. The mean of these products has a rank of
up to (devices x rank); its best approximation of the release's rank comes from QR and SVD of the stacked factors.

Source: Bai et al., FlexLoRA (arXiv 2402.11505), section 3. It differs in one point: there a device's product leaves out
the rows that it does not train, so that each round shrinks them (Wu et al., arXiv 2602.13486, "rank collapse").
"""

from collections.abc import Sequence

import numpy as np

from ...common.lora import Arrays, LoraAdapter
from .cohort import Vote
from .fed_svd import Matrix, svd_of_product
from .vector import Packing


def mean_product(votes: Sequence[Vote], weights: Sequence[float], packing: Packing, adapter: LoraAdapter) -> Arrays:
    """The change that takes ``adapter`` to the best approximation of the devices' mean product.

    Exact up to the cut to the adapter's rank, the best possible in the Frobenius norm. Of all factors of that product
    with orthonormal A it takes those that are nearest to the adapter's, so that changes of successive rounds compare.

    Args:
      votes: changes of A and B, packed by ``packing``.
      weights: of the votes, summing to 1.
    """
    change: Arrays = {}
    for layer, name in adapter.changes:
        a_name, b_name = (f"lora.{layer}.{name}.{factor}" for factor in "AB")
        a, b = (adapter.arrays[factor].astype(np.float64) for factor in (a_name, b_name))
        rows = np.concatenate([a + packing.tensor(vote.vector, a_name) for vote in votes])
        columns = [w * (b + packing.tensor(vote.vector, b_name)) for w, vote in zip(weights, votes, strict=True)]
        us, vt = svd_of_product(np.concatenate(columns, axis=1), rows, adapter.layout.rank)
        turn = _rotation(a @ vt.T + b.T @ us)
        change[a_name] = (turn @ vt - a).astype(np.float32)
        change[b_name] = (us @ turn.T - b).astype(np.float32)
    return change


def _rotation(overlap: Matrix) -> Matrix:
    """The orthogonal Q for which ``Q V^T`` and ``U S Q^T`` are nearest to A and B, from ``A V + B^T U S``.

    Source: Schönemann, the orthogonal Procrustes problem (1966).
    """
    left, _, right = np.linalg.svd(overlap)
    return left @ right
