"""Low-rank changes: the cut from the factors is the best one that the dense product has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetdraft.common.low_rank import LowRank


def random_change(rng: np.random.Generator, rank: int, out: int, width: int) -> LowRank:
    a, b = rng.standard_normal((rank, width)), rng.standard_normal((out, rank))
    return LowRank(a=a.astype(np.float32), b=b.astype(np.float32), scaling=0.7)


def test_the_dense_change_is_scaling_times_b_times_a():
    change = LowRank(a=np.float32([[1, 2, 3]]), b=np.float32([[1], [10]]), scaling=2.0)
    np.testing.assert_array_equal(change.dense(), [[2, 4, 6], [20, 40, 60]])
    assert (change.rank, change.size) == (1, (2, 3))


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 10), st.integers(1, 10), st.integers(1, 12))
def test_the_cut_loses_what_the_best_approximation_of_the_dense_product_loses(seed, rank, out, width, kept):
    change = random_change(np.random.default_rng(seed), rank, out, width)
    cut = change.truncated(kept)
    dense = change.scaling * change.b.astype(np.float64) @ change.a
    values = np.square(np.linalg.svd(dense, compute_uv=False))
    assert cut.change.rank <= kept
    assert cut.whole == pytest.approx(values.sum(), rel=1e-9)
    assert cut.lost == pytest.approx(values[kept:].sum(), rel=1e-9, abs=1e-9 * values.sum())
    lost = np.square(dense - cut.change.dense()).sum()
    assert lost == pytest.approx(values[kept:].sum(), rel=1e-4, abs=1e-10 * values.sum())  # factors are float32
