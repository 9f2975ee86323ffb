"""The folder of a gateway: what the operator set, and where everything lies. It starts nothing.

gateway.toml        the operator's settings
tls/                authority, certificate and key that devices see
ca.pem              what the SuperLink's certificate is checked with
node.key, node.pub  the gateway's key pair as a SuperNode; the fleet's operator gets node.pub
gateway.db          tokens (as hashes), the newest cohorts and who was given which task
requests/           the request of Flower that is being answered
sums/               the running sum of the cohort
spool/              uploads on their way in
promoted.*          the release that devices draft with
local.sock          where Flower's ClientApp asks, for this user only
gateway.jsonl       what came of each cohort, an object a line
status.json, metrics/gateway.prom   figures for people and for Prometheus
flower/             Flower's settings (FLWR_HOME)
"""

import ssl
import stat
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from ...common.errors import ConfigError
from ...common.supernode import check_address
from ...common.toml import parse, read_toml
from .cohort import CohortTable
from .limits import LimitsTable
from .pace import PaceTable
from .tokens import check_name

#: What the kernel takes as the path of a Unix socket.
_MAX_SOCKET = 100


@dataclass(frozen=True, kw_only=True)
class DoorTable:
    """``[door]``: where devices find the gateway, and what it shows to prove who it is."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` is every one of this machine."""
    port: int = 9444
    """0: any that is free."""
    tls: bool = True
    """False is for tests on this machine: tokens and updates are then sent as they are."""
    certificate: Path = Path("tls/server.pem")
    key: Path = Path("tls/server.key")
    socket: Path = Path("local.sock")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, expected 0 to 65535")
        try:
            address = ip_address(self.host)
        except ValueError as error:
            raise ConfigError(f'host is "{self.host}", expected an IP address of this machine, or 0.0.0.0') from error
        if not self.tls and not address.is_loopback:
            raise ConfigError(f'tls is false and host "{self.host}", expected TLS on an address that others can reach')


@dataclass(frozen=True, kw_only=True)
class ServerTable:
    """``[superlink]``: where the fleet's SuperLink is, and how each knows the other."""

    address: str
    """host:port"""
    authority: Path = Path("ca.pem")
    key: Path = Path("node.key")

    def __post_init__(self) -> None:
        check_address(self.address)


@dataclass(frozen=True, kw_only=True)
class GatewayTable:
    """The whole of ``gateway.toml``."""

    name: str
    """In the fleet; ``gateways`` of fleet.toml has it as well."""
    superlink: ServerTable
    door: DoorTable = field(default_factory=DoorTable)
    cohort: CohortTable = field(default_factory=CohortTable)
    pace: PaceTable = field(default_factory=PaceTable)
    limits: LimitsTable = field(default_factory=LimitsTable)
    registry: Path | None = None
    """The fleet's registry, if it is on this machine: devices are then told at once what is promoted."""

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class GatewayFolder:
    """A gateway's folder with its settings; relative paths in them start at the folder."""

    folder: Path
    table: GatewayTable

    @classmethod
    def open(cls, folder: Path) -> "GatewayFolder":
        """Reads ``gateway.toml``.

        Raises:
          ConfigError: there is none, or a setting is unknown, missing or wrong.
        """
        path = folder / "gateway.toml"
        if not path.is_file():
            raise ConfigError(
                f"{folder} is no folder of a gateway (no gateway.toml in it); make one: "
                f"fleetdraft gateway init {folder} --name NAME --server HOST:PORT --authority ca.pem"
            )
        return cls(folder=folder.absolute(), table=parse(GatewayTable, read_toml(path, "settings"), str(path)))

    def path(self, part: Path | str) -> Path:
        """A path of the settings, or of the folder's own parts, made absolute."""
        return self.folder / part

    @property
    def socket(self) -> Path:
        """Where Flower's ClientApp asks.

        Raises:
          ConfigError: the kernel takes no path of that length.
        """
        path = self.path(self.table.door.socket)
        if len(str(path)) > _MAX_SOCKET:
            raise ConfigError(
                f"{path} has {len(str(path))} characters, expected at most {_MAX_SOCKET}; "
                'set a shorter one: socket = "…", in [door] of gateway.toml'
            )
        return path

    def certificate(self) -> tuple[bytes, bytes]:
        """(private key, certificate chain), as PEM.

        Raises:
          ConfigError: one is missing, others may read the key, or they are no pair.
        """
        door = self.table.door
        key, certificate = self.path(door.key), self.path(door.certificate)
        for path in (key, certificate):
            if not path.is_file():
                raise ConfigError(f"{path} is missing; gateway.toml names it in [door]")
        check_private(key)
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            raise ConfigError(
                f"{certificate} and {key} are no certificate and its key, expected both as PEM"
            ) from error
        return key.read_bytes(), certificate.read_bytes()


def check_private(key: Path) -> None:
    """Returns if only its owner can read a key.

    Raises:
      ConfigError: others can.
    """
    if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{key} can be read by others, expected by its owner only; run: chmod 600 {key}")
