"""What the operator asks of a running SuperLink, through Flower's own command line. It knows no rounds."""

import contextlib
import json
import re
import ssl
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import FleetError
from ...common.files import write_atomic
from ...common.flower import environment, program
from ...common.records import one_line
from .fleet import Fleet
from .guarded_superlink import HEADER

#: The Flower app of a fleet: settings only.
APP = Path(__file__).with_name("app")

_CONNECTION = "fleet"
_CALL_TIMEOUT_S = 120.0
_HEALTH_TIMEOUT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run as the SuperLink tells of it."""

    number: int
    status: str
    """``pending``, ``starting``, ``running``, or ``finished:`` with ``completed``, ``failed`` or ``stopped``."""
    details: str

    @property
    def finished(self) -> bool:
        return self.status.startswith("finished")


@dataclass(frozen=True, kw_only=True)
class FlowerNode:
    """A SuperNode as the SuperLink tells of it."""

    number: int
    status: str
    """``registered``, ``online``, ``offline``."""


class Flower:
    """The SuperLink of a fleet, which has to run on this machine.

    Raises:
      FleetError: from every method but ``answers``: it cannot be reached, or refuses.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._home = fleet.path("flower")

    def answers(self) -> bool:
        """Whether it is there: listens, holds the certificate, is guarded and well."""
        table = self._fleet.table.superlink
        with contextlib.suppress(OSError):  # refused, not (yet) TLS, or no answer in time
            context = ssl.create_default_context(cafile=str(self._fleet.path(table.authority)))
            url = f"https://{table.local}/health"
            with urllib.request.urlopen(url, timeout=_HEALTH_TIMEOUT_S, context=context) as reply:
                return reply.status == 200 and HEADER in reply.headers
        return False

    def submit(self) -> int:
        """Starts a run of the app; returns its number."""
        return int(self._call("run", str(APP))["run-id"])

    def run(self, number: int) -> FlowerRun:
        """A run that was submitted."""
        return _run(self._call("list", "--run-id", str(number))["runs"][0])

    def unfinished(self) -> list[FlowerRun]:
        """Runs that wait or are at work."""
        runs = [_run(each) for each in self._call("list")["runs"]]
        return [run for run in runs if not run.finished]

    def close(self, number: int) -> None:
        """Ends a run, unless it has ended."""
        try:
            self._call("stop", str(number))
        except FleetError:
            if not self.run(number).finished:
                raise

    def nodes(self) -> list[FlowerNode]:
        """The SuperNodes that may join, whether they are there or not."""
        nodes = self._call("supernode", "list")["nodes"]
        return [
            FlowerNode(number=int(n["node-id"]), status=n["status"]) for n in nodes if n["status"] != "unregistered"
        ]

    def admit(self, key: Path, name: str) -> int:
        """Lets the owner of a public key join; returns its node number."""
        return int(self._call("supernode", "register", str(key), name=name)["node-id"])

    def dismiss(self, number: int) -> None:
        """Lets a node join no more."""
        self._call("supernode", "unregister", str(number))

    def _call(self, *words: str, name: str = "") -> Any:
        """One command of ``flwr``; its answer, read from JSON."""
        command = [program("flwr", "fleetdraft server", "server"), *words]
        table = self._fleet.table.superlink
        _write_connection(self._home, table.local, self._fleet.path(table.authority))
        command += [_CONNECTION, "--format", "json", *(["--name", name] if name else [])]
        try:
            done = subprocess.run(
                command,
                env=environment(self._home),
                cwd=self._home,
                capture_output=True,
                text=True,
                timeout=_CALL_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FleetError(f"the SuperLink at {table.local} did not answer 'flwr {words[0]}' in time") from error
        return _answer(done, words, table.local)


def _write_connection(home: Path, address: str, authority: Path) -> None:
    """Flower's settings, with the fleet's SuperLink as the only connection."""
    lines = (
        "[superlink]",
        f'default = "{_CONNECTION}"',
        f"[superlink.{_CONNECTION}]",
        f'address = "{address}"',
        f"root-certificates = {json.dumps(str(authority))}",
        "",
    )
    write_atomic(home / "config.toml", "\n".join(lines).encode())


def _answer(done: "subprocess.CompletedProcess[str]", words: Sequence[str], address: str) -> Any:
    try:
        told = json.loads(done.stdout)
        if told.get("success"):
            return told
        reason = told.get("error-message", told)
    except ValueError:
        reason = done.stderr or done.stdout or f"exit code {done.returncode}"
    reason = re.sub(r"^Using SuperLink.*$", "", str(reason), flags=re.MULTILINE)
    raise FleetError(f"'flwr {' '.join(words[:2])}' at {address}: {one_line(reason)}")


def _run(told: dict[str, Any]) -> FlowerRun:
    return FlowerRun(number=int(told["run-id"]), status=told["status"], details=told["status-details"])
