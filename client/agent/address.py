"""Where an agent listens: a Unix socket or a port of loopback. It opens neither."""

from pathlib import Path

from ...common.errors import ConfigError

_UNIX = "unix:"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_LONGEST = 107
"""Bytes of a Unix socket's path on Linux."""


def checked_address(address: str) -> str:
    """``address`` if no other machine can reach it.

    Raises:
      ConfigError: it is none of ours.
    """
    if address.startswith(_UNIX) and len(address) > len(_UNIX):
        return address
    host, _, port = address.rpartition(":")
    if host in _LOOPBACK and port.isdecimal() and 1 <= int(port) <= 65535:
        return address
    raise ConfigError(f'listen is "{address}", expected "unix:PATH" or a port of loopback as in "127.0.0.1:9464"')


def socket_path(address: str, folder: Path) -> Path | None:
    """The path of a Unix socket, None for a port.

    Raises:
      ConfigError: longer than the kernel takes.
    """
    if not address.startswith(_UNIX):
        return None
    path = (folder / address.removeprefix(_UNIX)).absolute()
    if len(bytes(path)) > _LONGEST:
        raise ConfigError(
            f'{path} has {len(bytes(path))} bytes, expected at most {_LONGEST} for a socket; set listen = "unix:/…"'
        )
    return path


def grpc_address(address: str, folder: Path) -> str:
    """What gRPC is given, relative paths being of ``folder``."""
    path = socket_path(address, folder)
    return checked_address(address) if path is None else f"{_UNIX}{path}"
