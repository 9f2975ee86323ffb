"""Makes the folder of a fleet: settings with comments, certificates, release 0."""

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ...common.bundle import BundleManifest
from ...common.embedded import EMBEDDED, located
from ...common.errors import ConfigError
from ...common.files import check_replaceable, write_atomic
from ..config import ServerConfig
from .fleet import Fleet, SuperLinkTable
from .tls import make_certificates

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")

_HEAD = """\
# A fleet's settings. Paths without a leading / start at this folder. After a change: restart 'fleetdraft server start'
# where [superlink] is concerned; the rest holds from the next 'fleetdraft server run' on.

bundle = {bundle}    # the drafter and its targets; devices have the same, by fingerprint
base = {base}    # the drafter's fingerprint; releases fit no other
registry = "registry"

[superlink]
host = {host}    # address to listen on; 0.0.0.0 is every one of this machine
port = {port}
authority = "tls/ca.pem"    # what devices check the certificate with; give it to them
certificate = "tls/server.pem"
key = "tls/server.key"

# Commented lines are defaults.
"""

_ROUNDS = 2
#: Without it no release is ever promoted or blocked.
_EVALUATE_EVERY = 1
_WORDS = {
    "rounds": "in all; a run that goes on does those that are left",
    "clip_norm": "the most that one update may change",
    "timeout_s": "a device that has not answered by then costs nobody else the round",
    "expected_clients": "the first round waits for so many devices",
    "join_timeout_s": "… but not longer than this",
    "evaluate_every": "devices measure the release every so many rounds, to promote or block it; 0: never",
    "mode": "sync, or async: devices are asked again as soon as they have answered",
    "clients_per_round": "updates that a round needs; so many are sampled; absent: all that joined",
    "over_selection": "share of devices asked beyond that; the first that answer count",
    "gateways": "clients that answer for many devices, each with their mean; docs/gateway.md",
    "gateway_devices": "the most devices that one gateway's answer counts as",
    "min_updates": "with fewer valid updates a round keeps the old release",
}


def make_fleet(folder: Path, *, bundle: Path, host: str, port: int, names: Sequence[str], devices: int) -> Fleet:
    """Makes a fleet's folder.

    Args:
      names: host names and addresses by which devices reach the server, for the certificate.
      devices: that the first round waits for.

    Raises:
      ConfigError: the folder holds a fleet already, or a value is out of range.
      UserError: not a bundle, or the folder holds something else.
    """
    if (folder / "fleet.toml").exists():
        raise ConfigError(f"{folder} holds a fleet already; choose another folder")
    check_replaceable(folder, "fleet.toml")
    check_names(names)
    SuperLinkTable(host=host, port=port)  # checks the values
    manifest = BundleManifest.read(located(bundle))
    where = bundle if bundle == EMBEDDED else bundle.absolute()
    values = {"bundle": str(where), "base": manifest.base, "host": host, "port": port}
    text = _HEAD.format(**{name: json.dumps(value) for name, value in values.items()})
    decided = {"rounds": _ROUNDS, "expected_clients": devices, "evaluate_every": _EVALUATE_EVERY}
    text += "\n".join(_table("federation", ServerConfig, decided)) + "\n"
    write_atomic(folder / "fleet.toml", text.encode())
    fleet = Fleet.open(folder)
    certify(fleet, names)
    fleet.registry()
    return fleet


def certify(fleet: Fleet, names: Sequence[str]) -> None:
    """Makes the server's certificate, for ``names`` and the address that it listens on.

    Raises:
      ConfigError: a name is neither a host name nor an IP address.
    """
    check_names(names)
    host = fleet.table.superlink.host
    make_certificates(fleet.path("tls"), [*names, *([] if ipaddress.ip_address(host).is_unspecified else [host])])


def check_names(names: Sequence[str]) -> None:
    """Returns if certificates can be made for these names.

    Raises:
      ConfigError: one is neither a host name nor an IP address.
    """
    for name in names:
        if not (_HOST.fullmatch(name) or _is_address(name)):
            raise ConfigError(f"name is {name!r}, expected a host name or an IP address")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _table(name: str, kind: type, decided: Mapping[str, object]) -> Iterator[str]:
    """A config as a TOML table: what was decided, and the other settings as comments with their defaults."""
    yield f"[{name}]"
    hints = get_type_hints(kind)
    own = [f for f in fields(kind) if not any(_nested(part) for part in (hints[f.name], *get_args(hints[f.name])))]
    for field in own:
        value = decided.get(field.name, _default(field))
        word = f"    # {_WORDS[field.name]}" if field.name in _WORDS else ""
        if value is None:
            yield f"# {field.name} = …{word}"
        else:
            yield f"{'' if field.name in decided else '# '}{field.name} = {json.dumps(value)}{word}"
    for field in fields(kind):
        hint = hints[field.name]
        if _nested(hint):
            yield ""
            yield from _table(f"{name}.{field.name}", hint, {})
        elif optional := next((part for part in get_args(hint) if _nested(part)), None):
            yield ""
            keys = ", ".join(part.name for part in fields(optional))
            yield f"# [{name}.{field.name}]    # absent: none; keys: {keys}"


def _nested(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _default(field: "Field[Any]") -> Any:
    value = field.default if field.default is not MISSING else None
    return list(value) if isinstance(value, tuple) else value
