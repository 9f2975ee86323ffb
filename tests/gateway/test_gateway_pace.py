"""When phones come back, and how much each may take: numbers that a person can check."""

import numpy as np
import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.server.gateway.limits import Limits, LimitsTable, _Bucket
from fleetdraft.server.gateway.pace import PaceTable
from fleetdraft.server.gateway.refusal import Refusal

PACE = PaceTable(fill_s=60, least_s=5, most_s=3600)


@pytest.mark.parametrize(("known", "after_s"), [(0, 5), (10, 5), (130, 60), (1300, 600), (7800, 3600), (10**6, 3600)])
def test_as_many_devices_come_within_the_time_as_a_cohort_needs(known: int, after_s: float) -> None:
    assert PACE.come_back_s(known, needed=130, chance=0.5) == pytest.approx(after_s)


def test_the_rate_of_check_ins_does_not_grow_with_the_fleet() -> None:
    rng = np.random.default_rng(0)
    for known in (1000, 4000):
        waits = [PACE.come_back_s(known, 100, rng.random()) for _ in range(10_000)]
        assert known / np.mean(waits) == pytest.approx(100 / 60, rel=0.02)


def test_devices_that_came_together_part() -> None:
    waits = [PACE.come_back_s(1300, 130, chance) for chance in (0.0, 0.999)]
    assert waits == pytest.approx([300, 899.4])


@pytest.mark.parametrize("wrong", [{"least_s": 0}, {"least_s": 9, "most_s": 8}, {"fill_s": 0}, {"fill_s": 1e9}])
def test_a_pace_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PaceTable(**wrong)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_calls_come_back_evenly() -> None:
    clock = Clock()
    limits = Limits(LimitsTable(calls_per_minute=6), clock)
    for _ in range(6):
        limits.call("ann")
    with pytest.raises(Refusal, match="6 calls a minute"):
        limits.call("ann")
    clock.now = 9.9
    with pytest.raises(Refusal):
        limits.call("ann")
    clock.now = 10.0
    limits.call("ann")
    limits.call("bob")


def test_idle_devices_are_forgotten() -> None:
    clock = Clock()
    limits = Limits(LimitsTable(), clock)
    for device in range(20_000):
        clock.now += 0.1
        limits.call(f"d{device}")
    assert len(limits._calls) < 11_000


def test_a_call_takes_no_longer_with_many_busy_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked at seldom, not at every call."""
    looks, real = [0], _Bucket.is_full

    def is_full(bucket: _Bucket, now: float) -> bool:
        looks[0] += 1
        return real(bucket, now)

    monkeypatch.setattr(_Bucket, "is_full", is_full)
    limits = Limits(LimitsTable(), Clock())  # in no time, so that none is idle
    for device in range(30_000):
        limits.call(f"d{device}")
    assert len(limits._calls) == 30_000
    assert looks[0] <= 2 * 30_000
