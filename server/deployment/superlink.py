"""A fleet's SuperLink: Flower's program with TLS, node authentication and a database, from start to stop."""

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from ...common.child import Child, how_it_ended, running, stoppable
from ...common.errors import ConfigError, FleetError
from ...common.files import read_json, write_json
from ...common.flower import environment, program
from .fleet import VARIABLE, Fleet
from .flower import Flower
from .keys import Keys

#: What Flower starts by name, and ``flwr``, which asks the SuperLink.
_PROGRAMS = ("flwr", "flower-superexec", "flwr-serverapp")
_UP_S = 120.0
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Life:
    """One life of a SuperLink: two differ if, and only if, it was started anew between them."""

    pid: int
    started: float
    """Seconds since 1970."""
    in_order: bool
    """Whether it has closed the runs of an earlier one, and knows who may join."""

    @classmethod
    def last(cls, fleet: Fleet) -> "Life | None":
        """Of the SuperLink that runs in a folder, or ran there last."""
        path = fleet.path("superlink.json")
        return cls(**read_json(path)) if path.exists() else None

    def keep(self, fleet: Fleet) -> None:
        """Writes it down for ``last``; who follows a run learns of a new life from it."""
        write_json(fleet.path("superlink.json"), asdict(self))


def in_order(pid: int) -> bool:
    """Whether the SuperLink of this process number, in the fleet that the environment names, is in order."""
    life = Life.last(Fleet.open(Path(os.environ[VARIABLE])))
    return life is not None and life.pid == pid and life.in_order


def serve(fleet: Fleet, ready: Callable[[str], None]) -> None:
    """Runs the SuperLink until it is told to stop.

    Guarantees:
      - Interrupt and termination end it in order, and with it every process that it started.
      - It does not outlive this process, however this one ends (on Linux).
      - Runs that were under way when an earlier SuperLink was killed are closed: their ServerApp died with it.
      - Who may join is what the folder ``keys/`` says.

    Args:
      ready: told, once, in a line.

    Raises:
      UserError: Flower or one of its programs, or a file of the settings, is missing; or the port is taken.
      FleetError: it ended by itself.
    """
    for name in _PROGRAMS:
        program(name, "fleetdraft server", "server")
    registry = fleet.registry()
    command = _command(fleet)
    _check_port(fleet)
    variables = environment(fleet.path("flower"), **{VARIABLE: str(fleet.folder)})
    os.umask(0o077)  # Flower's database holds every update
    with (
        fleet.path("superlink.log").open("ab") as log,
        stoppable() as stopped,
        running(command, variables, log) as child,
    ):
        life = Life(pid=child.pid, started=time.time(), in_order=False)
        life.keep(fleet)
        if _until_up(fleet, child, stopped):
            joined = _put_in_order(fleet)
            replace(life, in_order=True).keep(fleet)
            head, where = registry.lineage().number, fleet.table.superlink.local
            ready(f"SuperLink at {where}: {joined} devices may join, release {head}; Ctrl-C stops it")
            _tell_systemd()
        while not stopped():
            _check_alive(fleet, child)
            time.sleep(_POLL_S)


def _command(fleet: Fleet) -> list[str]:
    table = fleet.table.superlink
    words = [sys.executable, "-m", f"{__package__}.guarded_superlink", "--enable-supernode-auth"]
    words += ["--host", table.host, "--port", str(table.port), "--database", str(fleet.path("superlink.db"))]
    files = {"--ssl-ca-certfile": table.authority, "--ssl-certfile": table.certificate, "--ssl-keyfile": table.key}
    for option, file in files.items():
        path = fleet.path(file)
        if not path.is_file():
            raise ConfigError(
                f"{path} is missing; make certificates with: fleetdraft server certificate {fleet.folder}"
            )
        words += [option, str(path)]
    return words


def _check_port(fleet: Fleet) -> None:
    """A clear word before Flower's traceback."""
    table = fleet.table.superlink
    family = socket.AF_INET6 if ip_address(table.host).version == 6 else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((table.host, table.port))
        except OSError as error:
            if Flower(fleet).answers():
                raise ConfigError(f"the SuperLink of {fleet.folder} runs already, at {table.local}") from error
            raise ConfigError(
                f"cannot listen on {table.host}:{table.port}: {error.strerror}; "
                f"stop what is there, or set another port in {fleet.folder / 'fleet.toml'}"
            ) from error


def _until_up(fleet: Fleet, child: Child, stopped: Callable[[], bool]) -> bool:
    """Whether it came up before it was told to stop."""
    flower, deadline = Flower(fleet), time.monotonic() + _UP_S
    while not stopped():
        _check_alive(fleet, child)
        if flower.answers():
            return True
        if time.monotonic() > deadline:
            raise FleetError(f"the SuperLink did not come up within {_UP_S:g} s; see {fleet.path('superlink.log')}")
        time.sleep(_POLL_S)
    return False


def _put_in_order(fleet: Fleet) -> int:
    """Closes what a dead SuperLink left open, and says who may join; returns how many."""
    flower, keys = Flower(fleet), Keys(fleet)
    for run in flower.unfinished():
        if run.status != "pending":
            flower.close(run.number)
    keys.tell(flower)
    return len(keys.listed())


def _tell_systemd() -> None:
    """Says that it is ready, where a service manager wants to know (sd_notify(3), ``Type=notify``)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.connect("\0" + address[1:] if address.startswith("@") else address)
            told.send(b"READY=1")


def _check_alive(fleet: Fleet, child: Child) -> None:
    if (code := child.poll()) is not None:
        raise FleetError(f"the SuperLink {how_it_ended(code)}; see {fleet.path('superlink.log')}")
