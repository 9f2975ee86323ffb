"""The gateway as a process: database, doors and figures opened and closed together. It knows no command line."""

import asyncio
import contextlib
import logging
import random
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc

from ...common.directory_lock import DirectoryLock
from ...common.errors import ConfigError
from ...common.messages import Release
from ..registry.registry import Registry
from .database import open_database
from .figures import Figures
from .folder import GatewayFolder
from .gateway import Gateway
from .ledger import Ledger
from .service import FleetService, LocalService, fleet_server, local_server
from .tokens import Tokens

_TELL_EVERY_S = 2.0
_log = logging.getLogger(__name__)
#: For calls that are under way when the gateway is told to stop; uploads go on where they were after the next start.
_GRACE_S = 5.0


@dataclass(frozen=True)
class Open:
    """A gateway whose doors are open."""

    gateway: Gateway
    tokens: Tokens
    figures: Figures
    port: int


@contextlib.asynccontextmanager
async def opened(
    folder: GatewayFolder, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> AsyncIterator[Open]:
    """Serves devices and Flower for as long as the context lasts.

    Args:
      clock: in seconds since 1970.
      monotonic: in seconds, never backwards.

    Raises:
      UserError: another process serves this folder, or a setting cannot be met.
    """
    table = folder.table
    lock = DirectoryLock(folder.folder, ".lock")
    database = open_database(folder.path("gateway.db"))
    try:
        tokens, ledger = Tokens(database, clock), Ledger(database)
        figures = Figures(folder, ledger, tokens)
        gateway = Gateway(
            name=table.name,
            folder=folder.folder,
            ledger=ledger,
            tokens=tokens,
            cohort=table.cohort,
            pace=table.pace,
            limits=table.limits,
            clock=clock,
            monotonic=monotonic,
            chance=random.SystemRandom().random,
            on_closed=figures.closed,
        )
        gateway.resume()
        async with _doors(folder, gateway, tokens) as port:
            telling = asyncio.create_task(_tell(folder, figures, gateway))
            try:
                yield Open(gateway, tokens, figures, port)
            finally:
                telling.cancel()
        await gateway.stop()
    finally:
        database.close()
        lock.release()


@contextlib.asynccontextmanager
async def _doors(folder: GatewayFolder, gateway: Gateway, tokens: Tokens) -> AsyncIterator[int]:
    """Both doors; yields the port of that for devices."""
    door = folder.table.door
    path = folder.socket
    _remove_socket(path)
    local = local_server(LocalService(gateway), path)
    fleet = fleet_server(FleetService(gateway, tokens), folder.table.limits)
    _check_free(door.host, door.port)
    where = f"[{door.host}]:{door.port}" if ":" in door.host else f"{door.host}:{door.port}"
    if door.tls:
        port = fleet.add_secure_port(where, grpc.ssl_server_credentials([folder.certificate()]))
    else:
        port = fleet.add_insecure_port(where)
    await local.start()
    await fleet.start()
    try:
        yield port
    finally:
        await asyncio.gather(fleet.stop(_GRACE_S), local.stop(0))


async def _tell(folder: GatewayFolder, figures: Figures, gateway: Gateway) -> None:
    """Writes figures, and looks what is promoted, for as long as the gateway runs."""
    while True:
        try:
            if (release := await asyncio.to_thread(_promoted, folder, gateway)) is not None:
                gateway.promote(release)
            figures.write(gateway)
        except Exception:  # a full disk, or a registry that is being written: devices are served all the same
            _log.exception("figures or registry")
        await asyncio.sleep(_TELL_EVERY_S)


def _promoted(folder: GatewayFolder, gateway: Gateway) -> Release | None:
    """The promoted release of a registry on this machine; its layout is that of what Flower asked last."""
    root, cohort = folder.table.registry, gateway.cohort
    if root is None or cohort is None:
        return None
    release = cohort.ask.release
    registry = Registry(folder.path(root), release.adapter.layout, release.base)
    try:
        return registry.promoted()
    finally:
        registry.close()


def _remove_socket(path: Path) -> None:
    """Removes what a process before this one left.

    Raises:
      ConfigError: it is something else.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is no socket, expected none or one; set another path: socket, in [door]")
    path.unlink()


def _check_free(host: str, port: int) -> None:
    """A clear word before gRPC's."""
    family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; stop what is there, or set another port in [door]"
            ) from error
