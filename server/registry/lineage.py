"""Where a release comes from: written once beside its tensors, never changed. It knows nothing of what came later."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...common.metrics import DraftCounters

SCHEMA = 2
"""Of what is written now. 1 had no index, no parent's number, nothing carried, no privacy and no date."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """A release's origin; stored beside its tensors."""

    number: int
    """Of its own: a release that was blocked or rolled back keeps its number."""
    digest: str
    """Of the adapter."""
    parent: str | None = None
    """Digest of the release that the round started from; none for the first."""
    parent_number: int | None = None
    round: int = 0
    rule: str = "initial"
    participants: tuple[str, ...] = ()
    """Clients whose updates are in this release."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Clients that were asked and left out, with the reason."""
    families: Mapping[str, DraftCounters] = field(default_factory=dict)
    """Drafting counters of the participants while they trained, summed by target vocabulary."""
    privacy: Mapping[str, Any] | None = None
    """What the run had spent with this release, as JSON; none without differential privacy."""
    carried: str | None = None
    """SHA-256 of what the server carries to the next round; none where that is nothing."""
    created_s: float | None = None
    """Since 1970; none in schema 1."""
    schema: int = SCHEMA

    @property
    def directory(self) -> str:
        return directory_name(self.number, self.digest)

    @property
    def parent_directory(self) -> str | None:
        """None for the first."""
        if self.parent is None or self.parent_number is None:
            return None
        return directory_name(self.parent_number, self.parent)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Lineage":
        """Reads what ``to_json`` gave, of this schema or the one before.

        Raises:
          KeyError, TypeError, ValueError, AttributeError: not such a value.
        """
        if value.get("schema", 1) > SCHEMA:
            raise ValueError(f"schema {value['schema']} is newer than {SCHEMA}; update fleetdraft")
        if not all(isinstance(value[name], kind) for name, kind in (("number", int), ("digest", str), ("round", int))):
            raise ValueError("number, digest or round is of another type")
        families = {name: DraftCounters(**counters) for name, counters in value["families"].items()}
        old = {"schema": 1, "parent_number": None if value["parent"] is None else value["number"] - 1}
        return cls(**{**old, **value, "participants": tuple(value["participants"]), "families": families})


def directory_name(number: int, digest: str) -> str:
    """Of a release: the number and the start of the adapter's digest."""
    return f"{number:04d}-{digest[:12]}"


def number_of(directory: str) -> int:
    """The number in a name that ``directory_name`` made."""
    return int(directory.partition("-")[0])
