"""Immutable releases on disk with their lineage. It knows neither transport nor how a release came to be.

    root/HEAD                          name of the current release's directory
    root/releases/0003-1f2e3d4c5b6a/   number and start of the adapter's digest; a PEFT adapter directory

A release is written whole before ``HEAD`` names it, so a kill at any moment leaves the old head or the new one. What a
kill leaves half-written has a name that starts with a dot: it is never read, and the next ``write`` removes it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import RegistryError, UserError
from ..common.files import read_json, write_atomic
from ..common.lora import LoraAdapter, LoraLayout
from ..common.messages import Release
from ..common.metrics import DraftCounters


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a release comes from; stored beside its tensors."""

    number: int
    digest: str
    """Of the adapter."""
    parent: str | None = None
    """Digest of the release before; none for the first."""
    round: int = 0
    rule: str = "initial"
    participants: tuple[str, ...] = ()
    """Clients whose updates are in this release."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Clients that were asked and left out, with the reason."""
    families: Mapping[str, DraftCounters] = field(default_factory=dict)
    """Drafting counters of the participants, summed by target vocabulary."""

    @property
    def directory(self) -> str:
        return _directory(self.number, self.digest)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Lineage":
        """Reads what ``asdict`` wrote."""
        families = {name: DraftCounters(**counters) for name, counters in value["families"].items()}
        return cls(**{**value, "participants": tuple(value["participants"]), "families": families})


class Registry:
    """The releases of one adapter layout on one base. One process writes; any number may read.

    Raises:
      RegistryError: from every reading method, where a release is missing, torn or does not match its digest.
    """

    def __init__(self, root: Path, layout: LoraLayout, base: str) -> None:
        self._root = Path(root)
        self._layout = layout
        self._base = base

    @property
    def root(self) -> Path:
        """The directory it lies in."""
        return self._root

    @property
    def is_empty(self) -> bool:
        """Whether there is no release at all; releases without a HEAD are a damaged registry, not an empty one."""
        return not (self._root / "HEAD").exists() and not any(self._releases.glob("[0-9]*"))

    def begin(self, adapter: LoraAdapter) -> Release:
        """Makes ``adapter`` release 0, or, where there are releases already, changes nothing and returns the head."""
        return self._write(adapter, Lineage(number=0, digest=adapter.digest)) if self.is_empty else self.head()

    def write(
        self,
        adapter: LoraAdapter,
        *,
        round: int,
        rule: str,
        participants: tuple[str, ...],
        rejected: Mapping[str, str],
        families: Mapping[str, DraftCounters],
        carried: bytes = b"",
    ) -> Release:
        """Makes ``adapter`` the successor of the head, with what the server carries on from its round."""
        parent = self.lineage()
        lineage = Lineage(
            number=parent.number + 1,
            digest=adapter.digest,
            parent=parent.digest,
            round=round,
            rule=rule,
            participants=participants,
            rejected=rejected,
            families=families,
        )
        self._aside(lineage, "carried", carried)
        return self._write(adapter, lineage)

    def last_round(self) -> int:
        """The newest round that made a release; 0 before the first."""
        return self.lineage().round

    def carried(self) -> bytes:
        """What the server carried on from the head's round; empty for the first release."""
        path = self._root / f"{self.lineage().directory}.carried"
        return path.read_bytes() if path.exists() else b""

    def evaluated(self, evaluation: Mapping[str, DraftCounters]) -> None:
        """Keeps what devices measured with the head, by target vocabulary."""
        value = {family: asdict(counters) for family, counters in evaluation.items()}
        self._aside(self.lineage(), "evaluation", json.dumps(value).encode())

    def evaluation(self) -> dict[str, DraftCounters]:
        """What devices measured with the head; nothing before they did."""
        path = self._root / f"{self.lineage().directory}.evaluation"
        value = json.loads(path.read_bytes()) if path.exists() else {}
        return {family: DraftCounters(**counters) for family, counters in value.items()}

    def _aside(self, lineage: Lineage, kind: str, data: bytes) -> None:
        write_atomic(self._root / f"{lineage.directory}.{kind}", data)

    def head(self) -> Release:
        """The current release, its content verified."""
        return self.read(self.lineage())

    def read(self, lineage: Lineage) -> Release:
        """The release of a lineage, its content verified."""
        directory = self._releases / lineage.directory
        try:
            adapter = LoraAdapter.load(directory, self._layout, self._base)
        except UserError as error:
            raise RegistryError(f"release {lineage.number} cannot be used: {error}") from error
        if adapter.digest != lineage.digest:
            raise RegistryError(f"{directory}: content does not match the digest {lineage.digest[:12]}…")
        return Release(number=lineage.number, adapter=adapter, base=self._base)

    def lineage(self) -> Lineage:
        """The head's lineage."""
        try:
            name = (self._root / "HEAD").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryError(
                f"{self._root}/HEAD, which names the current release, cannot be read: {error}"
            ) from error
        return self._read_lineage(name)

    def history(self) -> list[Lineage]:
        """Lineages from the first release to the head, along the parents."""
        return list(self._ancestors())[::-1]

    @property
    def _releases(self) -> Path:
        return self._root / "releases"

    def _ancestors(self) -> Iterator[Lineage]:
        lineage = self.lineage()
        yield lineage
        while lineage.parent is not None:
            lineage = self._read_lineage(_directory(lineage.number - 1, lineage.parent))
            yield lineage

    def _read_lineage(self, name: str) -> Lineage:
        path = self._releases / name / "fleetdraft.json"
        try:
            lineage = Lineage.from_json(read_json(path)["lineage"])
        except (UserError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"release {name!r} is missing or damaged: {error}") from error
        if lineage.directory != name:
            raise RegistryError(f"{path} describes {lineage.directory}, expected {name}")
        return lineage

    def _write(self, adapter: LoraAdapter, lineage: Lineage) -> Release:
        for torn in self._releases.glob(".*"):
            shutil.rmtree(torn)
        adapter.save(self._releases / lineage.directory, self._base, {"lineage": asdict(lineage)})
        write_atomic(self._root / "HEAD", f"{lineage.directory}\n".encode())
        return Release(number=lineage.number, adapter=adapter, base=self._base)


def _directory(number: int, digest: str) -> str:
    return f"{number:04d}-{digest[:12]}"
