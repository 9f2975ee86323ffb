"""The directories of releases: written whole, read, and checked against their digests. It knows no layout and no index.

    root/releases/0003-1f2e3d4c5b6a/   number and start of the adapter's digest; a PEFT adapter directory
        carried.bin                    what the server carries to the next round, if anything

What a kill leaves half-written has a name that starts with a dot: it is never read, and the next ``write`` removes it.
"""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np

from ...common.errors import RegistryError, UserError
from ...common.files import directory_written_whole, sha256_file, write_atomic
from ...common.lora import ABOUT, LoraAdapter
from ...common.peft_format import PeftAdapter, read_object
from .index import sync_directory
from .lineage import Lineage, number_of

CARRIED = "carried.bin"
_NAME = re.compile(r"[0-9]{4,}-[0-9a-f]{12}")


class Directories:
    """The releases under one root.

    Raises:
      RegistryError: from every reading method, where a release is missing, torn or does not match its digest.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Of all whole directories, by number."""
        found = [path.name for path in self.root.glob("[0-9]*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda name: (number_of(name), name))

    def lineage(self, name: str) -> Lineage:
        """What the release says of its origin."""
        path = self.root / name / ABOUT
        try:
            lineage = Lineage.from_json(read_object(path)["lineage"])
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RegistryError(
                f"release {name!r} is missing or damaged: {error}; bring {self.root / name} back from a copy"
            ) from error
        if lineage.directory != name:
            raise RegistryError(f"{path} describes {lineage.directory}, expected {name}")
        return lineage

    def carried(self, lineage: Lineage) -> bytes:
        """What the server carries from this release to the next round; empty where that is nothing."""
        if lineage.carried is None:
            return b""
        path = self.root / lineage.directory / CARRIED
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RegistryError(f"{path} cannot be read: {error.strerror}; bring it back from a copy") from error
        if hashlib.sha256(data).hexdigest() != lineage.carried:
            raise RegistryError(f"{path}: content does not match its digest; bring it back from a copy")
        return data

    def adapter(self, lineage: Lineage) -> PeftAdapter:
        """The adapter of any layout, its content verified."""
        directory = self.root / lineage.directory
        try:
            found = PeftAdapter.read(directory)
            layout = str(read_object(directory / ABOUT).get("layout"))
        except UserError as error:
            raise RegistryError(f"release {lineage.number} cannot be used: {error}") from error
        digest = hashlib.sha256(layout.encode())
        for change in found.changes.values():
            for factor in (change.a, change.b):
                digest.update(np.ascontiguousarray(factor, dtype="<f4").tobytes())
        if digest.hexdigest() != lineage.digest:
            raise RegistryError(f"{directory}: content does not match the digest {lineage.digest[:12]}…")
        return found

    def check(self, name: str) -> Lineage:
        """The lineage of a release all of whose content was read and found sound."""
        lineage = self.lineage(name)
        self.adapter(lineage)
        self.carried(lineage)
        return lineage

    def files(self, name: str) -> dict[str, str]:
        """SHA-256 of each file of a release, by name."""
        return {path.name: sha256_file(path) for path in sorted((self.root / name).iterdir()) if path.is_file()}

    def write(self, adapter: LoraAdapter, base: str, lineage: Lineage, carried: bytes) -> None:
        """Makes the directory of a release: whole, on the disk, or not at all."""
        for torn in self.root.glob(".*"):
            shutil.rmtree(torn)
        directory = self.root / lineage.directory
        with directory_written_whole(directory, ABOUT) as scratch:
            adapter.save(scratch, base, {"lineage": lineage.to_json()})
            if lineage.carried is not None:
                write_atomic(scratch / CARRIED, carried)
            sync_directory(scratch)
        sync_directory(self.root)

    def remove(self, lineage: Lineage) -> None:
        """Takes back a release that could not be entered into the index, as far as that can be done."""
        shutil.rmtree(self.root / lineage.directory, ignore_errors=True)
