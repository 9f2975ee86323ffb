"""How families share the result: a small one is not drowned, and the worst one gains."""

import math
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fleetdraft.common.errors import ConfigError
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.aggregation.family_balance import BalanceConfig, FamilyMeans, balanced_weights
from fleetdraft.server.aggregation.mean import WeightedMean

SHAPES = {"lora.0.q_proj.B": (1, 1)}
VOTES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 1000), st.integers(-100, 100)), min_size=1, max_size=9
)


def balanced(votes: list[tuple[str, float, float]], balance: BalanceConfig, **priorities: float) -> float:
    means = FamilyMeans(shapes=SHAPES, balance=balance, priorities=priorities)
    for family, weight, value in votes:
        means.add({"lora.0.q_proj.B": np.full((1, 1), value, np.float32)}, weight, family)
    return float(means.result()["lora.0.q_proj.B"][0, 0])


#: Three devices that say 0 and one, of another family, that says 8.
DROWNED = [("large", 1, 0), ("large", 1, 0), ("large", 7, 0), ("small", 1, 8)]


def test_a_small_family_counts_as_much_as_the_exponent_says() -> None:
    """Totals 9 and 1: shares 9/10 and 1/10, 3/4 and 1/4, 1/2 and 1/2."""
    assert balanced(DROWNED, BalanceConfig()) == pytest.approx(0.8, rel=1e-6)
    assert balanced(DROWNED, BalanceConfig(exponent=0.5)) == pytest.approx(2)
    assert balanced(DROWNED, BalanceConfig(exponent=0)) == pytest.approx(4)


def test_priorities_multiply_the_shares() -> None:
    config = BalanceConfig(exponent=0, worst_family_rate=1)
    assert balanced(DROWNED, config, small=1.5, large=0.5) == pytest.approx(6)


def test_within_a_family_weights_count() -> None:
    assert balanced([("a", 1, 0), ("a", 3, 4), ("b", 9, 0)], BalanceConfig(exponent=0)) == pytest.approx(1.5)


def test_equal_families_do_not_depend_on_their_sizes() -> None:
    votes = [("a", 1.0, 2.0), ("b", 1.0, 10.0)]
    crowd = [*votes, *[("b", 5.0, 10.0)] * 50]
    assert balanced(votes, BalanceConfig(exponent=0)) == balanced(crowd, BalanceConfig(exponent=0)) == 6


@settings(deadline=None)
@given(VOTES)
def test_exponent_one_is_the_plain_weighted_mean(votes) -> None:
    mean = WeightedMean(SHAPES)
    for _, weight, value in votes:
        mean.add({"lora.0.q_proj.B": np.full((1, 1), value, np.float32)}, weight)
    assert balanced(votes, BalanceConfig()) == mean.result()["lora.0.q_proj.B"][0, 0]


@settings(deadline=None)
@given(VOTES, st.floats(0, 1), st.floats(0.1, 1.9))
def test_weights_for_all_updates_at_once_give_the_same_result(votes, exponent, priority) -> None:
    config, priorities = BalanceConfig(exponent=exponent, worst_family_rate=1), {"a": priority}
    weights = balanced_weights([(family, weight) for family, weight, _ in votes], config, priorities)
    expected = sum(share * value for share, (_, _, value) in zip(weights, votes, strict=True))
    assert math.fsum(weights) == pytest.approx(1)
    assert balanced(votes, config, **priorities) == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_families_sum_counts_as_its_updates() -> None:
    """Large: (9 * 2) / 9 = 2; small: 8. Equal shares: 5."""
    means = FamilyMeans(shapes=SHAPES, balance=BalanceConfig(exponent=0))
    means.add_sum({"lora.0.q_proj.B": np.full((1, 1), 18.0)}, 9, "large")
    means.add({"lora.0.q_proj.B": np.full((1, 1), 8, np.float32)}, 1, "small")
    assert means.result()["lora.0.q_proj.B"] == 5


def accepted(share: float) -> DraftCounters:
    return DraftCounters(drafted=1000, accepted=int(1000 * share))


def test_priorities_by_hand() -> None:
    """Acceptance 0.9 and 0.5, rate ln 2 / 0.2: around their mean loss the factors are 1/2 and 2, mean 1: 0.4, 1.6."""
    config = BalanceConfig(worst_family_rate=math.log(2) / 0.2, floor=0)
    found = config.reprioritised({}, {"good": accepted(0.9), "bad": accepted(0.5)})
    assert found == pytest.approx({"good": 0.4, "bad": 1.6})
    halved = BalanceConfig(worst_family_rate=math.log(2) / 0.2, floor=0.5)
    assert halved.reprioritised({}, {"good": accepted(0.9), "bad": accepted(0.5)}) == pytest.approx(
        {"good": 0.5 / 1.05, "bad": 1.6 / 1.05}
    )


def test_the_worst_family_gains_round_by_round_and_none_is_forgotten() -> None:
    config = BalanceConfig(worst_family_rate=1.0, floor=0.1)
    evaluation = {"good": accepted(0.9), "middle": accepted(0.7), "bad": accepted(0.3)}
    history = [dict.fromkeys(evaluation, 1.0)]
    for _ in range(60):
        history.append(config.reprioritised(history[-1], evaluation))
    assert all(b["bad"] > a["bad"] for a, b in pairwise(history[:5]))
    assert all(sum(found.values()) == pytest.approx(3) for found in history)
    assert all(value >= 0.1 / 1.1 for value in history[-1].values())


def test_a_family_without_figures_keeps_its_place() -> None:
    config = BalanceConfig(worst_family_rate=2.0, floor=0)
    evaluation = {"good": accepted(0.9), "bad": accepted(0.5), "silent": DraftCounters()}
    found = config.reprioritised({"away": 1.0}, evaluation)
    assert found["good"] < found["silent"] == found["away"] < found["bad"]


def test_worst_family_weights_lower_the_worst_loss() -> None:
    """Families pull one number towards 0 (nine devices) and 1 (one): the loss is the distance. Plain ends at 0.1."""

    def worst(config: BalanceConfig) -> float:
        value, priorities = 0.5, dict[str, float]()
        for _ in range(400):
            votes = [("large", 1, 0 - value)] * 9 + [("small", 1, 1 - value)]
            value += 0.1 * balanced(votes, config, **priorities)
            evaluation = {"large": accepted(1 - value), "small": accepted(value)}
            priorities = config.reprioritised(priorities, evaluation)
        return max(value, 1 - value)

    assert worst(BalanceConfig()) == pytest.approx(0.9, abs=0.01)
    assert worst(BalanceConfig(worst_family_rate=0.05, floor=0.02)) < 0.6


@pytest.mark.parametrize("wrong", [{"exponent": 1.1}, {"exponent": -0.1}, {"worst_family_rate": -1}, {"floor": 2}])
def test_a_setting_out_of_range_is_one_line(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"^{name} is .*, expected a number from 0 to [^\n]*$"):
        BalanceConfig(**wrong)
