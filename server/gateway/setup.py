"""Makes the folder of a gateway: settings with comments, certificates for devices, a key pair for Flower."""

import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from ...common.errors import ConfigError
from ...common.files import check_replaceable, write_atomic
from ...common.node_key import make_key_pair
from ...common.supernode import check_authority
from ..deployment.setup import check_names
from ..deployment.tls import make_certificates
from .folder import DoorTable, GatewayFolder, GatewayTable, ServerTable

_TEXT = """\
# A gateway's settings. Paths without a leading / start at this folder. Changes hold from the next
# 'fleetdraft gateway start' on. Commented lines are defaults.

name = {name}    # in the fleet; fleet.toml has it in [federation]: gateways = [{name}]
# registry = "/var/lib/fleetdraft/fleet/registry"    # the fleet's, if it is on this machine: devices are told at once
#                                                      what is promoted; without, with the next request of Flower

[superlink]
address = {server}    # of the fleet, where this gateway is one SuperNode
authority = "ca.pem"    # from the fleet's operator
key = "node.key"    # stays here; the fleet's operator gets node.pub

[door]
host = {host}    # address to listen on for devices; 0.0.0.0 is every one of this machine
port = {port}
certificate = "tls/server.pem"    # devices check it with tls/ca.pem, or with a public authority
key = "tls/server.key"
# socket = "local.sock"    # where Flower's ClientApp asks; for this user only

[cohort]
devices = {devices}    # a cohort closes with so many answers
# over_selection = 0.3    # share of devices beyond that which are given the task, since some drop out
min_devices = {least}    # with fewer at the deadline Flower gets no answer: a mean of few says much about each;
#                      a family of fewer devices is told as part of the family other, if at all
# task_s = 1800.0    # so long a device's place is kept; then another one is given the task as well

[pace]
# fill_s = 60.0    # within so many seconds as many devices check in as a cohort needs
# least_s = 5.0    # no device is told to come back sooner
# most_s = 3600.0    # … or later

[limits]
# calls_per_minute = 120    # of one device
# calls_at_once = 8    # of one device
# bytes_per_hour = 1073741824    # of one device, up and down together
# head_s = 10.0    # for the first message of an upload, and for a TLS handshake
# upload_s = 300.0    # for one call of an upload; what has arrived by then is kept
# spool_bytes = 4294967296    # of all uploads that are not complete
# concurrent_calls = 1000    # of all devices
# streams = 8    # calls at once on one connection
"""


def make_gateway(
    folder: Path, *, name: str, server: str, authority: Path, host: str, port: int, names: Sequence[str], devices: int
) -> GatewayFolder:
    """Makes a gateway's folder.

    Args:
      server: host:port of the fleet's SuperLink; ``authority`` signed its certificate.
      names: host names and addresses by which devices reach the gateway, for its certificate.
      devices: answers that close a cohort.

    Raises:
      ConfigError: the folder holds a gateway already, a value is out of range, or ``authority`` is none.
      UserError: the folder holds something else.
    """
    if (folder / "gateway.toml").exists():
        raise ConfigError(f"{folder} holds a gateway already; choose another folder")
    check_authority(authority)
    check_replaceable(folder, "gateway.toml")
    check_names(names)
    GatewayTable(name=name, superlink=ServerTable(address=server), door=DoorTable(host=host, port=port))
    values = {"name": name, "server": server, "host": host, "port": port, "devices": devices}
    values["least"] = min(devices, _LEAST)
    text = _TEXT.format(**{key: json.dumps(value) for key, value in values.items()})
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(folder / "ca.pem", authority.read_bytes())
    make_key_pair(folder / "node.key", folder / "node.pub")
    addresses = [] if ipaddress.ip_address(host).is_unspecified else [host]
    make_certificates(folder / "tls", [*names, *addresses])
    write_atomic(folder / "gateway.toml", text.encode())
    return GatewayFolder.open(folder)


_LEAST = 10
