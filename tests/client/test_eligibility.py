"""When a device may train: each rule refuses with a reason, an app's sensors count, what is not known is told."""

import json
import re
import threading
import tomllib
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from agents import until

from fleetdraft.client.agent.eligibility import EligibilityTable, LocalPolicy, Policy, Reading
from fleetdraft.client.agent.sensors import Sensors
from fleetdraft.client.agent.watch import Watch
from fleetdraft.client.device_file import DeviceFile
from fleetdraft.common.cli import main
from fleetdraft.common.errors import ConfigError
from fleetdraft.common.toml import parse

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
        {"hours": ("24:00-06:00",)},
        {"hours": ("22-06",)},
        {"hours": ("22:00+02:00-06:30",)},
        {"hours": ("05:00-06:30-07:00",)},
        {"hours": ("22:00-22:00",)},
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


def test_a_key_that_is_left_out_has_its_default_whatever_else_is_set() -> None:
    table = parse(EligibilityTable, {"fleet": {"battery_percent": 50}, "local": {"charging": True}}, "device.toml")
    assert vars(table.fleet) == {**vars(EligibilityTable().fleet), "battery_percent": 50}
    assert vars(table.local) == {**vars(EligibilityTable().local), "charging": True}
    assert len(table.fleet.refusals(Reading(charging=False, battery_percent=80, idle_s=0, metered=True), NOON)) == 5


def test_the_documented_defaults_are_those_of_the_settings() -> None:
    text = (Path(__file__).parents[2] / "docs/agent.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(\[eligibility\].*?)```", text, re.DOTALL)
    told = parse(EligibilityTable, tomllib.loads(block)["eligibility"], "docs")
    assert (told.fleet, told.local) == (EligibilityTable().fleet, EligibilityTable().local)
    written = tomllib.loads(block)["eligibility"]
    assert {"charging", "idle_s", "unmetered", "free_memory_mb", "free_disk_mb"} <= written["fleet"].keys()
    assert written["local"].keys() == {"free_memory_mb", "free_disk_mb"}


def test_what_init_writes_is_what_counts_without_it(tmp_path: Path) -> None:
    assert main(["agent", "init", str(tmp_path / "d"), "--target", "spm"]) == 0
    assert DeviceFile.open(tmp_path / "d/device.toml").table.eligibility == EligibilityTable()


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


@pytest.mark.parametrize("torn", ['{"charging": tr', "[]", "\x00", '"x"', "[" * 200_000])
def test_a_file_that_cannot_be_read_makes_all_unknown(tmp_path: Path, torn: str) -> None:
    assert sensors(tmp_path, torn) == Reading()


def test_values_of_another_kind_count_as_unknown(tmp_path: Path) -> None:
    reading = sensors(tmp_path, '{"charging": 1, "idle_s": "long", "metered": "no", "free_disk_mb": true}')
    assert (reading.charging, reading.idle_s, reading.metered, reading.free_disk_mb) == (None, None, None, None)
    assert sensors(tmp_path, f'{{"idle_s": 1{"0" * 400}}}').idle_s is None  # more than a float can hold


@pytest.mark.parametrize("error", [OSError, ValueError, KeyError, psutil.Error])
def test_a_sensor_that_fails_is_unknown_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails() -> None:
        raise error("a kernel file that cannot be parsed")

    monkeypatch.setattr(psutil, "sensors_battery", fails)
    reading = sensors(tmp_path, None)
    assert (reading.charging, reading.battery_percent, reading.idle_s) == (None, None, 7)


def test_a_network_that_stops_answering_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program of NetworkManager's name that answers once and hangs from then on, with a child of its own."""
    program, seconds = tmp_path / "busctl", 0.0
    program.write_text(f'#!/bin/sh\nif [ -e {tmp_path}/hangs ]; then sleep 15; else echo "u 4"; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = Sensors(tmp_path, lambda: 7.0, clock=lambda: seconds)
    until(lambda: found.read().metered is False)
    (tmp_path / "hangs").touch()
    seconds = 31.0
    assert found.read().metered is False  # asked again
    seconds = 40.0
    assert found.read().metered is None
    (tmp_path / "hangs").unlink()
    seconds = 62.0
    until(lambda: found.read().metered is False)


# --- the watch ------------------------------------------------------------------------------------------------------


def test_before_its_start_a_watch_lets_nothing_be_trained() -> None:
    assert Watch(EligibilityTable()).local == Watch(EligibilityTable()).fleet == ("the sensors have not been read yet",)


def test_a_watch_tells_once_that_the_answer_has_changed() -> None:
    reading, changes, seconds = FINE, list[bool](), 0.0
    watch = Watch(EligibilityTable(local=LocalPolicy(charging=True), check_s=1.0), lambda: NOON, lambda: seconds)
    watch.start(lambda: reading, changed=lambda: changes.append(not watch.local))
    until(lambda: changes == [True])
    reading = Reading(**{**vars(FINE), "charging": False})
    assert not watch.local  # as it was a moment ago
    seconds = 1.0
    assert watch.local == ("the device is on battery",)
    watch.look()
    until(lambda: changes == [True, False])
    watch.close()
    assert changes == [True, False]


def test_a_watch_outlives_sensors_that_fail() -> None:
    looks, plugged = 0, threading.Event()

    def read() -> Reading:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise RuntimeError("a defect of a sensor")
        return FINE if looks > 2 else Reading(**{**vars(FINE), "charging": False})

    watch = Watch(EligibilityTable(local=LocalPolicy(charging=True)), lambda: NOON)
    watch.start(read, changed=lambda: None if watch.local else plugged.set())
    assert plugged.wait(20)
    watch.close()


def test_who_asks_may_hold_what_a_change_waits_for() -> None:
    """As the learner's thread does, which a change wakes."""
    reading, held, told = FINE, threading.Lock(), threading.Event()
    watch = Watch(EligibilityTable(local=LocalPolicy(charging=True), check_s=0.01), lambda: NOON)

    def changed() -> None:
        with held:
            if watch.local:
                told.set()

    watch.start(lambda: reading, changed)

    def ask() -> None:
        with held:
            until(lambda: bool(watch.local))

    asker = threading.Thread(target=ask, daemon=True)
    reading = Reading(**{**vars(FINE), "charging": False})
    asker.start()
    asker.join(20)
    assert not asker.is_alive()
    assert told.wait(20)
    watch.close()


def test_a_watch_finds_out_by_itself_that_training_may_go_on() -> None:
    reading, plugged = Reading(**{**vars(FINE), "charging": False}), threading.Event()
    watch = Watch(EligibilityTable(local=LocalPolicy(charging=True)), lambda: NOON)
    watch.start(lambda: reading, changed=lambda: None if watch.local else plugged.set())
    reading = FINE
    assert plugged.wait(8)  # it looks every other second
    watch.close()
