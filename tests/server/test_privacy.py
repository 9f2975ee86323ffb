"""The accountant: what dp_accounting says when called by hand, a budget that holds, no ε outside the analysis."""

import json

import dp_accounting
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SampledWithoutReplacementDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fleetdraft.common.errors import BudgetSpent, ConfigError
from fleetdraft.server.privacy.accounting import Budget, Charge, Ledger

DELTA = 1e-6


def charge(sampling: str = "all", noise: float = 4.0, cohort: int = 20, population: int = 200) -> Charge:
    return Charge(sampling=sampling, noise_multiplier=noise, cohort=cohort, population=population)


def spent(rounds: int, of: Charge) -> float:
    return Ledger().plus(of, rounds).epsilon(DELTA)


def test_epsilon_without_a_draw_is_that_of_dp_accounting() -> None:
    assert spent(7, charge()) == PLDAccountant().compose(GaussianDpEvent(4.0), 7).get_epsilon(DELTA)


def test_epsilon_of_a_poisson_draw_is_that_of_dp_accounting() -> None:
    event = PoissonSampledDpEvent(0.1, GaussianDpEvent(2.0))
    assert spent(10, charge("poisson", 2.0)) == PLDAccountant().compose(event, 10).get_epsilon(DELTA)


def test_epsilon_of_a_fixed_draw_is_that_of_dp_accounting_with_twice_the_sensitivity() -> None:
    event = SampledWithoutReplacementDpEvent(200, 20, GaussianDpEvent(1.0))  # a replaced update moves the sum by 2 C
    by_hand = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE).compose(event, 10)
    assert spent(10, charge("fixed", 2.0)) == by_hand.get_epsilon(DELTA)


def test_rounds_of_different_size_add_up_as_dp_accounting_composes_them() -> None:
    accountant = PLDAccountant()
    ledger = Ledger()
    for population in (200, 200, 160):
        accountant.compose(PoissonSampledDpEvent(20 / population, GaussianDpEvent(2.0)))
        ledger = ledger.plus(charge("poisson", 2.0, population=population))
    assert ledger.epsilon(DELTA) == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-3)  # grid of 1e-4 per round
    assert [count for _, count in ledger.charges] == [2, 1]


def test_replacing_an_update_costs_what_the_exact_accountant_says_it_does() -> None:
    """The library's two accountants mean different things by the noise multiplier here; ours must not be the lower."""
    exact = PLDAccountant(NeighboringRelation.REPLACE_ONE).compose(GaussianDpEvent(4.0)).get_epsilon(DELTA)
    everybody = spent(1, charge("fixed", cohort=200))
    assert exact <= everybody < 1.15 * exact


def test_nothing_spent_is_zero_and_hopeless_noise_is_an_upper_bound() -> None:
    assert Ledger().epsilon(DELTA) == 0.0
    assert spent(100, charge(noise=0.1)) >= RdpAccountant().compose(GaussianDpEvent(0.1), 100).get_epsilon(DELTA) > 1000


def test_the_run_stops_before_the_round_that_would_exceed_the_budget() -> None:
    budget, ledger = Budget(epsilon=3.0, delta=DELTA), Ledger()
    with pytest.raises(BudgetSpent, match=r"round \d+ would bring epsilon to .*, expected at most 3;"):
        for _ in range(100):
            ledger = budget.pay(ledger, charge())
    assert 1 < ledger.rounds < 100
    assert spent(ledger.rounds, charge()) <= 3.0 < spent(ledger.rounds + 1, charge())


def test_a_resumed_run_continues_with_the_same_ledger() -> None:
    ledger = Ledger().plus(charge("poisson", 2.0), 3).plus(charge("poisson", 2.5, population=199))
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again == ledger
    assert again.plus(charge("poisson", 2.5, population=199)).charges[-1][1] == 2


@pytest.mark.parametrize("sampling", ["all", "fixed"])
def test_the_least_noise_fills_the_budget_and_no_more(sampling) -> None:
    budget = Budget(epsilon=4.0, delta=DELTA)
    noise = budget.noise_multiplier(charge(sampling), rounds=1)
    assert spent(1, charge(sampling, noise)) <= 4.0 < spent(1, charge(sampling, noise / 1.01))


def test_the_same_noise_on_the_mean_costs_a_large_fleet_less() -> None:
    small = Ledger().plus(charge("poisson", 1.0, cohort=20, population=40), 5)
    large = small.at_fleet_size(cohort=2000, population=400_000)
    assert large.charges == ((charge("poisson", 100.0, cohort=2000, population=400_000), 5),)
    assert large.epsilon(DELTA) < 0.01 < 5 < small.epsilon(DELTA)


def test_different_neighbours_do_not_add_up() -> None:
    with pytest.raises(ConfigError, match="do not add up"):
        Ledger().plus(charge("poisson")).plus(charge("fixed"))


def test_a_delta_that_lets_one_device_be_published_is_an_error() -> None:
    with pytest.raises(ConfigError, match="expected less than 1 / 200"):
        Budget(epsilon=3.0, delta=0.005).pay(Ledger(), charge())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: charge("some"), "sampling"),
        (lambda: charge(noise=0.0), "noise_multiplier"),
        (lambda: charge(cohort=201), "cohort"),
        (lambda: Budget(epsilon=0.0, delta=DELTA), "epsilon"),
        (lambda: Budget(epsilon=31.0, delta=DELTA), "epsilon"),
        (lambda: Budget(epsilon=1.0, delta=1.0), "delta"),
    ],
)
def test_fields_out_of_range_are_errors(make, field) -> None:
    with pytest.raises(ConfigError, match=f"{field} is"):
        make()


def test_the_events_are_those_of_the_library() -> None:
    assert isinstance(charge().event, dp_accounting.GaussianDpEvent)
    assert charge("poisson").event == PoissonSampledDpEvent(0.1, GaussianDpEvent(4.0))
