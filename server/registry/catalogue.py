"""The releases of a registry and what became of them. It knows no adapter layout: any program can open it.

    root/index.sqlite   what happened to each release, in order (``index.py``); says which one is the head
    root/releases/      the releases (``directories.py``), none of which ever changes
    root/HEAD           the head's name, for people, and to begin from should the index be lost
    root/.lock          held by the one process that writes

A release exists once its directory has its name. Its first event follows; where a kill came between the two, the next
writer enters it. So a kill at any moment leaves the old head or the new one, and nothing that was returned is lost.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...common.directory_lock import DirectoryLock
from ...common.errors import RegistryError, UserError
from ...common.files import write_atomic
from ...common.lora import LoraAdapter
from .directories import Directories
from .event import Event, Standing, standing
from .index import Index
from .lineage import Lineage, number_of


class Catalogue:
    """What is in a registry. Reading needs nothing; what changes it claims it first, and ``close`` lets others in.

    Raises:
      RegistryError: from every method, where the index or a release is missing or damaged.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.root = Path(root)
        self.directories = Directories(self.root / "releases")
        self.index = Index(self.root / "index.sqlite")
        self.clock = clock
        self._lock: DirectoryLock | None = None
        self._folded: tuple[list[Event], Standing] = ([], Standing())

    @property
    def is_empty(self) -> bool:
        """Whether there is no trace of a release."""
        return not self.index.exists and not (self.root / "HEAD").exists() and not self.directories.names()

    def claim(self) -> None:
        """Keeps other writers out from now on, and enters what a kill left unentered.

        Raises:
          RegistryError: another process writes to this registry.
        """
        if self._lock is not None:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = DirectoryLock(self.root, ".lock")
        except UserError as error:
            raise RegistryError(f"the registry cannot be changed now: {error}") from error
        try:
            events = self.events()
            if not self.index.exists:
                self.index.create(events)
            self.record(*self.unentered(standing(events)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets other writers in; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    # --- reading --------------------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """All that happened, the oldest first; of a registry without an index, what its directories tell."""
        if self.index.exists:
            return self.index.events()
        return [] if self.is_empty else list(self._before_indices())

    def standing(self) -> Standing:
        """Where the registry stands."""
        events, (known, found) = self.events(), self._folded
        if events == known:
            return found
        try:
            self._folded = (events, standing(events))
            return self._folded[1]
        except (KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"{self.root} holds an event that cannot be understood: {error!r}") from error

    def head(self) -> Lineage:
        """The head's lineage."""
        name = self.standing().head
        if name is None:
            raise RegistryError(f"{self.root} holds no release yet, so it has no head; begin a run there")
        return self.directories.lineage(name)

    def ancestors(self, lineage: Lineage) -> Iterator[Lineage]:
        """A release, the one it came from, and so on to the first."""
        yield lineage
        while (parent := lineage.parent_directory) is not None:
            found = self.directories.lineage(parent)
            if found.digest != lineage.parent or found.number >= lineage.number:
                raise RegistryError(f"release {lineage.number} names as parent {parent}, which is another release")
            lineage = found
            yield lineage

    def find(self, number: int) -> str:
        """The name of a release.

        Raises:
          UserError: there is none of that number.
        """
        numbers = {number_of(name): name for name in self.standing().releases}
        if number not in numbers:
            given = f"{min(numbers)} to {max(numbers)}" if numbers else "one: there are none yet"
            raise UserError(f"{self.root} has no release {number}, expected {given}")
        return numbers[number]

    def next_number(self) -> int:
        """Above that of any directory, also of one that is in no index."""
        numbers = map(number_of, [*self.directories.names(), *self.standing().releases])
        return max(numbers, default=-1) + 1

    # --- writing --------------------------------------------------------------------------------------------------

    def event(self, kind: str, release: str, **data: Any) -> Event:
        """An event of now."""
        return Event(at_s=self.clock(), kind=kind, release=release, data=data)

    def record(self, *events: Event) -> None:
        """Enters events, all or none."""
        self.claim()
        if events:
            self.index.append(*events)
            self._note_head()

    def add(self, adapter: LoraAdapter, base: str, lineage: Lineage, carried: bytes) -> None:
        """Writes a release and makes it the head."""
        self.claim()
        self.directories.write(adapter, base, lineage, carried)
        try:
            self.index.append(self.released(lineage))
        except BaseException:
            # An interrupt may come after the commit.
            with contextlib.suppress(RegistryError):
                if lineage.directory not in self.standing().releases:
                    self.directories.remove(lineage)
            raise
        self._note_head()

    def released(self, lineage: Lineage) -> Event:
        """The first event of a release."""
        return self.event("released", lineage.directory, files=self.directories.files(lineage.directory))

    def unentered(self, now: Standing) -> list[Event]:
        """First events of the sound releases that are newer than any entered."""
        known, newest = set(now.releases), max(map(number_of, now.releases), default=-1)
        events = []
        for name in self.directories.names():
            with contextlib.suppress(RegistryError):
                if number_of(name) > newest and self._follows(self.directories.check(name), known):
                    events.append(self.event("released", name, files=self.directories.files(name)))
                    known, newest = known | {name}, number_of(name)
        return events

    @staticmethod
    def _follows(lineage: Lineage, known: set[str]) -> bool:
        return lineage.parent_directory in known if known else lineage.parent is None

    def _note_head(self) -> None:
        # The index decides; this is a copy, which the next change renews where a full disk prevents it now.
        with contextlib.suppress(OSError):
            write_atomic(self.root / "HEAD", f"{self.standing().head}\n".encode())

    def _before_indices(self) -> Iterator[Event]:
        """The events of a registry of schema 1, which had no index: its releases, from the first to the head."""
        path = self.root / "HEAD"
        try:
            name = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise self._without_index(f"and {path}, which names the current release, cannot be read") from error
        head = self.directories.lineage(name)
        if head.schema > 1:
            raise self._without_index(f"though {name} was written with one")
        for lineage in list(self.ancestors(head))[::-1]:
            yield self.released(lineage)

    def _without_index(self, why: str) -> RegistryError:
        return RegistryError(
            f"{self.root} has lost its index, {why}; bring {self.root / 'index.sqlite'} back from a copy, or make one "
            f"from the releases: fleetdraft registry verify {self.root} --repair"
        )
