"""When a device may train: each rule refuses with a reason, an app's sensors count, what is not known is told."""

import json
import threading
from datetime import datetime
from pathlib import Path

import pytest

from fleetdraft.client.agent.eligibility import EligibilityTable, Policy, Reading
from fleetdraft.client.agent.sensors import Sensors
from fleetdraft.client.agent.watch import Watch
from fleetdraft.common.errors import ConfigError

NOON = datetime(2026, 3, 1, 12, 0)
FINE = Reading(
    charging=True,
    battery_percent=80,
    idle_s=600,
    metered=False,
    temperature_c=40,
    free_memory_mb=4000,
    free_disk_mb=9000,
)
STRICT = Policy(
    charging=True,
    battery_percent=50,
    idle_s=60,
    unmetered=True,
    temperature_c=60,
    free_memory_mb=500,
    free_disk_mb=100,
    hours=("11:00-13:00",),
)


def test_a_device_that_meets_every_rule_may_train() -> None:
    assert STRICT.refusals(FINE, NOON) == ()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("charging", False, "the device is on battery"),
        ("battery_percent", 49, "the battery is 49 %, expected at least 50"),
        ("idle_s", 3, "the idle time is 3 s, expected at least 60"),
        ("metered", True, "the network is metered"),
        ("temperature_c", 71, "the temperature is 71 C, expected at most 60"),
        ("free_memory_mb", 100, "the free memory is 100 MB, expected at least 500"),
        ("free_disk_mb", 99, "the free disk is 99 MB, expected at least 100"),
    ],
)
def test_each_rule_refuses_with_its_reason_and_what_is_not_known_as_the_policy_says(field, value, why) -> None:
    reading = {**vars(FINE), field: value}
    assert STRICT.refusals(Reading(**reading), NOON) == (why,)
    unknown = Reading(**{**reading, field: None})
    (refusal,) = STRICT.refusals(unknown, NOON)
    assert "is not known" in refusal
    assert Policy(**{**vars(STRICT), "unknown": "allow"}).refusals(unknown, NOON) == ()


def test_a_policy_that_asks_nothing_never_refuses() -> None:
    assert Policy().refusals(Reading(), NOON) == ()


@pytest.mark.parametrize(
    ("hours", "hour", "allowed"),
    [
        ("22:00-06:30", 23, True),
        ("22:00-06:30", 6, True),
        ("22:00-06:30", 7, False),
        ("22:00-06:30", 12, False),
        ("11:00-12:00", 12, False),
        ("12:00-13:00", 12, True),
    ],
)
def test_hours_may_go_past_midnight(hours: str, hour: int, allowed: bool) -> None:
    refusals = Policy(hours=(hours,)).refusals(Reading(), NOON.replace(hour=hour))
    assert bool(refusals) != allowed


@pytest.mark.parametrize(
    "wrong",
    [
        {"battery_percent": 101},
        {"idle_s": -1},
        {"unknown": "maybe"},
        {"hours": ("soon",)},
        {"temperature_c": float("nan")},
        {"free_disk_mb": float("inf")},
    ],
)
def test_a_wrong_policy_is_refused_with_its_field(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Policy(**wrong)  # type: ignore[arg-type]


def test_the_defaults_ask_for_mains_idleness_and_a_free_network_for_the_fleet_alone() -> None:
    table = EligibilityTable()
    assert len(table.fleet.refusals(Reading(**{**vars(FINE), "charging": False, "metered": True}), NOON)) == 2
    assert table.local.refusals(Reading(**{**vars(FINE), "charging": False, "idle_s": 0}), NOON) == ()


# --- sensors --------------------------------------------------------------------------------------------------------


def sensors(tmp_path: Path, content: str | None) -> Reading:
    if content is not None:
        (tmp_path / "sensors.json").write_text(content)
    return Sensors(tmp_path, lambda: 7.0, tmp_path / "sensors.json").read()


def test_memory_and_disk_are_read_and_idleness_is_the_agents(tmp_path: Path) -> None:
    reading = sensors(tmp_path, None)
    assert reading.idle_s == 7
    assert reading.free_memory_mb is not None
    assert reading.free_memory_mb > 1
    assert reading.free_disk_mb is not None
    assert reading.free_disk_mb > 1


def test_what_an_app_knows_counts_and_the_rest_is_read(tmp_path: Path) -> None:
    told = {"charging": False, "idle_s": 99, "metered": None, "temperature_c": 30.5, "unheard_of": 1}
    reading = sensors(tmp_path, json.dumps(told))
    assert (reading.charging, reading.idle_s, reading.metered, reading.temperature_c) == (False, 99, None, 30.5)
    assert reading.free_memory_mb is not None


@pytest.mark.parametrize("torn", ['{"charging": tr', "[]", "\x00", '"x"'])
def test_a_file_that_cannot_be_read_makes_all_unknown(tmp_path: Path, torn: str) -> None:
    assert sensors(tmp_path, torn) == Reading()


def test_values_of_another_kind_count_as_unknown(tmp_path: Path) -> None:
    reading = sensors(tmp_path, '{"charging": 1, "idle_s": "long", "metered": "no", "free_disk_mb": true}')
    assert (reading.charging, reading.idle_s, reading.metered, reading.free_disk_mb) == (None, None, None, None)


# --- the watch ------------------------------------------------------------------------------------------------------


def test_before_its_start_a_watch_lets_nothing_be_trained() -> None:
    assert Watch(EligibilityTable()).local == Watch(EligibilityTable()).fleet == ("the sensors have not been read yet",)


def test_a_watch_tells_once_that_the_answer_has_changed() -> None:
    reading, changes, seconds = FINE, list[bool](), 0.0
    watch = Watch(EligibilityTable(local=Policy(charging=True), check_s=1.0), lambda: NOON, lambda: seconds)
    watch.start(lambda: reading, changed=lambda: changes.append(not watch.local))
    reading = Reading(**{**vars(FINE), "charging": False})
    assert not watch.local  # as it was a moment ago
    seconds = 1.0
    assert watch.local == ("the device is on battery",)
    watch.look()
    watch.close()
    assert changes == [True, False]


def test_a_watch_finds_out_by_itself_that_training_may_go_on() -> None:
    reading, plugged = Reading(**{**vars(FINE), "charging": False}), threading.Event()
    watch = Watch(EligibilityTable(local=Policy(charging=True)), lambda: NOON)
    watch.start(lambda: reading, changed=lambda: None if watch.local else plugged.set())
    reading = FINE
    assert plugged.wait(20)
    watch.close()
