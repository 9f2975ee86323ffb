"""What a report says of privacy: the last ε, the fleet it stands for, sums that were not to be had."""

from dataclasses import replace

import pytest

from fleetdraft.common.machine import Machine
from fleetdraft.common.messages import TrainCounters
from fleetdraft.server.privacy.report import PrivacyReport, SecureReport, StageReport
from fleetdraft.server.report import RoundReport
from fleetdraft.simulations import privacy_section
from fleetdraft.simulations.results import FleetResults

SPENT = PrivacyReport(
    epsilon=1.25,
    delta=1e-6,
    rounds=1,
    budget=2.0,
    noise_multiplier=1.5,
    noise_std=7.5,
    sampling="poisson",
    cohort=20,
    population=100,
)
STAGE = StageReport(asked=5, dropped={"phone-1": "battery is <low>"}, seconds=1.0, bytes_up=1, bytes_down=1)
SUM = SecureReport(neighbours=4, threshold=3, step=0.5, stages={"setup": STAGE})


def round_report(number: int, **fields) -> RoundReport:
    return RoundReport(
        round=number,
        participants=("phone-0", "phone-1"),
        accepted=("phone-0",),
        excluded={},
        release=number,
        digest="0" * 64,
        released=True,
        seconds=1.0,
        bytes_up=1,
        bytes_down=1,
        families={},
        training=TrainCounters(),
        **fields,
    )


def results(*rounds: RoundReport, stopped: str = "") -> FleetResults:
    return FleetResults(
        title="t",
        started="2026-01-02T03:04:05+00:00",
        seconds=1.0,
        machine=Machine(cpu="c", cores=1, threads=1),
        settings={},
        rounds=rounds,
        families=(),
        clients=(),
        stopped=stopped,
    )


def test_nothing_is_said_of_a_run_without_privacy() -> None:
    assert list(privacy_section.lines(results(round_report(1)))) == []
    assert list(privacy_section.section([round_report(1)])) == []


def test_the_last_epsilon_counts() -> None:
    later = replace(SPENT, epsilon=1.75, rounds=2)
    (line,) = privacy_section.lines(results(round_report(1, privacy=SPENT), round_report(2, privacy=later)))
    assert line == (
        "Privacy: epsilon = 1.75 of at most 2 at delta = 1e-06 after 2 rounds "
        "(poisson, 20 of 100 devices, noise multiplier 1.5)"
    )


def test_a_fleet_to_compare_with_has_a_line_of_its_own() -> None:
    fleet = replace(SPENT, fleet_cohort=1000, fleet_population=1_000_000, fleet_epsilon=2e-5)
    *_, line = privacy_section.lines(results(round_report(1, privacy=fleet)))
    assert line == (
        "Privacy: epsilon < 0.0001 at delta = 1e-06 for a fleet that draws 1,000 of 1,000,000 devices, same noise"
    )


def test_a_run_that_stopped_says_why_first() -> None:
    told = results(round_report(1, privacy=SPENT), stopped="budget: round 2 would bring epsilon to 3")
    assert next(iter(privacy_section.lines(told))) == "stopped: budget: round 2 would bring epsilon to 3"


def test_rounds_without_a_sum_are_counted() -> None:
    aborted = replace(SUM, aborted="ended at stage 'mask': <3> of 5")
    rounds = (round_report(1, secure=SUM), round_report(2, secure=aborted))
    (line,) = privacy_section.lines(results(*rounds))
    assert line == "Secure aggregation: a sum and no single update in 1 of 2 rounds"
    page = "".join(privacy_section.section(rounds))
    assert "setup 4 of 5" in page
    assert "&lt;3&gt; of 5" in page
    assert "<3>" not in page


@pytest.mark.parametrize("sampling", ["all", "fixed"])
def test_the_way_of_the_draw_is_named(sampling) -> None:
    line = replace(SPENT, sampling=sampling).line()
    assert ("all devices" if sampling == "all" else "fixed, 20 of 100 devices") in line
