"""The ClientApp that Flower loads on a device: the device whose settings file the SuperNode's configuration names."""

from functools import cache
from pathlib import Path

from flwr.app import Context

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


app = make_client_app(device_for=_device, identity_for=_identity, least_threshold_for=_least_threshold)
