"""The streaming weighted mean: numbers a person can check, and the laws of a monoid."""

from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from fleetdraft.server.aggregation.mean import WeightedMean

LAW = settings(deadline=None)  # the machine may be busy
SHAPES = {"lora.0.q_proj.B": (2, 2)}

# Magnitudes that updates have: sums are good to 2^-100 of the largest entry, so not for 1e-40 beside 1e30.
ENTRIES = st.floats(-100, 100, width=32, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
UPDATE = st.tuples(arrays(np.float32, (2, 2), elements=ENTRIES), st.floats(0.5, 1e6))


def mean_of(updates: list[tuple[np.ndarray, float]]) -> WeightedMean:
    mean = WeightedMean(SHAPES)
    for value, weight in updates:
        mean.add({"lora.0.q_proj.B": value}, weight)
    return mean


def test_weights_are_the_shares_of_the_mean() -> None:
    ones, fives = np.ones((2, 2), np.float32), np.full((2, 2), 5, np.float32)
    np.testing.assert_array_equal(mean_of([(ones, 3), (fives, 1)]).result()["lora.0.q_proj.B"], np.full((2, 2), 2))


def test_the_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError, match="no updates"):
        WeightedMean(SHAPES).result()


@LAW
@given(st.lists(UPDATE, min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_order_does_not_change_one_bit(updates, random) -> None:
    shuffled = random.sample(updates, len(updates))
    np.testing.assert_array_equal(
        mean_of(updates).result()["lora.0.q_proj.B"], mean_of(shuffled).result()["lora.0.q_proj.B"]
    )


@LAW
@given(st.lists(UPDATE, min_size=1, max_size=12), st.lists(UPDATE, max_size=12), st.lists(UPDATE, max_size=12))
def test_grouping_does_not_change_one_bit(first, second, third) -> None:
    left, right = mean_of(first), mean_of(second)
    left.merge(right)
    left.merge(mean_of(third))
    inner = mean_of(second)
    inner.merge(mean_of(third))
    other = mean_of(first)
    other.merge(inner)
    np.testing.assert_array_equal(left.result()["lora.0.q_proj.B"], other.result()["lora.0.q_proj.B"])
    np.testing.assert_array_equal(
        left.result()["lora.0.q_proj.B"], mean_of(first + second + third).result()["lora.0.q_proj.B"]
    )


@LAW
@given(st.lists(UPDATE, min_size=1, max_size=6))
def test_the_streamed_mean_is_the_mean(updates) -> None:
    weights = np.array([weight for _, weight in updates])
    expected = np.average([value.astype(np.float64) for value, _ in updates], axis=0, weights=weights)
    # 1e-4 of 100 is beyond what cancellation leaves of float64; float32 rounding of the result is 6e-8 of it.
    np.testing.assert_allclose(mean_of(updates).result()["lora.0.q_proj.B"], expected, rtol=1e-6, atol=1e-10)


def test_an_early_large_update_does_not_swallow_later_small_ones() -> None:
    """In float32, and in float64 without the lower parts, the sum would be 0."""
    large, small = np.full((2, 2), 2.0**30, np.float32), np.full((2, 2), 2.0**-30, np.float32)
    result = mean_of([(large, 1), (small, 1), (-large, 1), (small, 2)]).result()["lora.0.q_proj.B"]
    np.testing.assert_array_equal(result, np.full((2, 2), 3 * 2.0**-30 / 5, np.float32))


def test_merging_keeps_what_rounding_left_over() -> None:
    large, small = np.full((2, 2), 2.0**30, np.float32), np.full((2, 2), 2.0**-30, np.float32)
    mean = mean_of([(large, 1), (small, 1)])
    mean.merge(mean_of([(-large, 1), (small, 2)]))
    np.testing.assert_array_equal(mean.result()["lora.0.q_proj.B"], np.full((2, 2), 3 * 2.0**-30 / 5, np.float32))


def test_a_vector_longer_than_a_chunk_is_summed_to_its_end() -> None:
    size = 3 * 4096 + 5
    values = np.arange(size, dtype=np.float32)
    mean = WeightedMean({"x": (size,)})
    mean.add({"x": values}, 1)
    mean.add({"x": -3 * values}, 3)
    np.testing.assert_array_equal(mean.result()["x"], -2 * values)


def test_a_sum_of_updates_counts_as_the_updates() -> None:
    """What secure aggregation shows: 3 * 1 + 1 * 5 = 8 of weight 4, and a third update of 6 with weight 2."""
    mean = WeightedMean(SHAPES)
    mean.add_sum({"lora.0.q_proj.B": np.full((2, 2), 8.0)}, 4)
    mean.add({"lora.0.q_proj.B": np.full((2, 2), 5, np.float32)}, 2)
    np.testing.assert_array_equal(mean.result()["lora.0.q_proj.B"], np.full((2, 2), 3))


def test_bounds_that_grow_by_each_update_leave_the_sum_exact() -> None:
    """Each of 100 updates is twice the one before, so that the grid is moved again and again; 2^-50 is still there."""
    values = [2.0**power for power in range(-50, 50)]
    for order in (values, values[::-1]):
        mean = WeightedMean({"x": (1,)})
        for value in order:
            mean.add({"x": np.array([value], np.float32)}, 1)
        for value in order[1:] if order is values else order[:-1]:
            mean.add({"x": np.array([-value], np.float32)}, 1)
        assert mean.result()["x"] == np.float32(2.0**-50 / 199)


def test_a_thousand_updates_of_real_sizes_are_summed_as_exact_fractions_are() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(1000) * 10.0 ** rng.uniform(-7, -1, 1000)).astype(np.float32)
    weights = rng.integers(1, 10**6, 1000)
    exact = sum(Fraction(float(v)) * int(w) for v, w in zip(values, weights, strict=True)) / int(weights.sum())
    for order in (np.arange(1000), rng.permutation(1000), np.argsort(values)):
        mean = WeightedMean({"x": (1,)})
        for place in order:
            mean.add({"x": values[place : place + 1]}, float(weights[place]))
        assert abs(Fraction(float(mean.mean()[0])) / exact - 1) < Fraction(1, 2**51)
