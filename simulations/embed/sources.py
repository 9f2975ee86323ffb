"""The standard library's source texts: what is read, and what is left out as tests, tables or build output.

It does not know users, models or tokens.
"""

from __future__ import annotations

import ast
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from .errors import SourcesMissing

LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__", "_bundled"}
)
"""Tests and other people's code; `_bundled` holds pip's wheels."""

LEFT_OUT_FILES = ("_sysconfigdata*", "config-*/*", "html/entities.py", "__phello__/*")
"""Build output, which differs between machines, and tables of literals."""

CODEC_TABLE_MARKS = ("decoding_table", "decoding_map")
"""Names that only the generated character tables in `encodings/` define."""

TOPICS = "pydoc_data/topics.py"
"""One dict literal with the language reference as prose; its values are the documents, not its escapes."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One text of the standard library.

    `path` is relative to the library's root, with `/`; a topic of the reference has its name after `#`.
    """

    path: str
    text: str


def stdlib_root() -> Path:
    """Returns the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_sources(root: Path) -> tuple[Source, ...]:
    """Reads every source text that is not left out, in order of path.

    Guarantees:
      - Equal files give equal results, whatever the file system's order.

    Raises:
      SourcesMissing: there is no `.py` text below `root`, as in a Python packed into a zip file.
    """
    found = tuple(source for path in sorted(_paths(root)) for source in _read(root, path))
    if not found:
        raise SourcesMissing(f"{root} holds no standard library sources; run a Python that was installed with them")
    return found


def _paths(root: Path) -> Iterator[PurePosixPath]:
    """Yields the files that are not left out; site-packages is not even looked into."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT_FOLDERS]
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        paths = (here / name for name in files if name.endswith(".py"))
        yield from (path for path in paths if not any(fnmatch(str(path), pattern) for pattern in LEFT_OUT_FILES))


def _read(root: Path, path: PurePosixPath) -> Iterator[Source]:
    text = (root / path).read_text(encoding="utf-8", errors="replace")
    if str(path) == TOPICS:
        yield from _topics(text)
    elif text.strip() and not _is_codec_table(path, text):
        yield Source(path=str(path), text=text)


def _is_codec_table(path: PurePosixPath, text: str) -> bool:
    return path.parts[0] == "encodings" and any(mark in text for mark in CODEC_TABLE_MARKS)


def _topics(text: str) -> Iterator[Source]:
    assigned = [node.value for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    for name, prose in sorted(ast.literal_eval(assigned[0]).items()):
        yield Source(path=f"{TOPICS}#{name}", text=prose)
