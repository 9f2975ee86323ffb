"""The append-only journal of a registry: what happened to its releases, in SQLite. It knows no release directory.

Each row has a digest over its content and the row before, so that a row that was changed or taken out is found. A
commit is on the disk when ``append`` returns (synchronous EXTRA); a kill at any moment leaves all of it or nothing.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from ...common.errors import RegistryError
from .event import KINDS, Event

_APPLICATION = 0x666C7267
_SCHEMA = 1
_MAGIC = b"SQLite format 3\0"
_TABLE = (
    "CREATE TABLE events (id INTEGER PRIMARY KEY, at_s REAL NOT NULL, kind TEXT NOT NULL, release TEXT NOT NULL, "
    "data TEXT NOT NULL, digest TEXT NOT NULL)"
)
#: What may be wrong with the surroundings rather than with the file, and what to do about it.
_ADVICE = {
    sqlite3.SQLITE_BUSY: "another program has it locked; try again",
    sqlite3.SQLITE_LOCKED: "another program has it locked; try again",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "check the disk and its free space",
    sqlite3.SQLITE_READONLY: "make it and its directory writable",
    sqlite3.SQLITE_CANTOPEN: "make it and its directory accessible",
    sqlite3.SQLITE_PERM: "make it and its directory accessible",
    sqlite3.SQLITE_NOMEM: "free some memory",
}
#: A commit takes milliseconds; a reader waits so long for one to end.
_WAIT_S = 20.0


class Index:
    """The journal in one file. One process appends; any number read, also while it does.

    Raises:
      RegistryError: from every method, in one line: damaged, or cannot be read or written now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = list[Event]()
        self._last = ""
        self._turn = threading.Lock()

    @property
    def exists(self) -> bool:
        return self._path.exists()

    def create(self, events: Iterable[Event]) -> None:
        """Makes the file with ``events`` in it, whole or not at all."""
        with _told(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            os.close(handle)
            scratch = Path(name)
            try:
                scratch.chmod(0o644)
                with contextlib.closing(_connect(scratch, "rw")) as connection:
                    connection.execute(f"PRAGMA application_id={_APPLICATION}")
                    connection.execute(f"PRAGMA user_version={_SCHEMA}")
                    connection.execute("BEGIN")
                    with connection:
                        connection.execute(_TABLE)
                        _insert(connection, events)
                scratch.rename(self._path)
            except BaseException:
                scratch.unlink(missing_ok=True)
                raise
            sync_directory(self._path.parent)

    def append(self, *events: Event) -> None:
        """Adds events in one transaction."""
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                _insert(connection, events)

    def events(self) -> list[Event]:
        """All of them, the oldest first; what was read before is not read again."""
        with self._turn, self._open() as connection:
            if not self._has_read(connection):
                self._read, self._last = [], ""
            for event, digest in self._sound(connection, len(self._read), self._last):
                self._read.append(event)
                self._last = digest
            return list(self._read)

    def salvaged(self) -> list[Event]:
        """Of a file that may be damaged: the events before the first row that is not sound."""
        found = list[Event]()
        with contextlib.suppress(RegistryError), self._open() as connection:
            for event, _ in self._sound(connection, 0, ""):
                found.append(event)
        return found

    def _has_read(self, connection: sqlite3.Connection) -> bool:
        """Whether the last row read is still there: the file may be another one by now."""
        row = connection.execute("SELECT digest FROM events WHERE id = ?", (len(self._read),)).fetchone()
        return not self._read or row == (self._last,)

    def _sound(self, connection: sqlite3.Connection, count: int, before: str) -> Iterator[tuple[Event, str]]:
        """The events after the first ``count``, of which the last has the digest ``before``; each with its digest."""
        rows = connection.execute(
            "SELECT id, at_s, kind, release, data, digest FROM events WHERE id > ? ORDER BY id", (count,)
        )
        for position, (number, at_s, kind, release, data, digest) in enumerate(rows, start=count + 1):
            before = _digest(before, number, at_s, kind, release, data)
            if (number, digest) != (position, before) or kind not in KINDS:
                raise _damaged(self._path, f"row {position} was changed or is missing")
            yield Event(at_s=at_s, kind=kind, release=release, data=json.loads(data)), digest

    def check(self) -> None:
        """Returns if the whole file is sound."""
        with self._open() as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(1)") if row[0] != "ok"]
        if found:
            raise _damaged(self._path, str(found[0]).splitlines()[0])
        with self._turn:
            self._read, self._last = [], ""
        self.events()

    def set_aside(self) -> str:
        """Renames the file to a free name, which it returns; its journal, if any, likewise."""
        free = (f"{self._path.name}.unusable-{number}" for number in count(1))
        name = next(name for name in free if not self._path.with_name(name).exists())
        with _told(self._path):
            for suffix in ("-journal", "-wal", "-shm", ""):
                old = self._path.with_name(self._path.name + suffix)
                if old.exists():
                    old.rename(self._path.with_name(name + suffix))
        return name

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with _told(self._path):
            _check_header(self._path)
            # A journal that a kill left is rolled back by whoever comes next, who has to be able to write for that.
            mode = "rw" if os.access(self._path, os.W_OK) and os.access(self._path.parent, os.W_OK) else "ro"
            with contextlib.closing(_connect(self._path, mode)) as connection:
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                (schema,) = connection.execute("PRAGMA user_version").fetchone()
                if application != _APPLICATION:
                    raise _damaged(self._path, "it is not an index of this project")
                if schema > _SCHEMA:
                    raise RegistryError(
                        f"{self._path} has schema {schema}, expected at most {_SCHEMA}; update fleetdraft"
                    )
                yield connection


def sync_directory(path: Path) -> None:
    """Returns once the names in a directory are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_WAIT_S, isolation_level=None
    )
    try:
        connection.execute("PRAGMA synchronous=EXTRA").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _insert(connection: sqlite3.Connection, events: Iterable[Event]) -> None:
    last = connection.execute("SELECT id, digest FROM events ORDER BY id DESC LIMIT 1").fetchone()
    number, before = last or (0, "")
    for event in events:
        number += 1
        row = (number, float(event.at_s), event.kind, event.release, json.dumps(event.data, ensure_ascii=False))
        before = _digest(before, *row)
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", (*row, before))


def _digest(before: str, *row: object) -> str:
    return hashlib.sha256(json.dumps([before, *row]).encode()).hexdigest()


def _check_header(path: Path) -> None:
    with path.open("rb") as handle:
        if handle.read(len(_MAGIC)) != _MAGIC:
            raise _damaged(path, "it does not begin as a database")


def _damaged(path: Path, what: str) -> RegistryError:
    return RegistryError(
        f"{path} is damaged: {what}; 'fleetdraft registry verify {path.parent} --repair' sets it aside and makes "
        "another from the releases"
    )


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in _ADVICE:
            raise RegistryError(f"{path} cannot be read or written: {error}; {_ADVICE[code]}") from error
        raise _damaged(path, str(error)) from error
    except (ValueError, TypeError, RecursionError) as error:  # a row of other types than its columns
        raise _damaged(path, str(error).splitlines()[0]) from error
    except OSError as error:
        raise RegistryError(f"{error.filename or path} cannot be read or written: {error.strerror}") from error
