"""Settings of privacy: what is refused, with the reason, before anything runs."""

import subprocess
import sys

import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.server.aggregation.aggregate import AggregationConfig
from fleetdraft.server.aggregation.family_balance import BalanceConfig
from fleetdraft.server.aggregation.rules import RULES
from fleetdraft.server.config import ServerConfig
from fleetdraft.server.privacy.config import Conditions, PrivacyConfig, SecAggConfig


def conditions(rule: str = "fedit", weights: str = "equal", exponent: float = 1.0, **others) -> Conditions:
    balance = BalanceConfig(exponent=exponent)
    fewest = {} if RULES[rule].sum_only else {"min_updates": 7}
    return Conditions(aggregation=AggregationConfig(rule=rule, weights=weights, balance=balance, **fewest), **others)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": "tokens"}, "weights is 'tokens', expected 'equal'"),
        ({"rule": "krum"}, "rule is 'krum', which needs every update, expected one of fedit, "),
        ({"rule": "flexlora"}, "rule is 'flexlora', which needs every update"),
        ({"exponent": 0.5}, "families are balanced"),
        ({"closes_early": True}, "first answers"),
        ({"buffered": True}, "buffered"),
    ],
)
def test_no_epsilon_and_no_secure_sum_where_they_would_mean_nothing(change, reason) -> None:
    conditions().check_proved()
    conditions().check_summable()
    with pytest.raises(ConfigError, match=f"not proved here: .*{reason}"):
        conditions(**change).check_proved()
    with pytest.raises(ConfigError, match=f"not possible here: .*{reason}"):
        conditions(**change).check_summable()


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.sum_only])
def test_every_rule_that_needs_sums_goes_with_both(rule) -> None:
    conditions(rule=rule).check_proved()
    conditions(rule=rule).check_summable()


@pytest.mark.parametrize(
    "setting",
    [{"privacy": PrivacyConfig(delta=1e-6, noise_multiplier=1.0)}, {"secure_aggregation": SecAggConfig()}],
    ids=["privacy", "secure aggregation"],
)
def test_a_server_refuses_them_when_it_is_configured(setting) -> None:
    ServerConfig(rounds=1, aggregation=AggregationConfig(weights="equal"), **setting)
    with pytest.raises(ConfigError, match="weights is 'tokens'"):
        ServerConfig(rounds=1, **setting)


def test_a_delta_that_lets_one_device_be_published_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta is 0\.1, expected less than 1 / 10 expected clients"):
        ServerConfig(
            rounds=1,
            aggregation=AggregationConfig(weights="equal"),
            expected_clients=10,
            privacy=PrivacyConfig(delta=0.1, noise_multiplier=1.0),
        )


def test_secure_aggregation_of_two_is_an_error() -> None:
    with pytest.raises(ConfigError, match="clients_per_round is 2, expected at least 3"):
        ServerConfig(
            rounds=1,
            aggregation=AggregationConfig(weights="equal"),
            clients_per_round=2,
            secure_aggregation=SecAggConfig(),
        )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "neither of target_epsilon and noise_multiplier"),
        ({"target_epsilon": 1.0, "noise_multiplier": 1.0}, "both of target_epsilon and noise_multiplier"),
        ({"target_epsilon": 1.0, "delta": 0.0}, "delta is 0.0"),
        ({"target_epsilon": 0.0}, "target_epsilon is 0.0"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier is nan"),
        ({"noise_multiplier": 1.0, "budget": -1.0}, "budget is -1.0"),
        ({"noise_multiplier": 1.0, "sampling": "all"}, "sampling is 'all'"),
    ],
)
def test_privacy_out_of_range_is_an_error(fields, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        PrivacyConfig(**({"delta": 1e-6} | fields))


@pytest.mark.parametrize(
    "change", [{"neighbours": 3}, {"neighbours": 0}, {"threshold": 0.5}, {"threshold": 1.1}, {"stage_timeout_s": 0.0}]
)
def test_secure_aggregation_out_of_range_is_an_error(change) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        SecAggConfig(**change)


def test_the_limit_is_the_target_unless_a_budget_is_given() -> None:
    assert PrivacyConfig(delta=1e-6, target_epsilon=2.0).limit == 2.0
    assert PrivacyConfig(delta=1e-6, target_epsilon=2.0, budget=1.0).limit == 1.0
    assert PrivacyConfig(delta=1e-6, noise_multiplier=1.0).limit is None


def test_settings_load_no_accountant() -> None:
    """It takes a second, which every command would pay."""
    code = "import sys, fleetdraft.server.strategy; print('dp_accounting' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "False"
