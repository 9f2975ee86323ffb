"""What the device's sensors say: power, network, temperature, memory, disk. It judges nothing.

| field                 | how it is known                                                                         |
|-----------------------|-----------------------------------------------------------------------------------------|
| charging, battery     | psutil; a machine without a battery is on mains                                         |
| idle                  | since the agent's newest text ended                                                     |
| metered               | NetworkManager's flag, asked over D-Bus with ``busctl`` every 30 s; else not known      |
| temperature           | psutil: the hottest of all sensors                                                      |
| memory, disk          | psutil: what is available, on the disk of the state                                     |

An app that knows better writes a JSON file, which is read every time: its fields count instead, ``null`` for what it
does not know.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil

from .eligibility import Reading

_MB = 1 << 20
_METERED_FOR_S = 30.0
_ASKED_FOR_S = 5.0
"""Who has not answered by then is not going to."""
_ASK_METERED = (
    *("busctl", "--system", "--timeout=1", "get-property", "org.freedesktop.NetworkManager"),
    *("/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered"),
)
_METERED = {"u 1": True, "u 3": True, "u 2": False, "u 4": False}
"""NMMetered: yes, guessed yes, no, guessed no; 0 is unknown."""


class Sensors:
    """Reads them all.

    Args:
      disk: a path on the disk that is asked about.
      idle_s: since the user last wanted something.
      override: the app's file, if there is one.
      clock: seconds.
    """

    def __init__(
        self,
        disk: Path,
        idle_s: Callable[[], float],
        override: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk, self._idle_s, self._override, self._clock = disk, idle_s, override, clock
        self._metered: bool | None = None
        self._asking: subprocess.Popen[str] | None = None
        self._ask_at = float("-inf")

    def read(self) -> Reading:
        """What they say now; takes a millisecond or two.

        A file of the app that is there and cannot be read makes all unknown.
        """
        told = self._told()
        if told is None:
            return Reading()
        given = frozenset(told)
        return replace(self._own(given), **told)

    def _told(self) -> dict[str, Any] | None:
        """What the app's file says: of each field the right kind, or unknown; None if it says nothing readable."""
        if self._override is None:
            return {}
        try:
            told = json.loads(self._override.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except Exception:  # whatever an app has written, as what is nested too deeply for the parser
            return None
        if not isinstance(told, dict):
            return None
        return {f.name: _checked(f.name, told[f.name]) for f in fields(Reading) if f.name in told}

    def _own(self, given: frozenset[str]) -> Reading:
        """Those that nobody has given; None in place of the others."""
        readers: dict[str, Callable[[], Any]] = {
            "charging": _charging,
            "battery_percent": _battery,
            "idle_s": self._idle_s,
            "metered": self._network,
            "temperature_c": _temperature,
            "free_memory_mb": lambda: psutil.virtual_memory().available / _MB,
            "free_disk_mb": lambda: psutil.disk_usage(str(self._disk)).free / _MB,
        }
        return Reading(**{name: _known(read) for name, read in readers.items() if name not in given})

    def _network(self) -> bool | None:
        """The newest answer; the question is put anew every 30 s, and not waited for. Without an answer, not known."""
        asking, now = self._asking, self._clock()
        if asking is None and now >= self._ask_at:
            self._asking, self._ask_at = _ask_metered(), now + _METERED_FOR_S
        elif asking is not None and asking.poll() is not None:
            said, _ = asking.communicate()
            self._metered, self._asking = _METERED.get(said.strip()), None
        elif asking is not None and now >= self._ask_at - _METERED_FOR_S + _ASKED_FOR_S:
            self._metered, self._asking = None, None
            _end(asking)
        return self._metered


def _checked(name: str, value: Any) -> Any:
    """A value of the app's file, None where it is of another kind."""
    flag = name in ("charging", "metered")
    if flag or isinstance(value, bool):
        return value if flag and isinstance(value, bool) else None
    return _known(lambda: float(value)) if isinstance(value, int | float) else None


def _known(read: Callable[[], Any]) -> Any:
    """What a sensor says; None where that fails, however it does: one sensor ends no agent."""
    try:
        return read()
    except Exception:
        return None


def _charging() -> bool | None:
    battery = psutil.sensors_battery()
    return True if battery is None else battery.power_plugged


def _battery() -> float:
    battery = psutil.sensors_battery()
    return 100.0 if battery is None else float(battery.percent)


def _temperature() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):  # nowhere but on Linux and FreeBSD
        return None
    groups = psutil.sensors_temperatures().values()
    return max((float(each.current) for group in groups for each in group), default=None)


def _ask_metered() -> "subprocess.Popen[str] | None":
    if shutil.which(_ASK_METERED[0]) is None:
        return None
    return subprocess.Popen(_ASK_METERED, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _end(process: "subprocess.Popen[str]") -> None:
    """Kills it; a child of its own may still hold the pipe, which is therefore not read."""
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait(1)
