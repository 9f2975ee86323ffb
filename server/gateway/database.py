"""The gateway's database: its tables, and how it is opened. It does not know what the rows are for."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ...common.errors import ConfigError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
  device TEXT PRIMARY KEY,
  hash BLOB NOT NULL UNIQUE,
  made REAL NOT NULL,
  expires REAL NOT NULL,
  revoked REAL,
  seen REAL,
  family TEXT NOT NULL DEFAULT '',
  app_version TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS tokens_seen ON tokens (seen);
CREATE TABLE IF NOT EXISTS cohorts (
  number INTEGER PRIMARY KEY,
  key TEXT NOT NULL,
  kind TEXT NOT NULL,
  request TEXT NOT NULL,
  opened REAL NOT NULL,
  closes REAL NOT NULL,
  closed REAL,
  failure TEXT NOT NULL DEFAULT '',
  about TEXT NOT NULL,
  sums TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS tasks (
  id TEXT PRIMARY KEY,
  cohort INTEGER NOT NULL,
  device TEXT NOT NULL,
  family TEXT NOT NULL,
  issued REAL NOT NULL,
  expires REAL NOT NULL,
  outcome TEXT NOT NULL,
  reason TEXT NOT NULL DEFAULT '',
  head BLOB,
  UNIQUE (cohort, device)
) STRICT;
CREATE INDEX IF NOT EXISTS tasks_outcome ON tasks (cohort, outcome);
"""

_BUSY_S = 2.0


def open_database(path: Path) -> sqlite3.Connection:
    """The database at ``path``, made where there is none; several processes may have it open.

    Guarantees:
      - What was written outlives a killed process; in a ``durable`` transaction, a power failure as well.

    Raises:
      ConfigError: it cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_SCHEMA)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{path} cannot be used as the gateway's database: {error}") from error
    return database


@contextlib.contextmanager
def durable(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, on disk when the context ends."""
    database.execute("PRAGMA synchronous = FULL")
    try:
        with transaction(database):
            yield
    finally:
        database.execute("PRAGMA synchronous = NORMAL")


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
