"""Rules that withstand arbitrary updates: numbers a person can check, attackers, and cohorts that are too small."""

from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from fleetdraft.common.errors import FleetError
from fleetdraft.server.aggregation import cohort
from fleetdraft.server.aggregation.robust import krum, median, multi_krum, tolerated, trimmed_mean

ROBUST = {"trimmed-mean": trimmed_mean, "median": median, "krum": krum, "multi-krum": multi_krum}
ENTRIES = st.floats(-100, 100, width=32, allow_subnormal=False)


def column(*values: float) -> list[np.ndarray]:
    return [np.array([value], np.float32) for value in values]


def test_trimmed_mean_by_hand() -> None:
    assert trimmed_mean(column(1, 100, 2, 3, -100), 1) == [2]
    assert trimmed_mean(column(1, 100, 2, 4, -100), 2) == [2]


def test_each_coordinate_is_trimmed_on_its_own() -> None:
    vectors = [np.array(pair, np.float32) for pair in ((1, 900), (2, 3), (900, 2), (3, 1), (-900, -900))]
    np.testing.assert_array_equal(trimmed_mean(vectors, 1), [2, 2])


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    assert median(column(9, 1, 2, 5), 1) == [3.5]
    assert median(column(9, 1, 2), 1) == [2]


def test_krum_takes_the_middle_of_the_crowd() -> None:
    """n = 7, f = 1: nearest 4 others. Of 0 1 2 3 4 and two far away, 2 has 1 + 1 + 4 + 4 = 10, its neighbours 15."""
    assert krum(column(0, 1, 50, 2, 3, 4, -90), 1) == [2]


def test_multi_krum_is_the_mean_of_the_best() -> None:
    """n - f - 2 = 4 of the same: scores 10, 15, 15 and then 30 for both ends, of which the first in line."""
    assert multi_krum(column(0, 1, 50, 2, 3, 4, -90), 1) == [(2 + 1 + 3 + 0) / 4]


def test_krum_is_what_its_definition_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "_BLOCK", 40)  # several blocks of columns
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal(30).astype(np.float32) for _ in range(9)]
    scores = [
        sum(sorted(float(np.square(v.astype(float) - w).sum()) for w in vectors if w is not v)[: 9 - 2 - 2])
        for v in vectors
    ]
    order = np.argsort(scores)
    np.testing.assert_array_equal(krum(vectors, 2), vectors[order[0]])
    expected = np.mean([vectors[place].astype(float) for place in order[:5]], axis=0)
    np.testing.assert_allclose(multi_krum(vectors, 2), expected, atol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 3), st.data())
def test_coordinate_rules_stay_between_honest_values(byzantine: int, data: st.DataObject) -> None:
    """Whatever f of 2 f + 1 updates say, each coordinate lies between the smallest and the largest honest value."""
    honest = data.draw(st.lists(arrays(np.float32, 4, elements=ENTRIES), min_size=byzantine + 1, max_size=8))
    evil = data.draw(st.lists(arrays(np.float32, 4, elements=st.floats(width=32, allow_nan=False)), max_size=byzantine))
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    for rule in (trimmed_mean, median):
        if len(honest) + len(evil) > 2 * byzantine:
            found = rule([*evil, *honest], byzantine).astype(np.float32)
            assert ((low <= found) & (found <= high)).all(), rule


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("attack", ["far", "opposite", "together", "zero"])
def test_a_fifth_of_attackers_does_not_move_the_result_out_of_the_crowd(rule: str, attack: str) -> None:
    """20 updates around 1 in 500 coordinates, deviation 0.1; 4 of them replaced. The mean would move by 0.2 to 20."""
    rng = np.random.default_rng(0)
    vectors = [(1 + 0.1 * rng.standard_normal(500)).astype(np.float32) for _ in range(20)]
    honest = np.mean(vectors[4:], axis=0)
    for place in range(4):
        vectors[place] = {
            "far": 100 * rng.standard_normal(500),
            "opposite": -5 * honest,
            "together": np.full(500, 3.0),
            "zero": np.zeros(500),
        }[attack].astype(np.float32)
    found = ROBUST[rule](vectors, 4)
    # One update alone, Krum's choice, is 0.1 sqrt(500) = 2.2 from the mean; any other rule is nearer.
    assert np.linalg.norm(found - honest) < (2.5 if rule == "krum" else 2.0)
    assert np.linalg.norm(np.mean(vectors, axis=0) - honest) > 4


def test_krum_never_takes_an_attacker_that_is_away_from_the_crowd() -> None:
    rng = np.random.default_rng(1)
    honest = [rng.standard_normal(50).astype(np.float32) for _ in range(5)]
    for places in combinations(range(7), 2):
        vectors = list(honest)
        for place in places:
            vectors.insert(place, np.full(50, 20, np.float32))
        assert np.abs(krum(vectors, 2)).max() < 10
        assert np.abs(multi_krum(vectors, 2)).max() < 10


@pytest.mark.parametrize(
    ("rule", "fewest"), [("trimmed-mean", 5), ("median", 5), ("krum", 7), ("multi-krum", 7)], ids=str
)
def test_a_cohort_too_small_for_the_proof_is_refused_in_one_line(rule: str, fewest: int) -> None:
    vectors = column(*range(fewest))
    ROBUST[rule](vectors, 2)
    with pytest.raises(
        FleetError, match=f"{rule} has {fewest - 1} updates, expected at least {fewest} where 2"
    ) as told:
        ROBUST[rule](vectors[:-1], 2)
    assert "\n" not in str(told.value)


def test_a_share_of_the_updates_is_rounded_up() -> None:
    assert [tolerated(count, 0.2) for count in (1, 5, 6, 10, 11, 1000)] == [1, 1, 2, 2, 3, 200]
