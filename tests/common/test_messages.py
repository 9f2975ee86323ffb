"""What crosses the network: names, counters that add up, and the clip."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fleetdraft.common.errors import ConfigError
from fleetdraft.common.messages import Identity, TrainCounters, clipped, l2_norm

COUNTERS = st.builds(
    TrainCounters,
    steps=st.integers(0, 10**6),
    positions=st.integers(0, 10**6),
    loss=st.integers(0, 10**6).map(float),  # whole, so that sums are exact
)


@pytest.mark.parametrize("name", ["", "x" * 65, "two\nlines", "\x1b[31m"])
def test_a_name_that_would_spoil_a_report_is_refused(name) -> None:
    with pytest.raises(ConfigError, match="1 to 64 printable characters"):
        Identity(client=name, family="spm")
    with pytest.raises(ConfigError, match="1 to 64 printable characters"):
        Identity(client="ann", family=name)


@settings(deadline=None)  # the machine may be busy
@given(COUNTERS, COUNTERS, COUNTERS)
def test_train_counters_are_a_commutative_monoid(a, b, c) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + TrainCounters() == a


def test_mean_loss_is_per_position() -> None:
    assert (TrainCounters(positions=1, loss=4.0) + TrainCounters(positions=3, loss=4.0)).mean_loss == 2.0
    assert TrainCounters().mean_loss == 0.0


def test_the_norm_is_over_all_tensors() -> None:
    assert l2_norm({"a": np.array([3.0], np.float32), "b": np.array([[4.0]], np.float32)}) == 5.0


def test_clipping_scales_the_update_as_a_whole() -> None:
    delta = {"a": np.array([3.0], np.float32), "b": np.array([[4.0]], np.float32)}
    shorter = clipped(delta, 2.5)
    assert (shorter["a"].item(), shorter["b"].item()) == (1.5, 2.0)
    assert shorter["a"].dtype == np.float32


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_clipping_leaves_a_short_update_as_it_is(value) -> None:
    delta = {"a": np.array([value], np.float32)}
    np.testing.assert_array_equal(clipped(delta, 1.0)["a"], delta["a"])
