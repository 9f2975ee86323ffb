"""Full tries on disk, so that a pair of tokenizers is joined once. It holds what tokenizers say, nothing of a user.

A file is the SHA-256 of its key and content, then three arrays in the format of safetensors. Its name is the key: a
digest of all that decides the paths. What is torn, damaged, of other vocabularies or of other rules is therefore no
hit, and is built again and replaced.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...common.errors import ModelError
from ...common.files import write_atomic
from ...common.speller import Encode, canonical_paths
from ...common.vocabulary import Vocabulary
from .trie import Trie

#: Goes up when the rules of ``Speller`` or the arrays of ``Trie`` change.
_RULES = 1
_SUFFIX = ".trie"
_DIGEST_BYTES = 32
_ENTRIES = 32
#: A write takes far less; a scratch file this much older than a finished one was left by a process that was killed.
_ABANDONED_S = 3600.0


def cached_trie(
    target: Vocabulary, drafter: Vocabulary, encode: Encode, directory: Path | None, entries: int = _ENTRIES
) -> Trie:
    """The trie of all canonical paths, from ``directory`` where it is there, else built and left there.

    Guarantees:
      - It is the trie of these vocabularies, whatever the directory holds.
      - Nothing about the directory is an error: one that cannot be read or written costs the building.
      - Processes may share the directory; it keeps the ``entries`` tries that were used last.

    Args:
      encode: the drafter tokenizer, adding no special tokens; decided by the drafter's fingerprint.
      directory: none for no cache.
    """
    if directory is None:
        return Trie.from_paths(canonical_paths(target, drafter, encode))
    path = directory / f"{trie_key(target, drafter)}{_SUFFIX}"
    try:
        trie = read_trie(path)
    except (ModelError, OSError):
        trie = Trie.from_paths(canonical_paths(target, drafter, encode))
        with contextlib.suppress(OSError):
            _write(path, trie)
            _prune(directory, entries)
    with contextlib.suppress(OSError):
        os.utime(path)  # read now: the time of access proper is not kept on many file systems
    return trie


def default_directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """``$FLEETDRAFT_CACHE``, else ``fleetdraft`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; none without a home."""
    if chosen := environment.get("FLEETDRAFT_CACHE"):
        return Path(chosen)
    shared = Path(environment.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the specification says to ignore any other
        return shared / "fleetdraft"
    try:
        return Path.home() / ".cache" / "fleetdraft"
    except RuntimeError:
        return None


def trie_key(target: Vocabulary, drafter: Vocabulary) -> str:
    """A digest, in hex, of all that decides the paths: the rules and both vocabularies, their roles included."""
    digest = hashlib.sha256(f"rules {_RULES}".encode())
    for vocabulary in (target, drafter):
        lengths = np.fromiter(map(len, vocabulary.token_bytes), dtype=np.int32, count=vocabulary.width)
        roles = (vocabulary.eos, vocabulary.dummy_prefix, sorted(vocabulary.byte_pieces))
        digest.update(f"{vocabulary.fingerprint} {vocabulary.width} {roles}".encode())
        digest.update(lengths.tobytes())
        digest.update(b"".join(vocabulary.token_bytes))
    return digest.hexdigest()


def read_trie(path: Path) -> Trie:
    """Reads one file of the cache; its name is the key.

    Raises:
      OSError: it cannot be read.
      ModelError: it is not what was written under that name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no regular file")
    data = path.read_bytes()
    content = data[_DIGEST_BYTES:]
    if data[:_DIGEST_BYTES] != _digest(path, content):
        raise ModelError(f"{path} is torn, damaged or of another pair; remove it")
    try:
        return Trie.from_arrays(load(content))
    except SafetensorError as error:
        raise ModelError(f"{path} holds no arrays: {error}") from error


def _write(path: Path, trie: Trie) -> None:
    content = save(trie.to_arrays())
    write_atomic(path, _digest(path, content) + content)


def _digest(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.stem.encode() + content).digest()


def _prune(directory: Path, entries: int) -> None:
    """Removes all but the tries used last, and scratch files of writes that never ended.

    Raises:
      OSError: another process removed a file meanwhile; what is left is for the next time.
    """
    used = _by_time(directory.glob(f"*{_SUFFIX}"))
    surplus = [path for path, _ in used[entries:]]
    newest = used[0][1] if used else 0.0
    scratch = _by_time(directory.glob(f".*{_SUFFIX}.*"))
    for path in (*surplus, *(path for path, time in scratch if time < newest - _ABANDONED_S)):
        path.unlink(missing_ok=True)


def _by_time(paths: Iterable[Path]) -> list[tuple[Path, float]]:
    """Files with their times of last use, newest first."""
    return sorted(((path, path.stat().st_mtime) for path in paths), key=lambda pair: pair[1], reverse=True)
