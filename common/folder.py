"""The folder of a run: one run at a time, one set of settings, and gone on with only when asked."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .files import check_replaceable, read_json, write_json


def claim(folder: Path, marker: str, asked: object, *, what: str, resume: bool) -> None:
    """Writes what was asked for into ``marker``, or checks that a run to go on with asked for the same.

    Args:
      asked: settings; values that JSON does not know are written as text.
      what: ``run`` or a narrower word for messages.

    Raises:
      ConfigError: there is such a run and none is to be gone on with, the other way round, or it asked for another.
      UserError: the folder holds something else, or cannot be written.
    """
    path, plain = folder / marker, _plain(asked)
    if not path.exists():
        if resume:
            raise ConfigError(f"{folder} holds no {what} to go on with; start one without --resume")
        check_replaceable(folder, marker)
        write_json(path, plain)
    elif not resume:
        raise ConfigError(f"{folder} already holds a {what}; go on with --resume, or choose another --out")
    elif read_json(path) != plain:
        raise ConfigError(f"{folder} holds a {what} of other settings; choose another --out")


def withdraw(folder: Path, marker: str, *directories: str) -> None:
    """Takes back what a run has written that ended before its work began; the folder stays, free for another run."""
    for name in directories:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / ".lock").unlink(missing_ok=True)
    (folder / marker).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the folder for as long as the context lasts.

    Raises:
      ConfigError: another process is at work in it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{folder} is in use by another process; wait for it, or stop it") from error
        yield


def _plain(value: object) -> Any:
    """What ``value`` is after a trip through JSON, so that it compares with a file's content."""
    return json.loads(json.dumps(value, default=str))
