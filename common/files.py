"""Files that are either whole or absent. It does not know what is in them."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes ``data`` so that a reader, or a kill at any moment, sees the old file or the new one.

    A link stays, and what it points to is written. A pipe or a device stays too: the bytes go into it as they come.

    Args:
      mode: permissions from the first byte on; 0o600 for what is private.

    Raises:
      OSError: it cannot be written; ``filename`` is ``path``.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data, mode)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # not a scratch file's name, or none
        raise


def _replace(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as handle:
            os.fchmod(fd, mode)
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def check_replaceable(path: Path, marker: str) -> None:
    """Returns if ``path`` may be written as a directory of the kind that holds a file ``marker``.

    Raises:
      UserError: it is a file, a directory of something else, or lies where nothing can be written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, expected a directory, new or written by this command")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).is_file():
        raise UserError(
            f"{path} holds something else (no {marker} in it) and is not replaced; choose another directory"
        )
    _check_parent(path)


def check_file(path: Path | None) -> None:
    """Returns if a file can be written at ``path``, or if there is none to write.

    Raises:
      UserError: it is a directory, or lies where nothing can be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path} is a directory, expected the name of a file")
    if path.is_socket() or path.is_block_device():
        raise UserError(f"{path} is a socket or a disk, expected the name of a file, or a pipe")
    if path.exists() and not path.is_file():
        return  # a pipe or a terminal; to open a pipe on trial would wait for its reader
    _check_parent(path.resolve())


def _check_parent(path: Path) -> None:
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):  # permissions do not tell: a disk may be read-only, and root is let in
            return
    except OSError as error:
        raise UserError(f"{path} cannot be written: {parent} is not a directory that can be written to") from error


@contextlib.contextmanager
def directory_written_whole(path: Path, marker: str) -> Iterator[Path]:
    """Yields a scratch directory that becomes ``path`` on success and disappears on failure.

    An existing ``path`` is replaced only once the new one is complete.

    Raises:
      UserError: as ``check_replaceable``.
    """
    check_replaceable(path, marker)
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if path.exists():
            old = scratch.with_name(scratch.name + ".old")
            path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old)
        else:
            scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
