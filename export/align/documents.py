"""Texts to pre-train on, one document at a time. It does not know tokens.

| given                                        | a document                                                          |
|----------------------------------------------|---------------------------------------------------------------------|
| `*.jsonl`                                    | a line's fields, strings or lists of strings, joined by line breaks |
| any other file                               | up to `<|endoftext|>`, or a blank line after 4,000 characters       |
| a directory saved by `datasets.save_to_disk` | a row's fields, of the split `train` where there are several        |
| any other directory                          | those of its `*.txt` and `*.jsonl` files                            |
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.files import sha256_file

SEPARATOR = "<|endoftext|>"
LONG_ENOUGH = 4000
_SAVED = ("dataset_info.json", "dataset_dict.json")


def documents(sources: Sequence[Path], fields: Sequence[str] = ("text",)) -> Iterator[str]:
    """Yields every document of all sources, in order; empty ones are left out.

    Raises:
      UserError: a source is missing, holds no document, or is not what its name says.
    """
    for source in sources:
        found = False
        for document in _documents_of(source, fields):
            if document.strip():
                found = True
                yield document
        if not found:
            raise UserError(f"{source} holds no text")


def digest(sources: Sequence[Path]) -> str:
    """SHA-256 over the content of all files of the sources, in order."""
    digests = [sha256_file(path) for source in sources for path in _files(source, "*")]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def is_held_out(document: str, share: float) -> bool:
    """Whether a document is for validation: about `share` of all, by its content alone."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:4], "big") < share * 2**32


def json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields number and object of each line that is not blank.

    Raises:
      UserError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}:{number}: {type(value).__name__}, expected an object")
        yield number, value


def _documents_of(source: Path, fields: Sequence[str]) -> Iterator[str]:
    if source.is_dir() and any((source / name).is_file() for name in _SAVED):
        rows = enumerate(_saved_rows(source), 1)
        yield from (_joined(row, fields, f"{source}, row {number}") for number, row in rows)
        return
    for path in _files(source, "*.txt", "*.jsonl"):
        if path.suffix == ".jsonl":
            yield from (_joined(row, fields, f"{path}:{number}") for number, row in json_lines(path))
        else:
            yield from _cut(_lines(path))


def _files(source: Path, *patterns: str) -> list[Path]:
    if source.is_dir():
        return sorted(path for pattern in patterns for path in source.rglob(pattern) if path.is_file())
    if not source.is_file():
        raise UserError(f"{source} does not exist, expected a file of text, a directory of such, or a data set")
    return [source]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            yield from handle
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _cut(lines: Iterable[str]) -> Iterator[str]:
    parts, size = list[str](), 0
    for line in lines:
        *ended, rest = line.split(SEPARATOR)
        for end in ended:
            yield "".join([*parts, end]).strip("\r\n")
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size >= LONG_ENOUGH and not line.strip():
            yield "".join(parts)
            parts, size = [], 0
    yield "".join(parts)


def _joined(row: Mapping[str, Any], fields: Sequence[str], where: str) -> str:
    texts = list[str]()
    for field in fields:
        value = row.get(field)
        values = value if isinstance(value, list) else [value]
        for text in values:
            if not isinstance(text, str):
                known = ", ".join(row)
                raise UserError(f"{where}: field {field!r} is no text, expected a string or strings; choose of {known}")
            texts.append(text)
    return "\n".join(texts)


def _saved_rows(directory: Path) -> Iterable[Mapping[str, Any]]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"{directory} is a saved data set; to read it: pip install datasets") from error
    try:
        loaded = datasets.load_from_disk(str(directory))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is no whole saved data set ({error}); save it again with save_to_disk") from error
    if not isinstance(loaded, datasets.DatasetDict):
        rows: Iterable[Mapping[str, Any]] = loaded
    elif "train" in loaded:
        rows = loaded["train"]
    else:
        raise UserError(f"{directory} has the splits {', '.join(sorted(loaded))}, expected one named train")
    return rows
