"""The ClientApp that Flower loads on a device: the device whose settings file the SuperNode's configuration names.

A SuperNode whose configuration has another setting is of another kind: a gateway, for one. Whoever answers for it is
found by that setting among the entry points ``fleetdraft.nodes``, so that nothing here imports it.
"""

from functools import cache
from importlib import metadata
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..common.errors import ConfigError
from ..common.messages import Identity
from .app import make_client_app
from .device import Device
from .device_file import DeviceFile

#: In the SuperNode's ``--node-config``.
SETTING = "device"


def _identity(context: Context) -> Identity:
    return _settings(_path(context)).identity()


def _device(context: Context) -> Device:
    return _settings(_path(context)).participant()


def _least_threshold(context: Context) -> int:
    return _settings(_path(context)).table.least_threshold


def _path(context: Context) -> Path:
    path = context.node_config.get(SETTING)
    if not isinstance(path, str):
        raise ConfigError(
            f"the SuperNode was started without {SETTING}; start it with: fleetdraft node start device.toml"
        )
    return Path(path)


@cache
def _settings(path: Path) -> DeviceFile:
    return DeviceFile.open(path)


class _Deployed(ClientApp):
    """A device's app, that leaves messages for nodes of another kind to who answers for them."""

    def __init__(self, device: ClientApp) -> None:
        super().__init__()
        self._device = device

    def __call__(self, message: Message, context: Context) -> Message:
        for entry in metadata.entry_points(group="fleetdraft.nodes"):
            if entry.name in context.node_config:
                return entry.load()(message, context)
        return self._device(message, context)


app = _Deployed(make_client_app(device_for=_device, identity_for=_identity, least_threshold_for=_least_threshold))
