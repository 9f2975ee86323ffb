"""A distillation set on disk: what targets answered, with teacher rows in *target* tokens, so that it fits any drafter.

    OUT/manifest.json            settings, digests of prompts and files, counts; written last
    OUT/TARGET/                  tokenizer.json and what names its roles
    OUT/TARGET/shard-00000.safetensors …

| array of a shard | type, shape  | what                                                                   |
|------------------|--------------|------------------------------------------------------------------------|
| `prompts`        | int32 (n,)   | number of each answer's prompt, in the order of the file's prompts     |
| `temperatures`   | float32 (n,) | that it was drawn with                                                 |
| `offsets`        | int64 (n + 1,) | where each text begins in `tokens`; the last is their end            |
| `starts`         | int32 (n,)   | where the answer begins in its text, behind the prompt                 |
| `tokens`         | int32 (N,)   | texts, prompt and answer, in target tokens                             |
| `teacher_ids`    | int32 (R, K) | for each answered token, the likeliest tokens in descending order      |
| `teacher_probs`  | float32 (R, K) | their probabilities at temperature 1; what they leave is the tail    |

R is the sum of the answers' lengths. The header's metadata holds `job` alone, a digest of the settings and of this
schema: two entries would come in any order, and the same shard would have other bytes. It knows no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from ...common.errors import ModelError, UserError
from ...common.files import sha256_file, write_atomic
from .work_folder import read_kept

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Text:
    """One prompt and its answer, in target tokens.

    tokens: int32 (n,). start: of the answer. teacher_ids, teacher_probs: (n - start, K).
    """

    prompt: int
    temperature: float
    tokens: NDArray[np.int32]
    start: int
    teacher_ids: NDArray[np.int32]
    teacher_probs: NDArray[np.float32]


def write_shard(path: Path, texts: Sequence[Text], width: int, job: str) -> None:
    """Writes a shard, whole or not at all."""
    lengths = np.array([0, *(len(text.tokens) for text in texts)], np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "prompts": np.array([text.prompt for text in texts], np.int32),
        "temperatures": np.array([text.temperature for text in texts], np.float32),
        "offsets": np.cumsum(lengths),
        "starts": np.array([text.start for text in texts], np.int32),
        "tokens": np.concatenate([np.empty(0, np.int32), *(text.tokens for text in texts)]),
        "teacher_ids": np.concatenate([np.empty((0, width), np.int32), *(text.teacher_ids for text in texts)]),
        "teacher_probs": np.concatenate([np.empty((0, width), np.float32), *(text.teacher_probs for text in texts)]),
    }
    write_atomic(path, save(arrays, metadata={"job": job}))


def shard_job(path: Path) -> str:
    """The job that a shard was written by, empty where there is no whole shard."""
    try:
        with safe_open(path, framework="numpy") as shard:
            return str((shard.metadata() or {}).get("job", ""))
    except (OSError, SafetensorError):
        return ""


def read_shard(path: Path) -> Iterator[Text]:
    """Yields the texts of a shard in order.

    Raises:
      ModelError: not a shard, or its arrays do not fit together.
    """
    try:
        arrays = load_file(path)
        offsets, starts = arrays["offsets"], arrays["starts"]
        answered = np.cumsum([0, *(np.diff(offsets) - starts)])
        if answered[-1] != len(arrays["teacher_ids"]) or offsets[-1] != len(arrays["tokens"]):
            raise ModelError(f"{path} is no shard: its arrays do not fit together; distil again")
        for at in range(len(starts)):
            rows = slice(answered[at], answered[at + 1])
            yield Text(
                prompt=int(arrays["prompts"][at]),
                temperature=float(arrays["temperatures"][at]),
                tokens=arrays["tokens"][offsets[at] : offsets[at + 1]],
                start=int(starts[at]),
                teacher_ids=arrays["teacher_ids"][rows],
                teacher_probs=arrays["teacher_probs"][rows],
            )
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise ModelError(f"{path} is no shard: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The answers of one target.

    directory: with its tokenizer. vocab_size: width of its logits.
    """

    name: str
    directory: Path
    vocab_size: int
    files: tuple[Path, ...]

    def texts(self) -> Iterator[Text]:
        """All its texts in order."""
        for path in self.files:
            yield from read_shard(path)


def read_dataset(directory: Path) -> list[Shards]:
    """Reads a manifest and compares every file with its digest.

    Raises:
      ModelError: no finished distillation set, one of another schema, or a file that is missing or damaged.
      UserError: the manifest is damaged.
    """
    return [_shards(directory / name, entry) for name, entry in _manifest(directory)["targets"].items()]


def prompt_digest(prompt: str) -> str:
    """Tells a prompt in a manifest, which does not quote it."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:24]


def check_unseen(prompts: Sequence[str], directories: Sequence[Path]) -> None:
    """Returns if no prompt was answered in one of the sets.

    Raises:
      UserError: some were; measured on them, a drafter would look better than it is.
      ModelError: as `read_dataset`.
    """
    answered = {digest for directory in directories for digest in _manifest(directory)["prompts"]}
    seen = sum(prompt_digest(prompt) in answered for prompt in prompts)
    if seen:
        raise UserError(f"{seen} of {len(prompts)} held-out prompts were distilled from, expected none of them")


def check_answered(targets: Sequence[Path], directories: Sequence[Path]) -> None:
    """Returns if every target, by its directory's name, answered in one of the sets.

    Raises:
      UserError: one did not; a drafter is not measured with a target that it was not taught.
      ModelError: as `read_dataset`.
    """
    answered = dict.fromkeys(name for directory in directories for name in _manifest(directory)["targets"])
    for target in targets:
        if (name := target.resolve().name) not in answered:
            raise UserError(f"no answers of the target {name}, expected one of {', '.join(answered)}; or distil it too")


def _manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise ModelError(f"{directory} is no finished distillation set: no {MANIFEST}; run fleetdraft align distill")
    remedy = "delete it and run the same align distill again"
    manifest = read_kept(path, remedy)
    if manifest.get("schema") != SCHEMA:
        raise ModelError(f"{path}: schema is {manifest.get('schema')!r}, this version reads {SCHEMA}; distil again")
    if not _is_whole(manifest):
        raise ModelError(f"{path} is damaged; {remedy}")
    return manifest


def _is_whole(manifest: dict[str, Any]) -> bool:
    targets, prompts = manifest.get("targets"), manifest.get("prompts")
    return (
        isinstance(prompts, list)
        and isinstance(targets, dict)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("files"), dict)
            and isinstance(entry.get("vocab_size"), int)
            for entry in targets.values()
        )
    )


def _shards(directory: Path, entry: dict[str, Any]) -> Shards:
    for name, expected in entry["files"].items():
        if not (directory / name).is_file() or sha256_file(directory / name) != expected:
            raise ModelError(f"{directory / name} is missing or does not match its digest; distil again")
    files = tuple(directory / name for name in entry["files"] if name.endswith(".safetensors"))
    return Shards(name=directory.name, directory=directory, vocab_size=entry["vocab_size"], files=files)
