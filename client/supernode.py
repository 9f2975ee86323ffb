"""This device as a SuperNode: which of its settings Flower's program is given."""

from collections.abc import Callable

from ..common import supernode as common
from .device_file import DeviceFile


def supernode(device: DeviceFile) -> list[str]:
    """The command line of Flower's SuperNode for a device.

    Raises:
      ConfigError: the settings' path is one that Flower cannot take.
      UserError: Flower is not installed, or one of its programs is missing.
    """
    return _node(device).command()


def join(device: DeviceFile, wait_s: float, tell: Callable[[str], None]) -> None:
    """Takes part in the fleet until told to stop; see ``common/supernode.py``.

    Raises:
      FleetError: the SuperLink does not let it in, or the SuperNode ended by itself.
    """
    common.join(_node(device), wait_s, tell)


def _node(device: DeviceFile) -> common.SuperNode:
    server = device.table.server
    return common.SuperNode(
        superlink=server.address,
        authority=device.folder / server.authority,
        key=device.folder / server.key,
        setting="device",
        path=device.path,
        home=device.folder / "flower",
        asked_by="fleetdraft node",
        extra="node",
    )
