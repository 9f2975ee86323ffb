"""An adapter in other factors of the same product: A with orthonormal rows, the most important direction first.

It knows no round. FedSVD does this after each round, so that devices that train B alone get an A that follows what was
learned, and noise added to B is not amplified by A. Source: Lee et al., FedSVD (arXiv 2505.12805, NeurIPS 2025): with
``U S V^T`` the SVD of ``B A`` cut to the rank, ``A <- V^T`` and ``B <- U S``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.lora import LoraAdapter
from ...common.peft_format import Projection

Matrix = NDArray[np.float64]
Basis = Mapping[Projection, Matrix]
"""By projection, the (rank, rank) matrix R with ``B_new = B_old R`` and ``A_old = R A_new``."""


@dataclass(frozen=True, kw_only=True)
class Rebased:
    """The adapter in its new factors, and how the old ones became them."""

    adapter: LoraAdapter
    basis: Basis


def rebased(adapter: LoraAdapter) -> Rebased:
    """The adapter whose A are the right singular vectors of ``B A``; the product is the same up to float32 rounding.

    Guarantees:
      - A's rows are orthonormal also where ``B A`` has a smaller rank (B = 0 for example): they then go on to span
        what A's rows spanned.
    """
    arrays, basis = dict(adapter.arrays), dict[Projection, Matrix]()
    for (layer, name), change in adapter.changes.items():
        us, vt = svd_of_product(change.b, change.a, adapter.layout.rank)
        basis[layer, name] = change.a.astype(np.float64) @ vt.T
        arrays[f"lora.{layer}.{name}.A"] = vt.astype(np.float32)
        arrays[f"lora.{layer}.{name}.B"] = us.astype(np.float32)
    return Rebased(adapter=LoraAdapter(layout=adapter.layout, arrays=arrays), basis=basis)


def svd_of_product(b: NDArray[Any], a: NDArray[Any], rank: int) -> tuple[Matrix, Matrix]:
    """(U S, V^T) of the best approximation of ``b a`` of a rank, never making the product; float64 inside.

    QR of both factors leaves a small matrix with the same singular values. Source: Eckart and Young (1936).

    Args:
      b: (out, m), a: (m, in); m is at least the rank.

    Returns:
      U S (out, rank) and V^T (rank, in), the largest singular value first.
    """
    b, a = _narrowed(b.astype(np.float64), a.astype(np.float64))
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    left, values, right = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return (q_b @ left[:, :rank]) * values[:rank], right[:rank] @ q_a.T


def _narrowed(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """The same product over an inner dimension of at most the smaller side of the product."""
    outer, inner = (b.shape[0], a.shape[1]), a.shape[0]
    if inner <= min(outer):
        return b, a
    if outer[0] < outer[1]:
        q, r = np.linalg.qr(b)
        return q, r @ a
    q, r = np.linalg.qr(a.T)
    return b @ r.T, q.T
