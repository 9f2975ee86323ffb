"""Settings of privacy: what is refused, with the reason, before anything runs."""

import subprocess
import sys

import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.server.privacy.config import Conditions, PrivacyConfig, SecAggConfig

SOUND = {"weights": "equal", "sum_only": True, "pooled": True}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": "tokens"}, "weights is 'tokens', expected 'equal'"),
        ({"sum_only": False}, "collective"),
        ({"pooled": False}, "balanced"),
        ({"closes_early": True}, "first answers"),
        ({"buffered": True}, "buffered"),
    ],
)
def test_no_epsilon_and_no_secure_sum_where_they_would_mean_nothing(change, reason) -> None:
    Conditions(**SOUND).check_proved()
    Conditions(**SOUND).check_summable()
    conditions = Conditions(**(SOUND | change))
    with pytest.raises(ConfigError, match=f"not proved here: .*{reason}"):
        conditions.check_proved()
    with pytest.raises(ConfigError, match=f"not possible here: .*{reason}"):
        conditions.check_summable()


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
