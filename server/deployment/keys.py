"""Which devices may join: a folder of public keys, and the SuperLink told of it."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...common.errors import ConfigError
from ...common.files import read_json, write_atomic, write_json
from ...common.node_key import fingerprint, read_public_key
from .fleet import Fleet
from .flower import Flower

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class NodeKey:
    """A device that may join."""

    name: str
    fingerprint: str
    node: int | None
    """Its number at the SuperLink; none before a SuperLink was told of the key."""


class Keys:
    """The folder ``keys/`` of a fleet. It is the truth; the SuperLink's list is brought in line with it."""

    def __init__(self, fleet: Fleet) -> None:
        self._folder = fleet.path("keys")

    def listed(self) -> list[NodeKey]:
        """The devices that may join, by name."""
        nodes = self._told().nodes
        return [
            NodeKey(name=name, fingerprint=seen, node=nodes.get(seen))
            for name, seen in ((path.stem, fingerprint(read_public_key(path))) for path in self._files())
        ]

    def path(self, name: str) -> Path:
        """Where the public key of a name lies.

        Raises:
          ConfigError: not a name for a file.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"name is {name!r}, expected up to 64 letters, digits, and . _ - (a letter or digit first)"
            )
        return self._folder / f"{name}.pub"

    def add(self, name: str, source: Path) -> None:
        """Lets the owner of a public key join under a name.

        Raises:
          ConfigError: not a public key, the name is taken, the key is there under another name, or was removed once.
        """
        key, path = read_public_key(source), self.path(name)
        if path.exists():
            raise ConfigError(f"the name {name!r} is taken; choose another, or first: fleetdraft server keys remove")
        for known in self.listed():
            if known.fingerprint == fingerprint(key):
                raise ConfigError(f"{source} is the key of {known.name!r} already; every device needs a key of its own")
        if fingerprint(key) in self._told().retired:  # Flower 1.41 takes a public key once and for all
            raise ConfigError(f"{source} was removed from this fleet once; make another pair on the device")
        write_atomic(path, key + b"\n")

    def remove(self, name: str) -> None:
        """Lets a device join no more.

        Raises:
          ConfigError: no such name.
        """
        path = self.path(name)
        if not path.exists():
            known = ", ".join(key.name for key in self.listed()) or "none"
            raise ConfigError(f"no key {name!r}, expected one of: {known}")
        path.unlink()

    def tell(self, flower: Flower) -> tuple[list[str], list[str]]:
        """Brings the SuperLink's list in line with the folder; returns the names admitted and the keys dismissed."""
        told, known = self._told(), {node.number for node in flower.nodes()}
        allowed = {key.fingerprint: key.name for key in self.listed()}
        dismissed = [seen for seen in told.nodes if seen not in allowed]
        for seen in dismissed:
            if (number := told.nodes.pop(seen)) in known:
                flower.dismiss(number)
            told.retired.append(seen)
            self._remember(told)
        admitted = [seen for seen in allowed if told.nodes.get(seen) not in known]
        for seen in admitted:
            told.nodes[seen] = flower.admit(self.path(allowed[seen]), allowed[seen])
            self._remember(told)
        return [allowed[seen] for seen in admitted], dismissed

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.pub"))

    def _told(self) -> "_Told":
        path = self._folder / "told.json"
        return _Told(**read_json(path)) if path.exists() else _Told()

    def _remember(self, told: "_Told") -> None:
        write_json(self._folder / "told.json", asdict(told))


@dataclass
class _Told:
    """What SuperLinks were told."""

    nodes: dict[str, int] = field(default_factory=dict)
    """Node numbers by fingerprint, as the SuperLink gave them."""
    retired: list[str] = field(default_factory=list)
    """Fingerprints of keys that may join no more."""
