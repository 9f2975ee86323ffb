"""The corpus: every source text with its owner (a user, or nobody) and whether it is held out.

It does not know tokens, models or prompts.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from .errors import SourcesMissing
from .sources import Source, read_sources, stdlib_root

Role = Literal["target", "drafter"]

USERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "asyncio": ("asyncio/",),
        "email": ("email/",),
        "http": ("http/",),
        "idlelib": ("idlelib/",),
        "importlib": ("importlib/",),
        "logging": ("logging/",),
        "multiprocessing": ("multiprocessing/",),
        "tkinter": ("tkinter/",),
        "turtle": ("turtle.py", "turtledemo/"),
        "unittest": ("unittest/",),
        "urllib": ("urllib/",),
        "xml": ("xml/",),
    }
)
"""Twelve users and the paths they own: large packages that Python 3.11, 3.12 and 3.13 all have."""

NOBODY = ""
"""The owner of the general text, which every model may read."""

USER_HELD_OUT_SHARE = 0.12
GENERAL_HELD_OUT_SHARE = 0.03
SMALLEST_HELD_OUT_BYTES = 1500


@dataclass(frozen=True, kw_only=True)
class Document:
    """One source text, its owner, and whether it is kept away from training."""

    path: str
    text: str
    owner: str
    held_out: bool = False

    @property
    def size_bytes(self) -> int:
        """The length of the text in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """All documents in order of path.

    Guarantees:
      - No document is both held out and trained on.
      - What the drafter reads has no document of any user.
    """

    documents: tuple[Document, ...]

    def read_by(self, role: Role) -> tuple[Document, ...]:
        """Returns the training documents of a role: all of them for a target, the general ones for the drafter."""
        return tuple(d for d in self.documents if not d.held_out and (role == "target" or d.owner == NOBODY))

    def held_out(self, owners: Iterable[str]) -> tuple[Document, ...]:
        """Returns the documents of these owners that no model is trained on."""
        wanted = frozenset(owners)
        return tuple(d for d in self.documents if d.held_out and d.owner in wanted)

    def of_user(self, user: str, *, held_out: bool) -> tuple[Document, ...]:
        """Returns one user's documents on one side of the division."""
        return tuple(d for d in self.documents if d.owner == user and d.held_out is held_out)

    @property
    def digest(self) -> str:
        """The SHA-256 of every path, owner, division and text."""
        total = hashlib.sha256()
        for d in self.documents:
            for field in (d.path, d.owner, str(d.held_out), d.text):
                total.update(hashlib.sha256(field.encode()).digest())
        return total.hexdigest()


def load_corpus() -> Corpus:
    """Reads and divides the running Python's standard library.

    Raises:
      SourcesMissing: the library has no sources, or a user owns none of them.
    """
    return divide(read_sources(stdlib_root()))


def divide(sources: Iterable[Source]) -> Corpus:
    """Gives each source its owner and holds some whole files of every owner out.

    Guarantees:
      - The result depends on the paths and texts only, not on their order.

    Raises:
      SourcesMissing: a user owns no source.
    """
    documents = [Document(path=s.path, text=s.text, owner=owner_of(s.path)) for s in sources]
    divided: list[Document] = []
    for owner in (NOBODY, *USERS):
        owned = [d for d in documents if d.owner == owner]
        if not owned:
            raise SourcesMissing(f"Python {platform.python_version()} has no sources of {owner or 'general modules'}")
        share = USER_HELD_OUT_SHARE if owner else GENERAL_HELD_OUT_SHARE
        divided += _hold_out(owned, share)
    return Corpus(tuple(sorted(divided, key=lambda d: d.path)))


def owner_of(path: str) -> str:
    """Returns the user who owns a path, or `NOBODY`."""
    return next((user for user, prefixes in USERS.items() if path.startswith(prefixes)), NOBODY)


def _hold_out(documents: Sequence[Document], share: float) -> list[Document]:
    """Marks files, in the order of their paths' hashes, until their share of the bytes is reached.

    A file above twice the share is never held out, so that a package of few files keeps most of its text.
    """
    total_bytes = sum(d.size_bytes for d in documents)
    chosen: set[str] = set()
    chosen_bytes = 0
    for d in sorted(documents, key=lambda d: hashlib.sha256(d.path.encode()).digest()):
        if chosen_bytes >= share * total_bytes:
            break
        if SMALLEST_HELD_OUT_BYTES <= d.size_bytes <= 2 * share * total_bytes:
            chosen.add(d.path)
            chosen_bytes += d.size_bytes
    return [replace(d, held_out=d.path in chosen) for d in documents]
