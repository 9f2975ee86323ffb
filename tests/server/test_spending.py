"""A private run round by round: the ledger is that of the releases, the noise is what was paid for."""

import json
import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant

from fleetdraft.common.errors import BudgetSpent, ConfigError, RegistryError
from fleetdraft.server.privacy.accounting import Ledger
from fleetdraft.server.privacy.config import PrivacyConfig
from fleetdraft.server.privacy.spending import Spending, ledger_of

KEY = bytes(32)
DELTA = 1e-6
CLIENTS = [f"phone-{i}" for i in range(100)]


def spending(rounds: int = 10, cohort: int | None = 20, ledger: Ledger | None = None, **settings) -> Spending:
    config = PrivacyConfig(**({"delta": DELTA} | settings))
    return Spending(config, rounds=rounds, cohort=cohort, population=len(CLIENTS), ledger=ledger or Ledger(), key=KEY)


def test_epsilon_is_what_dp_accounting_says_of_the_rounds_that_were() -> None:
    run, accountant = spending(noise_multiplier=2.0), PLDAccountant()
    for joined in (100, 100, 80):
        run.pay(joined)
        accountant.compose(PoissonSampledDpEvent(20 / joined, GaussianDpEvent(2.0)))
    report = run.report(1.0)
    assert report.epsilon == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-3)  # grid of 1e-4 per round
    assert (report.rounds, report.population, report.budget) == (3, 80, None)


def test_a_target_is_met_by_the_planned_rounds_and_not_exceeded_by_one_more() -> None:
    run = spending(rounds=4, cohort=None, target_epsilon=4.0)
    for _ in range(4):
        run.pay(len(CLIENTS))
    assert 3.9 < run.report(1.0).epsilon <= 4.0
    with pytest.raises(BudgetSpent, match="expected at most 4; 4 rounds have spent"):
        run.pay(len(CLIENTS))
    assert run.report(1.0).rounds == 4


def test_a_budget_below_the_target_stops_the_run_earlier() -> None:
    run, paid = spending(rounds=4, cohort=None, target_epsilon=4.0, budget=2.0), 0
    with pytest.raises(BudgetSpent):
        while True:
            run.pay(len(CLIENTS))
            paid += 1
    assert paid == 1


def test_a_resumed_run_goes_on_where_its_releases_are() -> None:
    whole, first = spending(noise_multiplier=2.0), spending(noise_multiplier=2.0)
    for _ in range(3):
        whole.pay(100)
        first.pay(100)
    second = spending(noise_multiplier=2.0, ledger=ledger_of(json.loads(json.dumps(first.record(1.0)))))
    second.pay(100)
    whole.pay(100)
    assert second.report(1.0) == whole.report(1.0)


def test_a_round_without_a_release_costs_nothing() -> None:
    run = spending(noise_multiplier=2.0)
    run.pay(100)
    once = run.report(1.0)
    run.pay(100)
    run.forgo()
    assert run.report(1.0) == once


def test_the_noise_is_that_which_was_paid_for() -> None:
    """Within 2 % by variance: nine standard errors of so many entries."""
    run, sensitivity = spending(noise_multiplier=1.5), 0.7
    run.pay(100)
    mean = run.noisy_mean({"a": np.full(400_000, 3.0)}, sensitivity)["a"].astype(np.float64)
    std = 1.5 * sensitivity
    assert run.report(sensitivity).noise_std == std
    assert abs(((mean - 3.0 / 20) * 20).var() / std**2 - 1) < 0.02
    assert abs(mean.mean() - 3.0 / 20) < 6 * std / 20 / math.sqrt(400_000)


def test_the_sum_is_divided_by_the_planned_cohort_whoever_answered() -> None:
    run = spending(noise_multiplier=1e-5)
    run.pay(100)
    np.testing.assert_allclose(run.noisy_mean({"a": np.array([20.0])}, 1.0)["a"], [1.0], atol=1e-4)


def test_a_fleet_smaller_than_the_cohort_takes_part_whole() -> None:
    run = spending(noise_multiplier=1.0, cohort=20)
    run.pay(15)
    assert run.draw(CLIENTS[:15], round=1) == sorted(CLIENTS[:15])
    assert run.charge.probability == 1.0


def test_a_poisson_draw_is_of_the_devices_that_are_there() -> None:
    run = spending(noise_multiplier=1.0, cohort=20)
    run.pay(100)
    sizes = [len(run.draw(CLIENTS, round=r)) for r in range(300)]
    assert abs(np.mean(sizes) - 20) < 6 * math.sqrt(16 / 300)
    assert len(set(sizes)) > 1


def test_a_fleet_so_large_that_delta_allows_to_publish_a_device_is_refused() -> None:
    run = spending(noise_multiplier=1.0)
    with pytest.raises(ConfigError, match="delta is 1e-06, expected less than 1 / 1000000"):
        run.pay(1_000_000)


@pytest.mark.parametrize("record", [{}, {"ledger": 1}, {"ledger": [{"x": 1}]}])
def test_a_record_that_is_none_is_an_error(record) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        ledger_of(record)
