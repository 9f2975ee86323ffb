"""Which devices may join: a folder of public keys, and the SuperLink told of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
        nodes = self._nodes()
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
          ConfigError: not a public key, the name is taken, or the key is there under another name.
        """
        key, path = read_public_key(source), self.path(name)
        if path.exists():
            raise ConfigError(f"the name {name!r} is taken; choose another, or first: fleetdraft server keys remove")
        for known in self.listed():
            if known.fingerprint == fingerprint(key):
                raise ConfigError(f"{source} is the key of {known.name!r} already; every device needs a key of its own")
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
        nodes, known = self._nodes(), {node.number for node in flower.nodes()}
        allowed = {key.fingerprint: key.name for key in self.listed()}
        dismissed = [seen for seen in nodes if seen not in allowed]
        for seen in dismissed:
            if (number := nodes.pop(seen)) in known:
                flower.dismiss(number)
            self._remember(nodes)
        admitted = [seen for seen in allowed if nodes.get(seen) not in known]
        for seen in admitted:
            nodes[seen] = flower.admit(self.path(allowed[seen]), allowed[seen])
            self._remember(nodes)
        return [allowed[seen] for seen in admitted], dismissed

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.pub"))

    def _nodes(self) -> dict[str, int]:
        """Node numbers by fingerprint, as the SuperLink gave them."""
        path = self._folder / "nodes.json"
        return dict(read_json(path)) if path.exists() else {}

    def _remember(self, nodes: Mapping[str, int]) -> None:
        write_json(self._folder / "nodes.json", nodes)
