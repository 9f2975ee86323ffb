"""What happened to a release, and where a registry stands after all of it. It knows no file.

kind         what it does
released     the release exists, and is the head
evaluated    devices measured it: ``families``; ``reason`` where that decided nothing
promoted     it is the one in force: ``reason``
blocked      the canary refused it: ``reason``; the head becomes ``head``
rolled back  it is in force again, and the head: ``reason``
head         it is the head: ``reason``; only where a registry without an index was taken in
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...common.metrics import DraftCounters

KINDS = ("released", "evaluated", "promoted", "blocked", "rolled back", "head")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the journal. at_s: since 1970. release: the name of its directory. data: as JSON holds it."""

    at_s: float
    kind: str
    release: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        return str(self.data.get("reason", ""))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a registry stands; releases are named by their directories.

    promotions: those in force one after the other, the present one last; a rollback takes off what came after.
    blocked: with the reason. evaluations: the newest of each. files: SHA-256 by name of what was written.
    """

    releases: tuple[str, ...] = ()
    head: str | None = None
    promotions: tuple[str, ...] = ()
    blocked: Mapping[str, str] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, DraftCounters]] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def promoted(self) -> str | None:
        return self.promotions[-1] if self.promotions else None


def standing(events: Iterable[Event]) -> Standing:
    """Where a registry stands after ``events``, the oldest first.

    Raises:
      KeyError, TypeError, AttributeError: an event lacks what its kind has.
    """
    fold = _Fold()
    for event in events:
        fold.take(event)
    return Standing(
        releases=tuple(fold.releases),
        head=fold.head,
        promotions=tuple(fold.promotions),
        blocked=fold.blocked,
        evaluations=fold.evaluations,
        files=fold.files,
    )


class _Fold:
    def __init__(self) -> None:
        self.releases = list[str]()
        self.head: str | None = None
        self.promotions = list[str]()
        self.blocked = dict[str, str]()
        self.evaluations = dict[str, Mapping[str, DraftCounters]]()
        self.files = dict[str, Mapping[str, str]]()

    def take(self, event: Event) -> None:
        name = event.release
        if event.kind == "released":
            self.releases.append(name)
            self.files[name] = event.data.get("files", {})
        elif event.kind == "evaluated":
            counters = event.data["families"].items()
            self.evaluations[name] = {family: DraftCounters(**fields) for family, fields in counters}
        elif event.kind == "blocked":
            self.blocked[name] = event.reason
        elif event.kind in ("promoted", "rolled back"):
            self._promote(name, back=event.kind == "rolled back")
        if event.kind in ("released", "rolled back", "head"):
            self.head = name
        elif event.kind == "blocked":
            self.head = event.data["head"]

    def _promote(self, name: str, back: bool) -> None:
        self.blocked.pop(name, None)
        if back and name in self.promotions:
            while self.promotions[-1] != name:
                self.promotions.pop()
        elif not self.promotions or self.promotions[-1] != name:
            self.promotions.append(name)
