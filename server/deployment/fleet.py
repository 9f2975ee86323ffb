"""The folder of a fleet: what the operator set, and where everything lies. It starts nothing.

fleet.toml          the operator's settings
tls/                authority, certificate and key of the SuperLink
keys/NAME.pub       devices that may join
registry/           the releases
superlink.db        Flower's own state; a restarted SuperLink reads it
superlink.json      the SuperLink that runs, or ran last
superlink.log       what Flower logs
rounds/NNNN.json    a report per round
fleet.jsonl         what happened, an object a line
metrics/fleetdraft.prom   for the textfile collector of Prometheus' node exporter
flower/             Flower's settings and installed apps (FLWR_HOME)
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from ...common.bundle import BundleManifest
from ...common.embedded import EMBEDDED, located
from ...common.errors import ConfigError, FingerprintError, FleetError
from ...common.lora import LoraAdapter
from ...common.toml import parse, read_toml
from ..config import ServerConfig
from ..registry.registry import Registry

#: Names the folder of the fleet to the ServerApp, which Flower starts.
VARIABLE = "FLEETDRAFT_FLEET"

_LOCK_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class SuperLinkTable:
    """``[superlink]``: where it listens, and what it shows to prove who it is."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` is every one of this machine."""
    port: int = 9443
    authority: Path = Path("tls/ca.pem")
    """What devices check the certificate with."""
    certificate: Path = Path("tls/server.pem")
    key: Path = Path("tls/server.key")

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, expected 1 to 65535")
        try:
            ip_address(self.host)
        except ValueError as error:
            raise ConfigError(f'host is "{self.host}", expected an IP address of this machine, or 0.0.0.0') from error

    @property
    def local(self) -> str:
        """host:port for programs on this machine."""
        address = ip_address(self.host)
        host = ("127.0.0.1" if address.version == 4 else "::1") if address.is_unspecified else self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class FleetTable:
    """The whole of ``fleet.toml``."""

    federation: ServerConfig
    bundle: Path = EMBEDDED
    base: str
    """Fingerprint of the bundle's drafter; releases fit no other."""
    registry: Path = Path("registry")
    superlink: SuperLinkTable = field(default_factory=SuperLinkTable)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A fleet's folder with its settings; relative paths in them start at the folder."""

    folder: Path
    table: FleetTable

    @classmethod
    def open(cls, folder: Path) -> "Fleet":
        """Reads ``fleet.toml``.

        Raises:
          ConfigError: there is none, or a setting is unknown, missing or wrong.
        """
        path = folder / "fleet.toml"
        if not path.is_file():
            raise ConfigError(
                f"{folder} is no folder of a fleet (no fleet.toml in it); make one: fleetdraft server init"
            )
        return cls(folder=folder.absolute(), table=parse(FleetTable, read_toml(path, "settings"), str(path)))

    def manifest(self) -> BundleManifest:
        """The bundle's.

        Raises:
          FingerprintError: the bundle holds another drafter than the one this fleet began with.
        """
        manifest = BundleManifest.read(self.bundle)
        if manifest.base != self.table.base:
            raise FingerprintError(
                f"{self.bundle} holds the drafter {manifest.base[:12]}…, this fleet began with "
                f"{self.table.base[:12]}…; give that bundle in {self.folder / 'fleet.toml'}, or begin another fleet"
            )
        return manifest

    def registry(self) -> Registry:
        """The releases, with number 0 made from the bundle where there is none; nobody is kept from writing."""
        manifest, root = self.manifest(), self.path(self.table.registry)
        if root.exists() and not root.is_dir():
            raise ConfigError(
                f"{root} is a file, expected a directory; set registry = … in {self.folder / 'fleet.toml'}"
            )
        registry = Registry(root, manifest.layout, manifest.base)
        if registry.is_empty:
            registry.begin(LoraAdapter.load(self.bundle / "drafter/initial", manifest.layout, manifest.base))
            registry.close()
        return registry

    @property
    def bundle(self) -> Path:
        """Directory of the bundle."""
        return located(EMBEDDED if self.table.bundle == EMBEDDED else self.path(self.table.bundle))

    def path(self, part: Path | str) -> Path:
        """A path of the settings, or of the folder's own parts, made absolute."""
        return self.folder / part

    @contextlib.contextmanager
    def at_work(self, wait_s: float) -> Iterator[None]:
        """Held by the one run that may write releases.

        Args:
          wait_s: for a run before this one to end; one whose SuperLink was killed takes a moment.

        Raises:
          FleetError: another run is at work.
        """
        deadline = time.monotonic() + wait_s
        with self.path(".run.lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise FleetError(f"another run is at work in {self.folder}; wait for it, or stop it") from error
                    time.sleep(_LOCK_POLL_S)
            yield
