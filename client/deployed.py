"""The ClientApp that Flower loads on a device: the device whose settings file the SuperNode's configuration names.

Where that file has an ``[agent]``, the agent's process does the work, and this one is a bridge to it.
"""

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
    settings = _settings(_path(context))
    if settings.table.agent is None:
        return settings.participant()
    from .agent.bridge import AgentDevice  # a node without an agent needs no gRPC of its own

    return AgentDevice(settings)


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
