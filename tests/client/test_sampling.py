"""Logits to distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fleetdraft.client.sampling import Sampling, distribution, target_probabilities
from fleetdraft.common.errors import ConfigError, ModelError

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], dtype=np.float32))
EXACT = 1e-7  # the logits are float32


def probabilities(**settings: float) -> list[float]:
    return target_probabilities(LOGITS, Sampling(**settings)).tolist()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [0, 4 / 7, 0, 3 / 7]),
    ],
    ids=str,
)
def test_probabilities_by_hand(settings: dict[str, float], expected: list[float]) -> None:
    assert probabilities(**settings) == pytest.approx(expected, abs=EXACT)


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert target_probabilities(np.array([0, 1, 1], np.float32), Sampling(temperature=0)).tolist() == [0, 1, 0]


def test_top_k_keeps_ties_with_the_last_kept_token() -> None:
    tied = np.array([0, 1, 1, 2], np.float32)
    assert np.flatnonzero(target_probabilities(tied, Sampling(top_k=2))).tolist() == [1, 2, 3]


@settings(deadline=None)
@given(
    arrays(np.float32, 12, elements=st.floats(-80, 80, width=32)),
    st.floats(0.01, 5),
    st.integers(0, 13),
    st.floats(0.01, 1),
)
def test_probabilities_are_a_distribution_and_keep_the_likeliest(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float
) -> None:
    p = target_probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    unfiltered = target_probabilities(logits, Sampling(temperature=temperature))
    assert p.dtype == np.float64
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert p[unfiltered.argmax()] == p.max() > 0


def test_restriction_comes_before_normalising() -> None:
    row = np.array([0.0, -2000.0, -2000.0 + np.log(3), 5.0], np.float32)
    assert distribution(row[[1, 2]], 1.0) == pytest.approx([0.25, 0.75], abs=1e-4)
    assert distribution(row[[2, 1]], 0).tolist() == [1, 0]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_logits_are_refused(broken: float) -> None:
    with pytest.raises(ModelError, match="finite"):
        target_probabilities(np.array([0, broken], np.float32), Sampling())


@pytest.mark.parametrize(
    "field, value",
    [("temperature", -0.1), ("temperature", float("inf")), ("temperature", float("nan")), ("top_k", -1)]
    + [("top_p", value) for value in (0, 1.1, float("nan"))],
)
def test_setting_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}, expected"):
        Sampling(**{field: value})
