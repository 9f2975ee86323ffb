"""A SuperNode: Flower's program, started and watched. It does not know on whose behalf."""

import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .child import Child, Relay, how_it_ended, running, stoppable
from .errors import ConfigError, FleetError
from .flower import environment, program

#: What Flower 1.41 says as it ends because the SuperLink does not let it in; its return code is that of all errors.
_REFUSED = "Failed to activate SuperNode"
#: The SuperNode, and what it starts by name.
_PROGRAMS = ("flower-supernode", "flower-superexec", "flwr-clientapp")
_AGAIN_S = 5.0
_POLL_S = 0.2
_REACH_S = 3.0


@dataclass(frozen=True, kw_only=True)
class SuperNode:
    """Where a SuperNode joins, as whom, and what its ClientApp is told."""

    superlink: str
    """host:port"""
    authority: Path
    """Certificate of the authority that signed the SuperLink's."""
    key: Path
    """Its private key; the operator has the public one."""
    setting: str
    """Name of the one setting of its node configuration."""
    path: Path
    """… and the path that it holds."""
    home: Path
    """Flower's folder for its own settings."""
    asked_by: str
    """The command that needs it, and the extra that installs Flower for it: for messages."""
    extra: str

    def command(self) -> list[str]:
        """The command line of Flower's SuperNode.

        Raises:
          ConfigError: the path is one that Flower cannot take, or the authority is none.
          UserError: Flower is not installed, or one of its programs is missing.
        """
        check_authority(self.authority)
        if '"' in str(self.path):
            raise ConfigError(f"{self.path} has a quotation mark in it, which Flower cannot take; rename the folder")
        supernode, *_ = [program(name, self.asked_by, self.extra) for name in _PROGRAMS]
        return [
            supernode,
            *("--superlink", self.superlink),
            *("--root-certificates", str(self.authority)),
            *("--auth-supernode-private-key", str(self.key)),
            *("--node-config", f'{self.setting}="{self.path}"'),
            # Where its own processes reach it; each SuperNode of a machine needs a port of its own.
            *("--host", "127.0.0.1", "--port", str(_free_port())),
        ]


def check_address(address: str) -> None:
    """Returns if an address has a host and a port.

    Raises:
      ConfigError: it has not.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 1 <= int(port) <= 65535 and "/" not in host):
        raise ConfigError(f'address is "{address}", expected host:port as in "fleet.example.org:9443"')


def check_authority(file: Path) -> None:
    """Returns if a file holds certificates; with another one Flower 1.41 neither joins nor ends.

    Raises:
      ConfigError: it does not, or there is none.
    """
    if not file.is_file():
        raise ConfigError(f"no file {file}, expected the tls/ca.pem of the fleet's operator")
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:  # an SSLError is one
        raise ConfigError(f"{file} is no certificate, expected the tls/ca.pem of the fleet's operator") from error


def join(node: SuperNode, wait_s: float, tell: Callable[[str], None]) -> None:
    """Takes part in the fleet until told to stop (interrupt, termination); waits for a SuperLink that is away.

    Args:
      wait_s: how long to go on trying once the SuperLink has not let it in. One that was cut off without a
        word counts as connected until it has missed two heartbeats, a minute; Flower 1.41 refuses it that long.
      tell: told, in a line, what a person should know.

    Raises:
      FleetError: the SuperLink does not let it in, or the SuperNode ended by itself.
    """
    if not _reachable(node.superlink):
        tell(f"cannot reach {node.superlink} yet; trying until it answers, or Ctrl-C")
    # Unbuffered, as its helpers would otherwise keep what they print to a pipe until they end.
    variables = environment(node.home, PYTHONUNBUFFERED="1")
    first_refusal: float | None = None
    with stoppable() as stopped:
        while not stopped():
            with running(node.command(), variables, subprocess.PIPE) as child:
                relay = Relay(child, _REFUSED)
                code = _until_end(child, stopped)
            if code is None:
                return
            if not relay.heard(_REFUSED):
                raise FleetError(f"the SuperNode {how_it_ended(code)}; what it said stands above")
            now = time.monotonic()
            first_refusal = now if first_refusal is None else first_refusal
            if now - first_refusal >= wait_s:
                raise FleetError(
                    f"the SuperLink at {node.superlink} does not let this device in; "
                    "what it said stands above; the operator needs its public key: fleetdraft server keys add"
                )
            tell(f"not let in yet; trying again for {wait_s - (now - first_refusal):.0f} s")
            _pause(stopped)


def _reachable(address: str) -> bool:
    """Whether something listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)), _REACH_S).close()
    except OSError:
        return False
    return True


def _until_end(child: Child, stopped: Callable[[], bool]) -> int | None:
    """The return code; None when we are told to stop."""
    while not stopped():
        if (code := child.poll()) is not None:
            return code
        time.sleep(_POLL_S)
    return None


def _pause(stopped: Callable[[], bool]) -> None:
    until = time.monotonic() + _AGAIN_S
    while time.monotonic() < until and not stopped():
        time.sleep(_POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
