"""A low-rank change of one matrix: ``scaling * B A``. It knows no file, no layout and no base."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """a: float32 (rank, in). b: float32 (out, rank)."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(out, in) of the matrix that it changes."""
        return self.b.shape[0], self.a.shape[1]

    def dense(self) -> NDArray[np.float32]:
        """The change as a matrix (out, in)."""
        return np.float32(self.scaling) * (self.b @ self.a)

    def truncated(self, rank: int) -> "Truncation":
        """The best approximation of a rank in the Frobenius norm, from the factors alone.

        QR of both factors leaves a matrix of (rank, rank), whose singular values are those of ``B A``; the dense
        product is never made. Float64 inside. Source: Eckart and Young (1936).
        """
        q_b, r_b = np.linalg.qr(self.b.astype(np.float64))
        q_a, r_a = np.linalg.qr(self.a.T.astype(np.float64))
        left, values, right = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
        root = np.sqrt(values[:rank])
        change = replace(
            self,
            a=(root[:, None] * (right[:rank] @ q_a.T)).astype(np.float32),
            b=((q_b @ left[:, :rank]) * root).astype(np.float32),
        )
        squares = np.square(self.scaling * values)
        return Truncation(change=change, lost=float(squares[rank:].sum()), whole=float(squares.sum()))


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """A change cut to a smaller rank; lost, whole: squared Frobenius norms of what was cut off, and before the cut."""

    change: LowRank
    lost: float
    whole: float
