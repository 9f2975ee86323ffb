"""Logits to distributions."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fleetdraft.client.decoding.sampling import Sampling, distribution, target_probabilities, target_weights
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
        ({"min_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"min_p": 0.3}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"temperature": 0.5, "min_p": 0.3}, [0, 16 / 25, 0, 9 / 25]),
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


@settings(deadline=None)
@given(
    arrays(np.float32, 12, elements=st.floats(-8, 8, width=16), unique=True),
    st.floats(0.3, 2),
    st.integers(0, 12),
    st.floats(0.05, 1),
    st.floats(0, 1),
)
def test_probabilities_are_hugging_faces(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Theirs are float32, so a token on the edge of a nucleus may fall on either side: such draws are skipped."""
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    scores = torch.tensor(logits[None])
    for warper in warpers:
        scores = warper(torch.zeros((1, 0), dtype=torch.int64), scores)
    assume(_far_from_edges(logits, sampling))
    assert target_probabilities(logits, sampling) == pytest.approx(scores.softmax(-1)[0].numpy(), abs=1e-5)


def _far_from_edges(logits: np.ndarray, sampling: Sampling) -> bool:
    p = target_probabilities(logits, Sampling(temperature=sampling.temperature, top_k=sampling.top_k))
    mass = np.cumsum(np.sort(p)[::-1])
    return bool(abs(mass - sampling.top_p).min() > 1e-5 and abs(p / p.max() - sampling.min_p).min() > 1e-5)


@settings(deadline=None)
@given(
    arrays(np.float32, 300, elements=st.floats(-90, 90, width=32) | st.just(float("-inf"))),
    st.sampled_from([0.3, 1.0, 2.0]),
)
def test_numerators_are_near_the_softmax_in_float64_and_are_summed_in_it(logits: np.ndarray, heat: float) -> None:
    """Float32 rounds the exponent by 2^-24 of at most 600, and the numerator by 2^-22; below e^-87 it loses digits."""
    assume(np.isfinite(logits.max()))
    weights = target_weights(logits, Sampling(temperature=heat))
    exact = np.exp((logits.astype(np.float64) - logits.max()) / heat)
    assert weights.values.dtype == np.float32
    assert weights.values == pytest.approx(exact, rel=1e-4, abs=1e-37)
    assert weights.total == pytest.approx(math.fsum(weights.values.tolist()), rel=1e-14)
    assert weights.probabilities.tolist() == [weights.probability(i) for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.7, 1.0, 5.0, 1e300])
@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min])
def test_masked_tokens_have_no_mass_at_any_temperature_but_the_hottest(temperature: float, masked: float) -> None:
    p = target_probabilities(np.array([20, masked, 18], np.float32), Sampling(temperature=temperature))
    assert p[1] == 0.0 or (temperature == 1e300 and masked > -np.inf)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert p[0] >= p[2]


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
    + [("top_p", value) for value in (0, 1.1, float("nan"))]
    + [("min_p", value) for value in (-0.1, 1.1, float("nan"))]
    + [("repetition_penalty", value) for value in (0, -1, 1e-31, 1e31, 1e300, float("inf"), float("nan"))],
)
def test_setting_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{field} is {value}, expected")):
        Sampling(**{field: value})
