"""The table of rules: each against the dense mean of the devices' products, order, grouping, memory."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fleetdraft.common.lora import Arrays, LoraAdapter, LoraLayout
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.aggregation.cohort import Cohort
from fleetdraft.server.aggregation.family_balance import BalanceConfig
from fleetdraft.server.aggregation.fed_svd import rebased
from fleetdraft.server.aggregation.rules import RULES, WEIGHTS, Terms, trained_shapes

LAW = settings(deadline=None, max_examples=30)  # the machine may be busy
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(1, 7)
SUM_ONLY = ("fedit", "ffa-lora", "rolora", "fedsvd")
#: Their round is the mean of the products up to float32 rounding.
EXACT = ("ffa-lora", "rolora", "fedsvd")

Vote = tuple[Arrays, float, str]


def trained_adapter(layout: LoraLayout, seed: int) -> LoraAdapter:
    """One whose B is not zero."""
    rng = np.random.default_rng([seed, 1])
    start = layout.initial(seed)
    return start.plus({n: 0.3 * rng.standard_normal(s, np.float32) for n, s in layout.shapes.items() if n[-1] == "B"})


def votes_for(rule: str, layout: LoraLayout, seed: int, count: int, round: int = 1) -> list[Vote]:
    """Updates of the size of the adapter itself, with weights from 1 to 1000 and two families."""
    rng = np.random.default_rng([seed, 2])
    shapes = trained_shapes(layout, RULES[rule].factors_in(round))
    return [
        (
            {n: 0.3 * rng.standard_normal(s, np.float32) for n, s in shapes.items()},
            float(rng.integers(1, 1001)) if RULES[rule].weighs else 1.0,
            rng.choice(["spm", "bpe"]),
        )
        for _ in range(count)
    ]


def next_adapter(rule: str, adapter: LoraAdapter, votes: list[Vote], round: int = 1, **terms: object) -> LoraAdapter:
    aggregate = RULES[rule].begin(Terms(adapter=adapter, **terms), round)
    for vote in votes:
        aggregate.add(*vote)
    after = adapter.plus(aggregate.result())
    return rebased(after).adapter if RULES[rule].rebases else after


def products(adapter: LoraAdapter) -> list[np.ndarray]:
    return [change.b.astype(np.float64) @ change.a.astype(np.float64) for change in adapter.changes.values()]


def mean_products(adapter: LoraAdapter, votes: list[Vote]) -> list[np.ndarray]:
    weights = np.array([weight for _, weight, _ in votes])
    shares = weights / weights.sum()
    each = [products(adapter.plus(delta)) for delta, _, _ in votes]
    return [sum(share * one[i] for share, one in zip(shares, each, strict=True)) for i in range(len(each[0]))]


def errors(left: list[np.ndarray], right: list[np.ndarray]) -> list[float]:
    """Relative, in the Frobenius norm, by projection."""
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(left, right, strict=True)]


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("round", [1, 2])
@LAW
@given(seed=SEEDS, count=COUNTS)
def test_an_exact_rule_gives_the_mean_of_the_products(rule, round, seed, count, layout: LoraLayout) -> None:
    start = trained_adapter(layout, seed)
    votes = votes_for(rule, layout, seed, count, round)
    after = next_adapter(rule, start, votes, round)
    assert max(errors(products(after), mean_products(start, votes))) < 1e-6


@LAW
@given(seed=SEEDS, count=COUNTS)
def test_flexlora_gives_the_best_cut_of_the_mean_of_the_products(seed, count, layout: LoraLayout) -> None:
    """No matrix of the rank is nearer (Eckart and Young): what is lost is the rest of the singular values."""
    start = trained_adapter(layout, seed)
    votes = votes_for("flexlora", layout, seed, count)
    dense = mean_products(start, votes)
    for ours, mean in zip(products(next_adapter("flexlora", start, votes)), dense, strict=True):
        u, s, v = np.linalg.svd(mean)
        best = (u[:, : layout.rank] * s[: layout.rank]) @ v[: layout.rank]
        assert np.linalg.norm(ours - mean) <= np.linalg.norm(best - mean) + 1e-6 * np.linalg.norm(mean)


def test_flexlora_is_exact_where_the_mean_has_the_rank_of_the_release(layout: LoraLayout) -> None:
    start = trained_adapter(layout, 0)
    ((_, weight, family), *_) = votes = votes_for("flexlora", layout, 0, 3)
    (delta, _, _) = votes[0]
    same = [(delta, weight, family)] * 5
    assert max(errors(products(next_adapter("flexlora", start, same)), mean_products(start, same))) < 1e-6


def test_the_error_of_fedit_is_the_covariance_of_a_and_b(layout: LoraLayout) -> None:
    """mean(B A) - mean(B) mean(A) = mean((B - mean B) (A - mean A)); 30 to 70 % of the mean of unrelated updates."""
    start = trained_adapter(layout, 0)
    votes = votes_for("fedit", layout, 0, 5)
    after, dense = products(next_adapter("fedit", start, votes)), mean_products(start, votes)
    middle = next_adapter("fedit", start, votes)
    weights = np.array([weight for _, weight, _ in votes]) / sum(weight for _, weight, _ in votes)
    for place, key in enumerate(start.changes):
        covariance = sum(
            share * (one.b - middle.changes[key].b).astype(float) @ (one.a - middle.changes[key].a).astype(float)
            for share, one in zip(weights, (start.plus(delta).changes[key] for delta, _, _ in votes), strict=True)
        )
        np.testing.assert_allclose(dense[place] - after[place], covariance, atol=1e-6)
    assert 0.3 < np.mean(errors(after, dense)) < 0.7


def test_flexlora_is_nearer_to_the_mean_of_the_products_than_fedit(layout: LoraLayout) -> None:
    start = trained_adapter(layout, 0)
    votes = votes_for("fedit", layout, 0, 5)
    dense = mean_products(start, votes)
    flex, plain = (errors(products(next_adapter(rule, start, votes)), dense) for rule in ("flexlora", "fedit"))
    assert all(ours < other for ours, other in zip(flex, plain, strict=True))


def test_robust_rules_agree_with_fedit_where_all_updates_are_the_same(layout: LoraLayout) -> None:
    start = trained_adapter(layout, 0)
    votes = votes_for("fedit", layout, 0, 1) * 7
    plain = next_adapter("fedit", start, votes)
    for rule in ("trimmed-mean", "median", "krum", "multi-krum"):
        robust = next_adapter(rule, start, votes)
        for name, value in plain.arrays.items():
            np.testing.assert_array_equal(robust.arrays[name], value, err_msg=f"{rule} {name}")


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=8)
@given(seed=SEEDS, random=st.randoms(use_true_random=False))
def test_order_and_grouping_change_no_bit(rule, seed, random, layout: LoraLayout) -> None:
    terms = Terms(adapter=trained_adapter(layout, seed), balance=BalanceConfig(exponent=0.5))
    votes = votes_for(rule, layout, seed, 7)
    whole, first, second = (RULES[rule].begin(terms, 1) for _ in range(3))
    for vote in votes:
        whole.add(*vote)
    shuffled = random.sample(votes, len(votes))
    for place, vote in enumerate(shuffled):
        (first if place < 3 else second).add(*vote)
    second.merge(first)
    one, other = whole.result(), second.result()
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_changes_only_the_factors_it_trains(rule: str, layout: LoraLayout) -> None:
    start = trained_adapter(layout, 0)
    aggregate = RULES[rule].begin(Terms(adapter=start), 1)
    for vote in votes_for("fedit", layout, 0, 7):
        aggregate.add(*vote)
    assert aggregate.result().keys() == trained_shapes(layout, RULES[rule].factors_in(1)).keys()


@pytest.mark.parametrize("rule", RULES)
def test_an_aggregate_of_nothing_is_an_error(rule: str, layout: LoraLayout) -> None:
    with pytest.raises(ZeroDivisionError, match="of no updates"):
        RULES[rule].begin(Terms(adapter=layout.initial(0)), 1).result()


def test_sum_only_rules_are_those_that_need_no_single_update() -> None:
    assert tuple(name for name, rule in RULES.items() if rule.sum_only) == SUM_ONLY


def test_rolora_trains_b_first_and_then_takes_turns() -> None:
    assert [RULES["rolora"].factors_in(round) for round in (1, 2, 3)] == [("B",), ("A",), ("B",)]


def test_fedsvd_leaves_orthonormal_a_even_where_nothing_was_learned(layout: LoraLayout) -> None:
    for start in (layout.initial(0), trained_adapter(layout, 0)):
        for change in rebased(start).adapter.changes.values():
            np.testing.assert_allclose(change.a @ change.a.T, np.eye(layout.rank), atol=1e-6)


def test_fedsvd_puts_the_direction_with_most_weight_first(layout: LoraLayout) -> None:
    for change in rebased(trained_adapter(layout, 0)).adapter.changes.values():
        norms = np.linalg.norm(change.b, axis=0)
        assert (np.diff(norms) < 0).all()
        np.testing.assert_allclose(change.b.T @ change.b, np.diag(norms**2), atol=1e-5)


def test_fedsvd_by_hand(layout: LoraLayout) -> None:
    """B A = [[3, 0], [0, 4]] in the corner: A becomes the unit vectors, the 4 first, and B their lengths."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in layout.shapes.items()}
    arrays["lora.0.q_proj.A"][[0, 1], [0, 1]] = [1, 2]
    arrays["lora.0.q_proj.B"][[0, 1], [0, 1]] = [3, 2]
    found = rebased(LoraAdapter(layout=layout, arrays=arrays)).adapter.changes[0, "q_proj"]
    expected_a, expected_b = np.zeros_like(found.a), np.zeros_like(found.b)
    expected_a[[0, 1], [1, 0]] = 1
    expected_b[[1, 0], [0, 1]] = [4, 3]
    np.testing.assert_allclose(np.abs(found.a), expected_a, atol=1e-6)
    np.testing.assert_allclose(np.abs(found.b), expected_b, atol=1e-6)


def test_a_device_of_smaller_rank_trains_the_leading_part(layout: LoraLayout) -> None:
    """One device of rank 1 beside one of rank 2: the rest of the first one's product is the release's."""
    start = trained_adapter(layout, 0)
    (full, weight, family), (other, _, _) = votes_for("flexlora", layout, 0, 2)
    small = {n: v[:1] if n[-1] == "A" else v[:, :1] for n, v in other.items()}
    padded = {n: v.copy() for n, v in other.items()}
    for name, value in padded.items():
        (value if name[-1] == "A" else value.T)[1:] = 0
    ours, expected = (
        next_adapter("flexlora", start, [(full, weight, family), (delta, weight, family)]) for delta in (small, padded)
    )
    assert max(errors(products(ours), products(expected))) == 0
    assert RULES["flexlora"].mixed_ranks


def test_more_devices_than_the_matrix_has_rows_still_give_the_best_cut(layout: LoraLayout) -> None:
    """20 devices of rank 2 stack 40 columns on matrices of 8 to 12 rows."""
    start = trained_adapter(layout, 3)
    votes = votes_for("flexlora", layout, 3, 20)
    for ours, mean in zip(products(next_adapter("flexlora", start, votes)), mean_products(start, votes), strict=True):
        lost = np.linalg.svd(mean)[1][layout.rank :]
        assert np.linalg.norm(ours - mean) <= np.linalg.norm(lost) + 1e-6 * np.linalg.norm(mean)


def test_flexlora_changes_no_more_than_it_must(layout: LoraLayout) -> None:
    """Factors of a product are not unique: where nobody changed anything, the nearest are those that were there."""
    start = rebased(trained_adapter(layout, 0)).adapter
    zero = {name: np.zeros(shape, np.float32) for name, shape in layout.shapes.items()}
    aggregate = RULES["flexlora"].begin(Terms(adapter=start), 1)
    aggregate.add(zero, 1.0, "spm")
    for value in aggregate.result().values():
        np.testing.assert_allclose(value, 0, atol=1e-6)


def test_weights_are_tokens_examples_or_one_vote(update_of) -> None:
    update = update_of(weight=7.0, counters=DraftCounters(prompts=3))
    assert [WEIGHTS[name](update) for name in ("tokens", "examples", "equal")] == [7.0, 3.0, 1.0]


def test_a_cohort_has_one_order_whatever_order_it_came_in(layout: LoraLayout) -> None:
    votes = votes_for("flexlora", layout, 0, 6)
    orders = []
    for arrival in (votes, votes[::-1]):
        cohort = Cohort(layout.shapes)
        for vote in arrival:
            cohort.add(*vote)
        orders.append([vote.weight for vote in cohort.votes()])
    assert orders[0] == orders[1]
    assert len(set(orders[0])) == 6
