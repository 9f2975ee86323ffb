"""Whether a device may train now: a policy held against what the sensors say. It reads no sensor and no clock.

A device that trains for the fleet spends its user's battery and data; learning for the device alone spends battery
only. So there are two policies, ``[eligibility.fleet]`` and ``[eligibility.local]``.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path

from ...common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the sensors say; None where a sensor is missing or does not know."""

    charging: bool | None = None
    """On mains; a machine without a battery is."""
    battery_percent: float | None = None
    idle_s: float | None = None
    """Since the user last wanted something."""
    metered: bool | None = None
    """Whether somebody pays for the network by volume."""
    temperature_c: float | None = None
    """Of the hottest sensor."""
    free_memory_mb: float | None = None
    free_disk_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When training may go on; what is not set is not asked.

    Raises:
      ConfigError: a value out of range.
    """

    charging: bool = False
    """Only on mains."""
    battery_percent: float = 0.0
    """At least."""
    idle_s: float = 0.0
    """Only so long after the newest text."""
    unmetered: bool = False
    """Only on a network that nobody pays for by volume."""
    temperature_c: float = math.inf
    """At most."""
    free_memory_mb: float = 0.0
    """At least."""
    free_disk_mb: float = 0.0
    """At least."""
    hours: tuple[str, ...] = ()
    """Of the local day, as in "22:00-06:30"; any where empty."""
    unknown: str = "refuse"
    """``refuse`` or ``allow``: what a sensor that is asked and does not know counts as."""

    def __post_init__(self) -> None:
        for name in ("battery_percent", "idle_s", "free_memory_mb", "free_disk_mb"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a finite number >= 0")
        if self.battery_percent > 100:
            raise ConfigError(f"battery_percent is {self.battery_percent}, expected 0 to 100")
        if math.isnan(self.temperature_c):
            raise ConfigError("temperature_c is nan, expected degrees Celsius")
        if self.unknown not in ("refuse", "allow"):
            raise ConfigError(f"unknown is {self.unknown!r}, expected refuse or allow")
        for window in self.hours:
            _window(window)

    def refusals(self, reading: Reading, now: datetime) -> tuple[str, ...]:
        """Why not, a line each; none where training may go on.

        Args:
          now: local time.
        """
        found = [line for name, question in _QUESTIONS.items() if (line := self._refusal(name, question, reading))]
        if self.hours and not any(_within(window, now.time()) for window in self.hours):
            found.append(f"it is {now:%H:%M}, outside of {', '.join(self.hours)}")
        return tuple(found)

    def _refusal(self, name: str, question: "_Question", reading: Reading) -> str:
        wanted, found = getattr(self, name), getattr(reading, question.field or name)
        if wanted == question.off:
            return ""
        if found is None:
            return "" if self.unknown == "allow" else f"{question.what} is not known, and unknown is 'refuse'"
        return question.refusal(wanted, found)


@dataclass(frozen=True, kw_only=True)
class FleetPolicy(Policy):
    """``[eligibility.fleet]``: for rounds of the fleet. A key that is left out has the value here."""

    charging: bool = True
    idle_s: float = 60.0
    unmetered: bool = True
    free_memory_mb: float = 256.0
    free_disk_mb: float = 64.0


@dataclass(frozen=True, kw_only=True)
class LocalPolicy(Policy):
    """``[eligibility.local]``: for learning that stays on the device. A key that is left out has the value here."""

    free_memory_mb: float = 128.0
    free_disk_mb: float = 16.0


@dataclass(frozen=True, kw_only=True)
class EligibilityTable:
    """``[eligibility]``: the two policies, and the file of an app that knows better than the sensors."""

    fleet: FleetPolicy = field(default_factory=FleetPolicy)
    local: LocalPolicy = field(default_factory=LocalPolicy)
    sensors: Path | None = None
    """A JSON object with some of ``Reading``'s fields, which count instead of what the sensors say."""
    check_s: float = 0.2
    """Seconds for which what the sensors say holds; they are asked again before the next step of training."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.check_s <= 60:
            raise ConfigError(f"check_s is {self.check_s}, expected 0.01 to 60")


def _charging(wanted: bool, found: bool) -> str:
    return "" if found or not wanted else "the device is on battery"


def _unmetered(wanted: bool, found: bool) -> str:
    return "the network is metered" if found and wanted else ""


def _at_least(what: str, unit: str) -> Callable[[float, float], str]:
    return lambda least, found: "" if found >= least else f"{what} is {found:.0f} {unit}, expected at least {least:g}"


def _at_most(what: str, unit: str) -> Callable[[float, float], str]:
    return lambda most, found: "" if found <= most else f"{what} is {found:.0f} {unit}, expected at most {most:g}"


@dataclass(frozen=True)
class _Question:
    """What a setting asks of a sensor.

    off: the value by which it asks nothing. refusal: of wanted and found. field: of the reading, where it is another.
    """

    what: str
    off: float
    refusal: Callable[..., str]
    field: str = ""


_QUESTIONS = {
    "charging": _Question("whether it is charging", False, _charging),
    "battery_percent": _Question("the battery's level", 0.0, _at_least("the battery", "%")),
    "idle_s": _Question("since when it is idle", 0.0, _at_least("the idle time", "s")),
    "unmetered": _Question("whether the network is metered", False, _unmetered, "metered"),
    "temperature_c": _Question("the temperature", math.inf, _at_most("the temperature", "C")),
    "free_memory_mb": _Question("the free memory", 0.0, _at_least("the free memory", "MB")),
    "free_disk_mb": _Question("the free disk", 0.0, _at_least("the free disk", "MB")),
}


_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_HOURS = re.compile(f"{_TIME}-{_TIME}")


def _window(text: str) -> tuple[time, time]:
    """Beginning and end of "22:00-06:30".

    Raises:
      ConfigError: something else.
    """
    if not _HOURS.fullmatch(text):
        raise ConfigError(f"hours has {text!r}, expected a time of day to another as in '22:00-06:30'")
    first, last = map(time.fromisoformat, text.split("-"))
    if first == last:
        raise ConfigError(f"hours has {text!r}, expected two different times; leave hours out for the whole day")
    return first, last


def _within(window: str, now: time) -> bool:
    """Whether a time of day lies in a window, which may go past midnight."""
    first, last = _window(window)
    return first <= now < last if first <= last else now >= first or now < last
