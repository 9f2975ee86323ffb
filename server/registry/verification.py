"""Whether a registry is what it says: digests, lineage, index against directories; and its index made anew. It deletes
nothing.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from ...common.directory_lock import DirectoryLock
from ...common.errors import RegistryError
from .catalogue import Catalogue
from .event import Event, Standing, standing
from .lineage import number_of


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found. damage: something that was written is missing or changed; else a trace, as a kill leaves it."""

    what: str
    damage: bool


def verify(catalogue: Catalogue, everything: bool = False) -> Iterator[Finding]:
    """Reads a registry and says what is wrong with it.

    Args:
      everything: reads the content of every release, not only of the head and the promoted one.
    """
    try:
        if catalogue.index.exists:
            catalogue.index.check()
        now = catalogue.standing()
    except RegistryError as error:
        yield Finding(what=str(error), damage=True)
        now = Standing(releases=tuple(catalogue.directories.names()))
        everything = True
    deep = set(now.releases) if everything else {now.head, now.promoted}
    for name in now.releases:
        yield from _release(catalogue, now, name, name in deep)
    yield from _beside(catalogue, now)


def repair(catalogue: Catalogue) -> list[str]:
    """Makes the index anew from what is sound of it and from the releases; returns what was done and lost, in lines.

    Raises:
      RegistryError: another process writes to the registry, or there is no sound release.
    """
    lock = DirectoryLock(catalogue.root, ".lock")
    try:
        return _repair(catalogue)
    finally:
        lock.release()


def _repair(catalogue: Catalogue) -> list[str]:
    index, lines = catalogue.index, list[str]()
    if index.exists:
        try:
            index.check()
            return ["the index is sound: nothing to repair"]
        except RegistryError as error:
            lines.append(str(error).partition(";")[0])
    kept = index.salvaged() if index.exists else []
    entered = list(_enterable(catalogue, standing(kept)))
    made = [*kept, *entered]
    head = _sound_head(catalogue, standing(made))
    if head != standing(made).head:
        made.append(catalogue.event("head", head, reason="when the index was made anew"))
    if index.exists:
        lines.append(f"the damaged index is now {index.set_aside()}")
    index.create(made)
    return [
        *lines,
        f"kept: {len(kept)} events of the index" + (f", up to {_date(kept[-1].at_s)}" if kept else ""),
        f"entered from their directories: releases {_numbers([event.release for event in entered])}",
        f"the head is release {number_of(head)}",
        "lost: what happened after the events kept: measurements, promotions, blocks and their reasons; look at the "
        "releases, then promote the one that is to be in force",
    ]


def _enterable(catalogue: Catalogue, now: Standing) -> Iterator[Event]:
    """First events of the releases that are newer than any entered, also of those whose content is damaged."""
    newest = max(map(number_of, now.releases), default=-1)
    for name in catalogue.directories.names():
        with contextlib.suppress(RegistryError):
            if number_of(name) > newest:
                yield catalogue.released(catalogue.directories.lineage(name))
                newest = number_of(name)


def _sound_head(catalogue: Catalogue, now: Standing) -> str:
    """What HEAD names, or else the newest release, of those that are sound and not known to be blocked."""
    named = _named_head(catalogue)
    for name in sorted(now.releases, key=lambda name: (name == named, number_of(name)), reverse=True):
        with contextlib.suppress(RegistryError):
            if name not in now.blocked:
                catalogue.directories.check(name)
                return name
    raise RegistryError(f"{catalogue.directories.root} holds no sound release to make an index from; copy one back")


def _release(catalogue: Catalogue, now: Standing, name: str, deep: bool) -> Iterator[Finding]:
    try:
        lineage = catalogue.directories.lineage(name)
        if deep:
            catalogue.directories.check(name)
        if lineage.parent is not None and lineage.parent_directory not in now.releases:
            raise RegistryError(f"release {lineage.number} comes from {lineage.parent_directory}, which is missing")
        if deep and name in now.files:
            yield from _files(catalogue, now, name)
    except RegistryError as error:
        yield Finding(what=str(error), damage=True)


def _files(catalogue: Catalogue, now: Standing, name: str) -> Iterator[Finding]:
    """Against the digests that the index has had since the release was written."""
    found, written = catalogue.directories.files(name), now.files[name]
    for file in sorted(written.keys() | found.keys()):
        if found.get(file) != written.get(file):
            what = "is missing" if file not in found else "was added" if file not in written else "was changed"
            path = catalogue.directories.root / name / file
            yield Finding(what=f"{path} {what} since the release was written; bring it back from a copy", damage=True)


def _beside(catalogue: Catalogue, now: Standing) -> Iterator[Finding]:
    known, newest = set(now.releases), max(map(number_of, now.releases), default=-1)
    for path in sorted(catalogue.directories.root.glob(".*")):
        yield Finding(what=f"{path} was left half-written by a kill; the next write removes it", damage=False)
    for name in catalogue.directories.names():
        if name not in known:
            left = number_of(name) > newest
            what = "was left by a kill; the next writer enters it if it is whole" if left else "is no release"
            yield Finding(what=f"{catalogue.directories.root / name} is not in the index: it {what}", damage=False)
    if now.head is not None and catalogue.index.exists and _named_head(catalogue) != now.head:
        what = f"{catalogue.root / 'HEAD'} does not name the head; the next change writes it anew"
        yield Finding(what=what, damage=False)


def _named_head(catalogue: Catalogue) -> str | None:
    try:
        return (catalogue.root / "HEAD").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _numbers(names: list[str]) -> str:
    return ", ".join(str(number_of(name)) for name in names) or "none"


def _date(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
