"""Server settings are checked when they are made."""

import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.server.aggregation.aggregate import AggregationConfig
from fleetdraft.server.aggregation.family_balance import BalanceConfig
from fleetdraft.server.config import ServerConfig


@pytest.mark.parametrize(
    ("field", "value", "expectation"),
    [
        ("rounds", -1, "a number >= 0"),
        ("expected_clients", 0, "a number >= 1"),
        ("clip_norm", float("nan"), "a number > 0"),
        ("timeout_s", float("inf"), "a number > 0"),
        ("clients_per_round", 1, "at least min_updates = 2"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_expectation(field, value, expectation) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig(**({"rounds": 1, "aggregation": AggregationConfig(min_updates=2)} | {field: value}))
    assert str(caught.value) == f"{field} is {value!r}, expected {expectation}"


def test_evaluation_comes_every_so_many_rounds() -> None:
    config = ServerConfig(rounds=5, evaluate_every=2)
    assert [round for round in range(1, 6) if config.evaluates(round)] == [2, 4]
    assert not ServerConfig(rounds=5).evaluates(2)


def test_the_worst_family_cannot_be_helped_without_measuring_it() -> None:
    aggregation = AggregationConfig(balance=BalanceConfig(worst_family_rate=1.0))
    ServerConfig(rounds=1, aggregation=aggregation, evaluate_every=2)
    with pytest.raises(ConfigError, match="evaluate_every is 0, expected a number >= 1"):
        ServerConfig(rounds=1, aggregation=aggregation)
