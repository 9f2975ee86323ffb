"""From updates to the next adapter: what goes together, what a round gives, what is carried on."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.common.errors import ConfigError, RegistryError, UpdateRejected
from fleetdraft.common.messages import Release, TrainCounters, Update
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.aggregation.aggregate import Aggregate, AggregationConfig, Carried
from fleetdraft.server.aggregation.family_balance import BalanceConfig
from fleetdraft.server.aggregation.rules import RULES
from fleetdraft.server.aggregation.server_optimizer import OPTIMIZERS, OptimizerConfig
from fleetdraft.server.report import RoundReport
from fleetdraft.server.round_journal import Entry, RoundJournal, Stage

UpdateOf = Callable[..., Update]


def config_of(rule: str, **changes: object) -> AggregationConfig:
    weights = "tokens" if RULES[rule].weighs else "equal"
    return AggregationConfig(**({"rule": rule, "weights": weights, "min_updates": 20} | changes))


def updates(rule: str, update_of: UpdateOf, count: int = 7, round: int = 1) -> list[Update]:
    rng = np.random.default_rng(round)
    factors = "".join(RULES[rule].factors_in(round))
    found = []
    for place in range(count):
        update = update_of(factors=factors, weight=float(place + 1), family="ab"[place % 2])
        delta = {n: rng.standard_normal(v.shape, np.float32) for n, v in update.delta.items()}
        found.append(update_of(delta=delta, weight=update.weight, family=update.family))
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_rounds_repeat_to_the_last_bit_from_release_and_bytes(
    rule: str, optimizer: str, release: Release, update_of: UpdateOf
) -> None:
    config = config_of(rule, optimizer=OptimizerConfig(name=optimizer, learning_rate=0.5))
    adapter, carried = release.adapter, Carried()
    for round in (1, 2, 3):
        found = []
        for given in (carried, Carried.from_bytes(carried.to_bytes())):
            aggregate = Aggregate(config, adapter, round, given)
            for update in updates(rule, update_of, round=round):
                aggregate.add(update)
            found.append(aggregate.close())
        (adapter, carried), (again, repeated) = found
        assert (adapter.digest, carried.to_bytes()) == (again.digest, repeated.to_bytes())
    assert all(np.isfinite(value).all() for value in adapter.arrays.values())


def test_plain_averaging_is_the_release_plus_the_weighted_mean(release: Release, update_of: UpdateOf) -> None:
    """Weights 1 and 3, entries 1 and 5: 4 is added."""
    aggregate = Aggregate(AggregationConfig(), release.adapter, 1, Carried())
    aggregate.add(update_of(1, weight=1.0))
    aggregate.add(update_of(5, weight=3.0))
    after, carried = aggregate.close()
    for name, value in after.arrays.items():
        np.testing.assert_array_equal(value, release.adapter.arrays[name] + np.float32(4))
    assert carried == Carried()


def test_momentum_goes_on_in_the_same_direction_after_fedsvd_changed_the_factors(
    release: Release, update_of: UpdateOf
) -> None:
    """Nobody changes anything in round 2, so the product moves by half of what it moved by in round 1."""
    config = config_of("fedsvd", optimizer=OptimizerConfig(name="fedavgm", momentum=0.5))
    adapter, carried, products = release.adapter, Carried(), []
    for round, scale in ((1, 1), (2, 0)):
        aggregate = Aggregate(config, adapter, round, carried)
        (update,) = updates("fedsvd", update_of, 1)
        aggregate.add(update_of(delta={n: scale * v for n, v in update.delta.items()}))
        adapter, carried = aggregate.close()
        products.append({key: change.b @ change.a for key, change in adapter.changes.items()})
    for key, first in products[0].items():
        np.testing.assert_allclose(products[1][key], 1.5 * first, atol=1e-5)


def test_merged_aggregates_are_one(release: Release, update_of: UpdateOf) -> None:
    whole, left, right = (Aggregate(config_of("fedsvd"), release.adapter, 1, Carried()) for _ in range(3))
    for place, update in enumerate(updates("fedsvd", update_of)):
        whole.add(update)
        (left if place % 2 else right).add(update)
    left.merge(right)
    assert left.close()[0].digest == whole.close()[0].digest


def test_sums_are_as_good_as_updates(release: Release, update_of: UpdateOf) -> None:
    config = config_of("fedit", balance=BalanceConfig(exponent=0))
    single, summed = (Aggregate(config, release.adapter, 1, Carried()) for _ in range(2))
    found = updates("fedit", update_of)
    for update in found:
        single.add(update)
    for family in "ab":
        members = [update for update in found if update.family == family]
        total = {n: sum(u.weight * u.delta[n].astype(float) for u in members) for n in members[0].delta}
        summed.add_sum(total, sum(update.weight for update in members), family)
    one, other = single.close()[0], summed.close()[0]
    for name, value in one.arrays.items():
        np.testing.assert_allclose(other.arrays[name], value, atol=1e-6)


def test_a_collective_rule_takes_no_sums(release: Release) -> None:
    aggregate = Aggregate(config_of("median"), release.adapter, 1, Carried())
    with pytest.raises(ConfigError, match="^rule is 'median', which needs every update, [^\n]*$"):
        aggregate.add_sum({}, 1.0, "spm")


def test_an_update_from_no_example_is_rejected_and_changes_nothing(release: Release, update_of: UpdateOf) -> None:
    aggregate = Aggregate(AggregationConfig(weights="examples"), release.adapter, 1, Carried())
    with pytest.raises(UpdateRejected, match="weight by examples is 0"):
        aggregate.add(update_of(100))
    aggregate.add(update_of(1, counters=DraftCounters(prompts=2)))
    np.testing.assert_array_equal(
        aggregate.close()[0].arrays["lora.0.q_proj.B"], np.ones_like(release.adapter.arrays["lora.0.q_proj.B"])
    )


@pytest.mark.parametrize(("rule", "byzantine", "fewest"), [("krum", 0.2, 7), ("median", 0.2, 3), ("krum", 0.4, 19)])
def test_a_round_that_a_robust_rule_cannot_close_is_an_error_when_configured(
    rule: str, byzantine: float, fewest: int
) -> None:
    settings = {"rule": rule, "weights": "equal", "byzantine": byzantine}
    AggregationConfig(min_updates=fewest, **settings)
    with pytest.raises(ConfigError, match=f"^min_updates is {fewest - 1}, expected at least {fewest}, [^\n]*$"):
        AggregationConfig(min_updates=fewest - 1, **settings)


@pytest.mark.parametrize("rule", ["trimmed-mean", "median", "krum", "multi-krum"])
@pytest.mark.parametrize("byzantine", [0.05, 0.1, 0.2, 1 / 3, 0.4, 0.45])
def test_from_the_fewest_on_any_number_of_updates_will_do(rule: str, byzantine: float, release: Release) -> None:
    fewest = RULES[rule].fewest(byzantine)
    zeros = {n: np.zeros(s, np.float32) for n, s in release.adapter.layout.shapes.items()}
    settings = {"rule": rule, "weights": "equal", "byzantine": byzantine, "min_updates": fewest}
    aggregate = Aggregate(AggregationConfig(**settings), release.adapter, 1, Carried())
    for count in range(1, fewest + 12):
        aggregate._accumulator.add(zeros, 1.0)
        if count >= fewest:
            aggregate.close()


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"rule": "fedavg"}, "expected one of fedit, "),
        ({"weights": "loss"}, "expected one of tokens, examples, equal"),
        ({"byzantine": 0.5}, "expected a number > 0 and < 0.5"),
        ({"rule": "median", "min_updates": 9}, "weights is 'tokens', expected 'equal', since median gives every"),
        (
            {"rule": "median", "weights": "equal", "min_updates": 9, "balance": BalanceConfig(exponent=0)},
            "expected exponent 1 and worst_family_rate 0, since median",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(wrong: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as told:
        AggregationConfig(**wrong)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.sum_only])
def test_memory_does_not_grow_with_the_number_of_updates(rule: str, release: Release, update_of: UpdateOf) -> None:
    aggregate = Aggregate(config_of(rule), release.adapter, 1, Carried())
    few = updates(rule, update_of, 2)
    peaks = []
    for count in (10, 200):
        tracemalloc.start()
        for place in range(count):
            aggregate.add(few[place % 2])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one = sum(value.nbytes for value in few[0].delta.values())
    assert peaks[1] < peaks[0] + one


def test_priorities_are_carried_through_bytes() -> None:
    balance = BalanceConfig(worst_family_rate=1.0)
    evaluation = {"a": DraftCounters(drafted=10, accepted=9), "b": DraftCounters(drafted=10, accepted=1)}
    carried = Carried().evaluated(evaluation, balance)
    assert carried.priorities["b"] > 1 > carried.priorities["a"]
    assert Carried.from_bytes(carried.to_bytes()) == carried


@pytest.mark.parametrize("data", [b"", b"[]\n", b"{}\nnothing", b'{"a": "b"}\n'])
def test_torn_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        Carried.from_bytes(data)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("rule", RULES)
def test_an_aggregate_that_was_on_disk_in_between_ends_as_one_that_was_not(
    rule: str, exponent: float, release: Release, update_of: UpdateOf, tmp_path: Path
) -> None:
    """To the last bit, also where what comes later is far larger than what came before."""
    balance = BalanceConfig(exponent=exponent if RULES[rule].weighs else 1.0)
    config = config_of(rule, balance=balance)
    found = updates(rule, update_of, count=11)
    found += [replace(update, delta={n: 1e4 * v for n, v in update.delta.items()}) for update in found[:3]]
    whole, split = (Aggregate(config, release.adapter, 1, Carried()) for _ in range(2))
    for place, update in enumerate(found):
        whole.add(update)
        split.add(update)
        if place % 5 == 0:
            RoundJournal(tmp_path).keep(
                Entry(stage=Stage.TRAINING, report=REPORT, settings={}, aggregate=split.saved())
            )
            kept = RoundJournal(tmp_path).load()
            assert kept is not None
            assert kept.aggregate is not None
            split = Aggregate(config, release.adapter, 1, Carried())
            split.restore(kept.aggregate)
    assert split.close()[0].digest == whole.close()[0].digest


@pytest.mark.parametrize("rule", ["fedit", "median"])
def test_an_aggregate_of_other_shapes_is_refused(rule: str, release: Release, update_of: UpdateOf) -> None:
    smaller = replace(release.adapter.layout, rank=1).initial(0)
    aggregate = Aggregate(config_of(rule), release.adapter, 1, Carried())
    aggregate.add(update_of())
    with pytest.raises(ValueError, match="expected"):
        Aggregate(config_of(rule), smaller, 1, Carried()).restore(aggregate.saved())


REPORT = RoundReport(
    round=1, participants=(), accepted=(), excluded={}, release=0, digest="0", released=False, seconds=0.0,
    bytes_up=0, bytes_down=0, families={}, training=TrainCounters(),
)  # fmt: skip
