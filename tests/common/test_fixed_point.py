"""Numbers as integers modulo 2^32: a range that is checked, sums within the step."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fleetdraft.common.errors import ConfigError, UpdateRejected
from fleetdraft.common.fixed_point import MODULUS, FixedPoint


def encoding(**changes) -> FixedPoint:
    return FixedPoint(**{"clip_norm": 1.0, "clients": 4, "entries": 3, "step": 2.0**-20} | changes)


def test_a_vector_is_the_nearest_multiple_of_the_step_and_negatives_wrap() -> None:
    encoded = encoding(step=0.25).encode(np.array([0.5, -0.25, 0.3]))
    assert encoded.tolist() == [2, MODULUS - 1, 1]
    np.testing.assert_array_equal(encoding(step=0.25).decode(encoded, 1), [0.5, -0.25, 0.25])


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_the_sum_is_within_half_a_step_for_each_client(clients, clip_norm, seed) -> None:
    finest = FixedPoint.finest(clip_norm=clip_norm, clients=clients, entries=5)
    vectors = np.random.default_rng(seed).normal(size=(clients, 5))
    vectors *= clip_norm / np.linalg.norm(vectors, axis=1, keepdims=True)
    total = np.zeros(5, np.uint32)
    for vector in vectors:
        total += finest.encode(vector)
    error = np.abs(finest.decode(total, clients) - vectors.sum(0)).max()
    assert error <= clients * finest.step * (0.5 + 1e-6)  # 1e-6: float64 rounding of the plain sum


@settings(deadline=None)
@given(st.integers(1, 100_000), st.floats(1e-6, 1e6))
def test_the_finest_step_holds_the_worst_sum_and_half_of_it_is_an_error(clients, clip_norm) -> None:
    finest = FixedPoint.finest(clip_norm=clip_norm, clients=clients, entries=1)
    worst = int(finest.encode(np.array([clip_norm]))[0])
    assert worst * clients < MODULUS // 2
    with pytest.raises(ConfigError, match="too fine for the sum"):
        FixedPoint(clip_norm=clip_norm, clients=clients, entries=1, step=finest.step / 2)


def test_the_worst_sum_does_not_wrap() -> None:
    finest = FixedPoint.finest(clip_norm=10.0, clients=100, entries=2)
    vector = np.array([10.0, 0.0]), np.array([0.0, -10.0])
    total = sum((finest.encode(v) * np.uint32(100) for v in vector), np.zeros(2, np.uint32))
    np.testing.assert_allclose(finest.decode(total, 100), [1000.0, -1000.0], atol=100 * finest.step)


@pytest.mark.parametrize("change", [{"clip_norm": 0.0}, {"clients": 0}, {"entries": 0}, {"step": float("nan")}])
def test_fields_out_of_range_are_errors(change) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        encoding(**change)


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([0.8, 0.8, 0.0], "norm is 1.13137, expected at most 1"),
        ([np.nan, 0.0, 0.0], "norm is nan"),
        ([np.inf, 0.0, 0.0], "norm is inf"),
        ([0.0, 0.0], "shape"),
    ],
)
def test_a_vector_outside_the_range_is_refused_and_never_clipped(vector, reason) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        encoding().encode(np.array(vector))


def test_a_sum_that_honest_clients_cannot_make_is_refused() -> None:
    forged = np.array([int(2.1 * 2**20), 0, 0], np.uint32)
    with pytest.raises(UpdateRejected, match="an entry of the sum is 2.1"):
        encoding().decode(forged, 2)
    assert encoding().decode(forged, 3)[0] == pytest.approx(2.1, abs=2e-6)


def test_the_norm_bound_holds_where_rounding_lengthens_every_entry() -> None:
    vector = np.full(100, 0.51)
    coarse = FixedPoint(clip_norm=5.1, clients=1, entries=100, step=1.0)
    decoded = coarse.decode(coarse.encode(vector), 1)
    np.testing.assert_array_equal(decoded, np.ones(100))
    assert np.linalg.norm(decoded) <= coarse.norm_bound == pytest.approx(5.1 * 1.001 + 5)
