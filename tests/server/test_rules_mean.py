"""The streaming weighted mean: numbers a person can check, and the laws of a monoid."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from fleetdraft.server.mean import WeightedMean

LAW = settings(deadline=None)  # the machine may be busy
SHAPES = {"lora.0.q_proj.B": (2, 2)}

# Magnitudes that updates have: the error carried along is good to 2^-100 of the largest, so not for 1e-40 beside 1e30.
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
@given(st.lists(UPDATE, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_does_not_change_one_bit(updates, random) -> None:
    shuffled = random.sample(updates, len(updates))
    np.testing.assert_array_equal(
        mean_of(updates).result()["lora.0.q_proj.B"], mean_of(shuffled).result()["lora.0.q_proj.B"]
    )


@LAW
@given(st.lists(UPDATE, min_size=1, max_size=4), st.lists(UPDATE, max_size=4), st.lists(UPDATE, max_size=4))
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
    """In float32, and in float64 without the carried error, the sum would be 0."""
    large, small = np.full((2, 2), 2.0**30, np.float32), np.full((2, 2), 2.0**-30, np.float32)
    result = mean_of([(large, 1), (small, 1), (-large, 1), (small, 2)]).result()["lora.0.q_proj.B"]
    np.testing.assert_array_equal(result, np.full((2, 2), 3 * 2.0**-30 / 5, np.float32))


def test_merging_keeps_what_rounding_left_over() -> None:
    large, small = np.full((2, 2), 2.0**30, np.float32), np.full((2, 2), 2.0**-30, np.float32)
    mean = mean_of([(large, 1), (small, 1)])
    mean.merge(mean_of([(-large, 1), (small, 2)]))
    np.testing.assert_array_equal(mean.result()["lora.0.q_proj.B"], np.full((2, 2), 3 * 2.0**-30 / 5, np.float32))


def test_a_vector_longer_than_a_chunk_is_summed_to_its_end() -> None:
    size = 3 * 8192 + 5
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
