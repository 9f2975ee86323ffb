"""What a device has learned, in one private SQLite file: blobs, lessons, decisions. It knows bytes and names only.

Everything in it is made from a user's texts. It belongs on the device; no message carries it.

    killed at any moment      nothing that was committed is lost; a transaction is there whole or not at all
    loss of power             the newest transactions at most, never one without those before it
    a damaged value           dropped with a notice; the rest stays
    a damaged file            set aside under another name with a notice; the state begins anew
    disk full, read-only      one error for each attempt; the file stays as it was
    the clock is set back     a lesson of the future counts as written now: it may go early, never late

What is on the disk, and how: ``state_file.py``.
"""

import contextlib
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...common.directory_lock import DirectoryLock
from ...common.errors import ConfigError, ModelError, UserError
from . import state_file as file

COUNTERS = "counters/"
"""By convention: blobs ``counters/<target>`` are JSON objects as of ``DraftCounters.to_json``."""
DECISIONS_KEPT = 1000


@dataclass(frozen=True, kw_only=True)
class StateConfig:
    """How long and how much is kept.

    Raises:
      ConfigError: a value out of range.
    """

    ttl_s: float = 30 * 86_400.0
    """Lessons older than this are deleted, and files set aside."""
    max_bytes: int = 256 << 20
    """Of blobs, lessons and decisions together; the oldest lessons go first."""

    def __post_init__(self) -> None:
        if not 0 < self.ttl_s < math.inf:
            raise ConfigError(f"ttl_s is {self.ttl_s}, expected a finite number of seconds > 0")
        if not 1 <= self.max_bytes <= 1 << 30:
            raise ConfigError(f"max_bytes is {self.max_bytes}, expected 1 to {1 << 30}")


@dataclass(frozen=True, kw_only=True)
class StoredBlob:
    """A blob without its bytes; ``digest`` of them with its name, in hex."""

    name: str
    written_s: float
    size_bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class StoredRow:
    """A lesson or a decision. name: of a lesson its target's family, of a decision empty. written_s: since 1970."""

    id: int
    name: str
    written_s: float
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The lessons of one family, counted."""

    family: str
    lessons: int
    size_bytes: int
    oldest_s: float
    newest_s: float


class State:
    """An open state. Threads may share it: one at a time is in a transaction, the others wait for its end.

    Made by ``open`` or ``existing``; one process at a time holds a directory, until ``close``.
    """

    def __init__(
        self,
        path: Path,
        lock: DirectoryLock,
        connection: sqlite3.Connection,
        meta: file.StateMeta,
        config: StateConfig,
        clock: Callable[[], float],
    ) -> None:
        self.path, self.meta = path, meta
        self.notices: list[str] = []
        """One line each about what was dropped or set aside, for the user."""
        self._lock, self._connection = lock, connection
        self._config, self._clock = config, clock
        self._turn, self._inside, self._pid = threading.RLock(), False, os.getpid()
        self._heals = True

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        base: str,
        layout: str,
        config: StateConfig | None = None,
        clock: Callable[[], float] = time.time,
    ) -> "State":
        """Opens a drafter's state; makes one where there is none, or none that can be used.

        Args:
          directory: made if need be, for its owner alone.
          base, layout: fingerprints of the drafter's frozen weights and of the layout of its adapters.
          clock: seconds since 1970.

        Raises:
          FingerprintError: the state of another drafter; it is left as it is.
          UserError: another process has it open, or a newer version or another program wrote it; or the directory
            cannot be used. What is there is left as it is.
        """
        config = config or StateConfig()
        made_private = file.prepare(directory)
        lock, path = DirectoryLock(directory, file.LOCK), directory / file.NAME
        try:
            file.check_regular(directory)
            connection, meta, notice = _opened(path, base, layout, clock())
        except BaseException:
            lock.release()
            raise
        state = cls(path, lock, connection, meta, config, clock)
        try:
            state.notices += [line for line in (made_private, notice) if line]
            state._tidy()
        except BaseException:
            state.close()
            raise
        return state

    @classmethod
    def existing(cls, directory: Path, clock: Callable[[], float] = time.time) -> "State":
        """Opens the state in ``directory``, of whichever drafter, and changes nothing; ``notices`` say what is damaged.

        Where nothing can be written it can be read still, if the last process that had it open closed it.

        Raises:
          ModelError: it is damaged. UserError: there is none, or as for ``open``.
        """
        path = directory / file.NAME
        if not path.exists():
            raise UserError(f"no state in {directory}, expected a directory that 'adapt' or 'generate' filled")
        writable = file.writable(directory) and file.writable(path)
        lock = DirectoryLock(directory, file.LOCK, writable)
        try:
            file.check_regular(directory)
            connection, meta = _judged(path, writable)
        except BaseException:
            lock.release()
            raise
        state = cls(path, lock, connection, meta, StateConfig(), clock)
        state._heals = False
        with file.told(path):
            damaged = file.damaged_rows(connection)
        state.notices += [f"{_thing(table, name)} is damaged and will be dropped" for table, _, name in damaged]
        return state

    def close(self) -> None:
        """Ends the work with the state and lets other processes in; a second call does nothing."""
        with self._turn:
            if os.getpid() == self._pid:  # what a forked child has is its parent's
                self._connection.close()
            self._lock.release()

    def __enter__(self) -> "State":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- changes --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside are committed together at its end, or none if an error leaves it. Inner ones join it.

        Raises:
          UserError: the file cannot be written; it stays as it was before the outermost transaction.
        """
        with self._turn:
            self._check_process()
            if self._inside:
                yield
                return
            self._inside = True
            try:
                with file.told(self.path):
                    self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._bound()
                self._run("COMMIT")
            finally:
                self._inside = False
                if self._connection.in_transaction:
                    with file.told(self.path):
                        self._connection.execute("ROLLBACK")

    def put(self, name: str, data: bytes) -> None:
        """Writes a blob in place of an older one of its name."""
        key = file.stored(name)
        values = (key, self._clock(), file.digest(key, data), data)
        with self.transaction():
            self._run("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", values)

    def put_all(self, prefix: str, blobs: Mapping[str, bytes]) -> None:
        """Writes blobs under ``prefix`` and their names, and deletes those under ``prefix`` that are not among them."""
        with self.transaction():
            for blob in self.blobs():
                if blob.name.startswith(prefix) and blob.name.removeprefix(prefix) not in blobs:
                    self.delete(blob.name)
            for name, data in blobs.items():
                self.put(prefix + name, data)

    def delete(self, name: str) -> None:
        """Deletes a blob; none of that name is no error."""
        with self.transaction():
            self._run("DELETE FROM blobs WHERE name = ?", (file.stored(name),))

    def add_lesson(self, family: str, data: bytes, number: int | None = None) -> int:
        """Writes the lesson of one text and returns its id: ``number``, else one higher than any before.

        Args:
          family: of the target that wrote it.
          number: of a memory that counts its lessons itself; an older lesson of that number is replaced.
        """
        with self.transaction():
            return self._append("lessons", family, data, number)

    def delete_lessons(self, ids: Iterable[int]) -> None:
        """Deletes lessons by id; those that are gone already are no error."""
        with self.transaction():
            for row in ids:
                self._run("DELETE FROM lessons WHERE id = ?", (row,))

    def add_decision(self, data: bytes) -> int:
        """Writes a decision of the device, by convention a JSON object; the newest ``DECISIONS_KEPT`` stay."""
        with self.transaction():
            row = self._append("decisions", "", data)
            self._run("DELETE FROM decisions WHERE id <= ?", (row - DECISIONS_KEPT,))
            return row

    def expire(self) -> int:
        """Deletes lessons older than ``ttl_s`` and returns how many; files set aside go likewise."""
        now = self._clock()
        with self.transaction():
            self._run("UPDATE lessons SET written_s = ? WHERE written_s > ?", (now, now))
            gone = self._run("DELETE FROM lessons WHERE written_s < ?", (now - self._config.ttl_s,)).rowcount
        with file.told(self.path):
            for path in file.unusable(self.path.parent):
                if file.older_than(path, self._config.ttl_s, now):
                    file.wipe(path)
        return gone

    def purge(self, lessons_only: bool = False) -> None:
        """Deletes everything learned, or the lessons alone, and overwrites where it was; files set aside go as well.

        A kill leaves all of it or nothing that can be read; called again, it ends what was begun.
        """
        with self._turn:
            with self.transaction():
                for table in ("lessons",) if lessons_only else file.CONTENT:
                    self._run(f"DELETE FROM {table}")
                if not lessons_only:
                    self._run("DELETE FROM sqlite_sequence")
            # Zeros over what was deleted, in place, before the file is made smaller.
            self._run("PRAGMA wal_checkpoint(FULL)").fetchall()
            self._run("VACUUM")
            with file.told(self.path):
                self._renew_log()
                for path in file.unusable(self.path.parent):
                    file.wipe(path)

    # --- reading --------------------------------------------------------------------------------------------------

    def get(self, name: str) -> bytes | None:
        """A blob; None where there is none, or where it is damaged, which is dropped with a notice."""
        key = file.stored(name)
        with self._reading():
            found = self._run("SELECT rowid, digest, data FROM blobs WHERE name = ?", (key,)).fetchone()
            if found is None:
                return None
            row, own, data = found
            if own == file.digest(key, data):
                return bytes(data)
            self._drop([("blobs", row, repr(name))])
        return None

    def get_all(self, prefix: str) -> dict[str, bytes]:
        """The blobs that ``put_all`` wrote, by their names without ``prefix``."""
        with self._reading():
            names = [blob.name for blob in self.blobs() if blob.name.startswith(prefix)]
            found = {name.removeprefix(prefix): self.get(name) for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def blobs(self) -> list[StoredBlob]:
        """What is held, by name."""
        with self._reading():
            rows = self._run("SELECT name, written_s, length(data), digest FROM blobs ORDER BY name").fetchall()
        return [
            StoredBlob(name=file.readable(name), written_s=at, size_bytes=size, digest=own.hex())
            for name, at, size, own in rows
        ]

    def lessons(self) -> list[StoredRow]:
        """All lessons, the oldest first; damaged ones are dropped with a notice."""
        return self._rows("lessons", -1)

    def decisions(self, newest: int = DECISIONS_KEPT) -> list[StoredRow]:
        """The newest decisions, the oldest of them first."""
        return self._rows("decisions", newest)

    def shelves(self) -> list[Shelf]:
        """How many lessons are held, by family."""
        with self._reading():
            rows = self._run(
                "SELECT name, count(*), sum(length(data)), min(written_s), max(written_s) FROM lessons "
                "GROUP BY name ORDER BY name"
            ).fetchall()
        return [
            Shelf(family=file.readable(name), lessons=held, size_bytes=size, oldest_s=oldest, newest_s=newest)
            for name, held, size, oldest, newest in rows
        ]

    @property
    def size_bytes(self) -> int:
        """Of the content that ``max_bytes`` bounds."""
        with self._reading():
            return sum(
                self._run(f"SELECT coalesce(sum(length(data)), 0) FROM {table}").fetchone()[0] for table in file.CONTENT
            )

    # --- inside ---------------------------------------------------------------------------------------------------

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UserError(f"{self.path} was opened by process {self._pid}, expected one that has it open itself")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._turn:
            self._check_process()
            yield

    def _run(self, sql: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Runs a statement, inside the transaction if there is one."""
        if self._inside and not self._connection.in_transaction:
            raise UserError(f"{self.path} could not be written, and the transaction was given up")
        with file.told(self.path):
            return self._connection.execute(sql, values)

    def _append(self, table: str, name: str, data: bytes, number: int | None = None) -> int:
        key = file.stored(name)
        values = (number, key, self._clock(), file.digest(key, data), data)
        return int(self._run(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?)", values).lastrowid or 0)

    def _rows(self, table: str, newest: int) -> list[StoredRow]:
        rows, bad = list[StoredRow](), list[int]()
        columns = "id, name, written_s, digest, data"
        with self._reading():
            for row, key, at, own, data in self._run(
                f"SELECT * FROM (SELECT {columns} FROM {table} ORDER BY id DESC LIMIT ?) ORDER BY id", (newest,)
            ).fetchall():
                if own == file.digest(key, data):
                    rows.append(StoredRow(id=row, name=file.readable(key), written_s=at, data=data))
                else:
                    bad.append(row)
            if bad:
                self._drop([(table, row, str(row)) for row in bad])
        return rows

    def _drop(self, damaged: list[tuple[str, int, str]]) -> None:
        """Deletes damaged rows, (table, row, name), and says so; where nothing may be changed, neither."""
        if not self._heals:
            return
        self.notices += [f"{_thing(table, name)} was damaged and is dropped" for table, _, name in damaged]
        with self.transaction():
            for table, row, _ in damaged:
                self._run(f"DELETE FROM {table} WHERE rowid = ?", (row,))

    def _bound(self) -> None:
        """Deletes the oldest lessons until the content fits.

        Raises:
          UserError: it does not without any.
        """
        surplus = self.size_bytes - self._config.max_bytes
        if surplus <= 0:
            return
        gone = list[int]()
        for row, size in self._run("SELECT id, length(data) FROM lessons ORDER BY id").fetchall():
            if surplus <= 0:
                break
            gone.append(row)
            surplus -= size
        if surplus > 0:
            raise UserError(
                f"{self.path} would hold {self._config.max_bytes + surplus} bytes without any lesson, expected at most "
                f"max_bytes = {self._config.max_bytes}; raise it, or purge the state"
            )
        self.delete_lessons(gone)

    def _tidy(self) -> None:
        """What is due at the opening; where the disk does not let us, it is due again the next time."""
        with file.told(self.path):
            self._connection.execute("PRAGMA journal_mode=WAL").fetchall()
            damaged = file.damaged_rows(self._connection)
        try:
            if damaged:
                self._drop(damaged)
            self.expire()
        except UserError as error:
            self.notices.append(f"old lessons are still there: {error}")

    def _renew_log(self) -> None:
        """Overwrites the write-ahead log, which SQLite would only unlink."""
        log = self.path.with_name(self.path.name + "-wal")
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(log.open("r+b")) if log.exists() else None
            self._connection.close()
            if handle is not None:
                file.overwrite(handle.fileno())
        self._connection = file.connect(self.path)


def _judged(path: Path, writable: bool = True) -> tuple[sqlite3.Connection, file.StateMeta]:
    """A connection to a sound state.

    Raises:
      ModelError, UserError: as ``state_file.judge``; nothing is open then.
    """
    with file.told(path):
        file.check_header(path)
        connection = file.connect(path) if writable else file.connect_read_only(path)
    try:
        return connection, file.judge(path, connection)
    except BaseException:
        connection.close()
        raise


def _opened(path: Path, base: str, layout: str, now_s: float) -> tuple[sqlite3.Connection, file.StateMeta, str]:
    """A state of this drafter, and a line for the user where an older one was set aside."""
    notice = ""
    try:
        if path.exists():
            connection, meta = _judged(path)
            try:
                meta.check(path, base, layout)
            except BaseException:
                connection.close()
                raise
            return connection, meta, ""
        if any(journal.exists() for journal in file.journals(path)):
            raise ModelError(f"{path} is gone, but not its journal")
    except ModelError as error:
        with file.told(path):
            notice = f"{error}; it is now {file.set_aside(path, now_s)}, and the state begins anew"
    with file.told(path):
        file.create(path, base, layout, now_s)
    connection, meta = _judged(path)
    return connection, meta, notice


def _thing(table: str, name: str) -> str:
    return f"the state's {table.removesuffix('s')} {name}"


def purge(directory: Path, lessons_only: bool = False) -> None:
    """Purges the state in ``directory``, of whichever drafter; one that cannot be read goes as a whole.

    Unless ``lessons_only``, no state is left, and the directory may serve another drafter.

    Raises:
      UserError: there is none, it is in use, or it cannot be written.
      ModelError: it cannot be read, so its lessons cannot be told from the rest.
    """
    try:
        with State.existing(directory) as state:
            state.purge(lessons_only)
    except ModelError as error:
        if lessons_only:
            raise ModelError(f"{error}; purge all of it, without --lessons") from error
    if lessons_only:
        return
    lock, path = DirectoryLock(directory, file.LOCK), directory / file.NAME
    try:
        with file.told(path):
            # The journals first: one that stayed behind alone would be set aside, not lost.
            for each in (*file.journals(path), path, *file.unusable(directory)):
                file.wipe(each)
    finally:
        lock.release()
