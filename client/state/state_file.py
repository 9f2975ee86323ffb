"""The SQLite file of a device's state: how it is made, judged, set aside and wiped. It does not know what is learned.

state.sqlite3               the state; mode 0600
state.sqlite3-wal           what was committed last, while a process has it open or after it was killed
state.sqlite3.unusable-N    a state that could not be used, with its journals ``.unusable-N-wal``
state.sqlite3.new           a state that is being made
state.lock                  who has the state open
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from ...common.errors import FingerprintError, ModelError, UserError

NAME = "state.sqlite3"
LOCK = "state.lock"
SCHEMA = 1

_PREFIX = "state."
_JOURNALS = ("-wal", "-journal", "-shm")
#: "FDst": says whose file it is, as SQLite provides for it.
_APPLICATION = 0x46447374
#: ``meta`` is the same in every version; the rest may differ. Data comes last: what is before is read without it.
_TABLES = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY, digest BLOB NOT NULL, data BLOB NOT NULL) STRICT",
    "CREATE TABLE blobs (name BLOB PRIMARY KEY, written_s REAL NOT NULL, digest BLOB NOT NULL, data BLOB NOT NULL)"
    " STRICT",
    "CREATE TABLE lessons (id INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB NOT NULL, written_s REAL NOT NULL,"
    " digest BLOB NOT NULL, data BLOB NOT NULL) STRICT",
    "CREATE TABLE decisions (id INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB NOT NULL, written_s REAL NOT NULL,"
    " digest BLOB NOT NULL, data BLOB NOT NULL) STRICT",
)
CONTENT = ("blobs", "lessons", "decisions")
_MAGIC = b"SQLite format 3\0"
_WIPED = bytes(1 << 20)

# What may be wrong with SQLite's surroundings rather than with the file, and what to do about it.
_ADVICE = {
    sqlite3.SQLITE_BUSY: "close the other program that has it open",
    sqlite3.SQLITE_LOCKED: "close the other program that has it open",
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_IOERR: "check the disk and its free space",
    sqlite3.SQLITE_READONLY: "make it and its directory writable",
    sqlite3.SQLITE_CANTOPEN: "make it and its directory writable",
    sqlite3.SQLITE_PERM: "make it and its directory writable",
    sqlite3.SQLITE_NOMEM: "free some memory",
}


@dataclass(frozen=True, kw_only=True)
class StateMeta:
    """Which drafter a state belongs to.

    base, layout: fingerprints of the drafter's frozen weights and of the adapters' layout. created_s: since 1970.
    """

    base: str
    layout: str
    created_s: float

    def check(self, path: Path, base: str, layout: str) -> None:
        """Returns if it is the state of this drafter.

        Raises:
          FingerprintError: it is another's.
        """
        if (self.base, self.layout) != (base, layout):
            what, own, given = (
                ("drafter", self.base, base) if self.base != base else ("layout of adapters", self.layout, layout)
            )
            raise FingerprintError(
                f"{path} was learned for another {what} ({own[:12]}…, expected {given[:12]}…); give another directory, "
                "or remove this one with 'fleetdraft state purge'"
            )


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns an error about the file or its surroundings into one line; misuse of SQLite stays a defect.

    Raises:
      ModelError: the file is damaged. UserError: it cannot be read or written now.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if type(error) not in (sqlite3.DatabaseError, sqlite3.OperationalError):
            raise
        if code in _ADVICE and not (code == sqlite3.SQLITE_READONLY and writable(path)):
            raise UserError(f"{path} cannot be read or written: {error}; {_ADVICE[code]}") from error
        raise ModelError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read or written: {error.strerror}") from error


def writable(path: Path) -> bool:
    """Whether this process may write to a file or directory, by the rights it has now."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


# --- the directory --------------------------------------------------------------------------------------------------


def prepare(directory: Path) -> str:
    """Makes a directory that only its owner can enter, or checks one that is there.

    One that is empty or holds nothing but a state becomes its owner's alone; any other keeps its mode.

    Returns:
      A line for the user where others could enter until now; else empty.

    Raises:
      UserError: it is no directory, others can write to it, or it cannot be made.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        was_there = directory.exists()
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        if not directory.is_dir():
            raise UserError(f"{directory} is a file, expected a directory for the state")
        if all(name.startswith(_PREFIX) for name in os.listdir(directory)):
            mode = stat.S_IMODE(directory.stat().st_mode)
            if mode != 0o700:
                directory.chmod(0o700)
            if was_there and mode & 0o077:
                return f"{directory} is its owner's alone now (mode {mode:04o} became 0700)"
        elif directory.stat().st_mode & 0o022:
            raise UserError(f"others can write to {directory}; run chmod 700 on it, or give another directory")
        return ""
    except OSError as error:
        raise UserError(f"{error.filename or directory} cannot be used: {error.strerror}") from error


def check_regular(directory: Path) -> None:
    """Returns if nothing under the names of a state is anything but a regular file.

    Raises:
      UserError: something is, as a link to a file elsewhere.
    """
    for path in [directory / NAME, directory / f"{NAME}.new", *journals(directory / NAME)]:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise UserError(f"{path} is no regular file, expected a state or nothing; remove it")


def journals(path: Path) -> list[Path]:
    """SQLite's files beside a database, there or not."""
    return [path.with_name(path.name + suffix) for suffix in _JOURNALS]


def unusable(directory: Path) -> list[Path]:
    """The files set aside, journals included."""
    return sorted(directory.glob(f"{NAME}.unusable-*"))


def set_aside(path: Path, now_s: float) -> str:
    """Renames a state and its journals to a free name, which it returns; journals without a state too.

    Their time of writing becomes ``now_s``, from which ``older_than`` counts.
    """
    free = (path.with_name(f"{path.name}.unusable-{number}") for number in count(1))
    aside = next(at for at in free if not any(os.path.lexists(name) for name in (at, *journals(at))))
    # The journals first: one that stayed behind alone would be taken for the new state's.
    for old, new in [*zip(journals(path), journals(aside), strict=True), (path, aside)]:
        if old.exists():
            os.utime(old, (now_s, now_s))
            old.chmod(0o600)
            old.rename(new)
    return aside.name


def wipe(path: Path) -> None:
    """Overwrites a file with zeros and removes it; none is no error."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        path.unlink()
        overwrite(file.fileno())


def overwrite(fd: int) -> None:
    """Overwrites an open file with zeros, on the disk too."""
    length = os.fstat(fd).st_size
    for offset in range(0, length, len(_WIPED)):
        os.pwrite(fd, _WIPED[: length - offset], offset)
    os.fsync(fd)


# --- the file -------------------------------------------------------------------------------------------------------


def connect(path: Path) -> sqlite3.Connection:
    """Opens a database for this process alone; transactions are begun and ended by hand.

    A commit is in the write-ahead log when it returns: a kill loses nothing, a loss of power the newest commits at
    most, never the order (synchronous NORMAL). What is deleted is overwritten; nothing goes to a temporary file.
    """
    # Absolute: a name that begins with "file:" would be read as a URI.
    connection = sqlite3.connect(path.absolute(), timeout=0, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("locking_mode=EXCLUSIVE", "synchronous=NORMAL", "secure_delete=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Opens a database that cannot be written, of which SQLite could not read the log either.

    Raises:
      UserError: something is in the log.
    """
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise UserError(f"{path} cannot be read without its log, which needs write access; make {path.parent} writable")
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)


def create(path: Path, base: str, layout: str, now_s: float) -> None:
    """Makes an empty state, whole or not at all, readable by its owner alone from the first byte."""
    scratch = path.with_name(f"{path.name}.new")
    for left in (scratch, *journals(scratch)):
        left.unlink(missing_ok=True)
    os.close(os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    scratch.chmod(0o600)  # a umask may have taken the owner's own rights
    connection = connect(scratch)
    try:
        connection.execute(f"PRAGMA application_id={_APPLICATION}")
        connection.execute("BEGIN")
        for table in _TABLES:
            connection.execute(table)
        data = json.dumps({"schema": SCHEMA} | asdict(StateMeta(base=base, layout=layout, created_s=now_s))).encode()
        connection.execute("INSERT INTO meta VALUES (1, ?, ?)", (digest(b"", data), data))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
    finally:
        connection.close()
    scratch.rename(path)


def check_header(path: Path) -> None:
    """Returns if a file begins as a database. SQLite would remove the journals of one that does not.

    Raises:
      ModelError: it does not.
    """
    with path.open("rb") as handle:
        if not handle.read(100).startswith(_MAGIC):
            raise ModelError(f"{path} is damaged: it does not begin as a database")


def judge(path: Path, connection: sqlite3.Connection) -> StateMeta:
    """Reads what a state says of itself, after the whole file was found sound.

    Raises:
      ModelError: it cannot be used and may be set aside.
      UserError: it is sound but not for us: made by a newer version, or by another program.
    """
    with told(path):
        damage = [row[0] for row in connection.execute("PRAGMA quick_check(1)") if row[0] != "ok"]
        if damage:
            raise ModelError(f"{path} is damaged: {damage[0].splitlines()[0]}")
        tables = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if _TABLES[0] not in tables:
            if application != _APPLICATION and tables:
                raise UserError(f"{path} is a database of another program; give another directory")
            raise ModelError(f"{path} is damaged: it has no table of a state")
        return _parse(path, connection, tables)


def _parse(path: Path, connection: sqlite3.Connection, tables: set[str]) -> StateMeta:
    rows = connection.execute("SELECT digest, data FROM meta").fetchall()
    if len(rows) != 1 or rows[0][0] != digest(b"", rows[0][1]):
        raise ModelError(f"{path} is damaged: what it says of itself has another digest")
    about = json.loads(rows[0][1])
    schema = about.pop("schema")
    if schema > SCHEMA:
        raise UserError(
            f"{path} was written by a newer fleetdraft (state schema {schema}, expected {SCHEMA}); update, or give "
            "another directory"
        )
    if schema < SCHEMA or not set(_TABLES) <= tables:
        raise ModelError(f"{path} has state schema {schema} with other tables than schema {SCHEMA}")
    return StateMeta(**about)


def damaged_rows(connection: sqlite3.Connection) -> list[tuple[str, int, str]]:
    """(table, row, name for people) of all content whose digest is not that of its bytes."""
    found = []
    for table in CONTENT:
        for row, name, own, data in connection.execute(f"SELECT rowid, name, digest, data FROM {table}"):
            if own != digest(name, data):
                found.append((table, row, f"{readable(name)!r}" if table == "blobs" else f"{row}"))
    return found


def digest(name: bytes, data: bytes) -> bytes:
    """SHA-256 of a named value: neither may change, nor take the other's place."""
    return hashlib.sha256(hashlib.sha256(name).digest() + data).digest()


def stored(name: str) -> bytes:
    """A name as it is stored: any string has its own."""
    return name.encode("utf-8", "surrogatepass")


def readable(name: bytes) -> str:
    """The inverse of ``stored``; of damaged names something that can be shown."""
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return name.decode("utf-8", "replace")


def older_than(path: Path, age_s: float, now_s: float) -> bool:
    """Whether a file was last written so long ago, or in the future, of which nobody can tell."""
    return not 0 <= now_s - path.stat().st_mtime < age_s
