"""The folder that a run writes: one process at a time works in it, and what it kept for itself is whole or told.

It does not know what is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.files import read_json
from ...common.folder import locked

_LOCK = ".lock"


@contextmanager
def occupied(out: Path, check: Callable[[], None]) -> Iterator[None]:
    """Keeps other processes out of a folder for as long as the context lasts.

    Args:
      out: made where it is missing, and removed again where a mistake is found before anything is in it.
      check: raises if the folder is not to be written; asked first, so that nothing is left in such a one, and again
        once others are kept out.

    Raises:
      ConfigError: another process is at work in it.
    """
    check()
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        check()
        try:
            yield
        except UserError:
            if new and is_free(out):
                shutil.rmtree(out)
            raise


def is_free(out: Path) -> bool:
    """Whether a folder is missing or holds nothing, but for the lock of a run that ended before its work began."""
    return not out.is_dir() or all(path.name == _LOCK for path in out.iterdir())


def read_kept(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object that a run has written.

    Raises:
      UserError: it is damaged; the message ends with the remedy.
    """
    try:
        kept = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is damaged; {remedy}") from error
    if not isinstance(kept, dict):
        raise UserError(f"{path} is damaged; {remedy}")
    return kept
