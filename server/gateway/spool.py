"""Uploads on their way in, a file each, within a bound on their sum. It knows neither tasks nor what is in them.

Files are for the gateway's user alone and go as soon as their content is in the sum.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from .refusal import too_much


class Spool:
    """Bytes by name; names are the gateway's own, never a device's words."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        self._total = sum(self._sizes.values())

    @property
    def size_bytes(self) -> int:
        """What all uploads come to."""
        return self._total

    def received(self, name: str) -> int:
        """How many bytes of an upload are there."""
        return self._sizes.get(name, 0)

    def append(self, name: str, data: bytes) -> None:
        """Adds to an upload.

        Raises:
          Refusal: there is no room; what is there stays.
        """
        if self._total + len(data) > self._limit:
            raise too_much("the gateway holds as many uploads as it may; try again later")
        fd = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.pwrite(fd, data, self.received(name)) != len(data):
                raise too_much("the gateway's disk is full; try again later")
        finally:
            os.close(fd)
        self._sizes[name] = self.received(name) + len(data)
        self._total += len(data)

    def read(self, name: str) -> bytes:
        """All of an upload; nothing, of one that was dropped, be it at this moment."""
        size = self.received(name)
        try:
            return (self._folder / name).read_bytes()[:size] if size else b""
        except FileNotFoundError:
            return b""

    def drop(self, name: str) -> None:
        """Forgets an upload, if there is one."""
        (self._folder / name).unlink(missing_ok=True)
        self._total -= self._sizes.pop(name, 0)

    def keep_only(self, names: Iterable[str]) -> None:
        """Forgets all others."""
        for name in set(self._sizes) - set(names):
            self.drop(name)
