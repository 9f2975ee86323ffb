"""The prompts: for each user, pieces of that user's own code that stop at the end of a line.

It does not know tokens or models.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .corpus import USERS, Corpus, Document
from .errors import PromptsShort

Split = Literal["train", "heldout"]

SHORTEST_BYTES = 120
LONGEST_BYTES = 260
PER_USER: dict[Split, int] = {"train": 180, "heldout": 12}
HEADER_LINES = 12
"""A file's first lines are licence, docstring and imports rather than code."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt: its text, the user who would type it, its split and the file it was cut from."""

    prompt: str
    task: str
    split: Split
    source: str


def user_prompts(corpus: Corpus, user: str, seed: int) -> tuple[Prompt, ...]:
    """Cuts one user's training and held-out prompts.

    Guarantees:
      - No two prompts are equal or overlap.
      - Held-out prompts come from files that no training prompt comes from and no model is trained on.
      - The result depends on the corpus, the user and the seed only.

    Raises:
      PromptsShort: the user's files give fewer prompts than `PER_USER`.
    """
    seen: set[str] = set()
    chosen: list[Prompt] = []
    for split, count in PER_USER.items():
        documents = corpus.of_user(user, held_out=split == "heldout")
        rng = random.Random(f"{seed}/{user}/{split}")
        texts = _choose(documents, count, rng, seen)
        if len(texts) < count:
            raise PromptsShort(f"{user} has {len(texts)} {split} prompts, needs {count}: its package is too small")
        chosen += [Prompt(prompt=t, task=user, split=split, source=path) for path, t in texts]
    return tuple(chosen)


def write_prompts(corpus: Corpus, folder: Path, seed: int) -> int:
    """Writes `<user>.train.jsonl` and `<user>.heldout.jsonl` for every user.

    Returns:
      The number of bytes written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size_bytes = 0
    for user in USERS:
        prompts = user_prompts(corpus, user, seed)
        for split in PER_USER:
            rows = (json.dumps(asdict(p), ensure_ascii=False) for p in prompts if p.split == split)
            size_bytes += (folder / f"{user}.{split}.jsonl").write_bytes("".join(f"{r}\n" for r in rows).encode())
    return size_bytes


def contexts(text: str) -> Iterator[str]:
    """Cuts a file into pieces that do not overlap, each a possible prompt.

    Guarantees:
      - Each piece is whole lines, ends with a line break and has 120 to 260 bytes.
      - The line after a piece is not blank, so that a tokenizer that joins line breaks sees the same break as in
        the file.
    """
    lines = text.splitlines(keepends=True)
    at = HEADER_LINES
    while at < len(lines):
        end = _end(lines, at)
        if end is not None and _is_code(lines[at:end]):
            yield "".join(lines[at:end])
        at = end or at + 1


def _end(lines: Sequence[str], start: int) -> int | None:
    """Returns where a piece that starts at this line ends: after a line that opens a block, else as late as can be."""
    last: int | None = None
    size_bytes = 0
    for end in range(start + 1, len(lines)):
        size_bytes += len(lines[end - 1].encode())
        if size_bytes > LONGEST_BYTES or not lines[start].strip():
            break
        if size_bytes >= SHORTEST_BYTES and lines[end].strip() and lines[end - 1].strip():
            last = end
            if _opens_block(lines[end - 1]):
                break
    return last


def _opens_block(line: str) -> bool:
    return line.rstrip().endswith(":")


def _is_code(lines: Sequence[str]) -> bool:
    """Tells a piece of code from a comment, and from text that is mostly not ASCII."""
    stripped = [line.strip() for line in lines if line.strip()]
    comments = sum(line.startswith("#") for line in stripped)
    text = "".join(lines)
    return 2 * comments < len(stripped) and sum(c.isascii() for c in text) >= 0.9 * len(text) and "\f" not in text


def _choose(documents: Iterable[Document], count: int, rng: random.Random, seen: set[str]) -> list[tuple[str, str]]:
    """Draws (path, text) pairs whose texts are not in `seen`, and adds them to it."""
    pool = [(d.path, text) for d in documents for text in contexts(d.text)]
    rng.shuffle(pool)
    chosen: list[tuple[str, str]] = []
    for path, text in pool:
        if len(chosen) < count and text not in seen:
            seen.add(text)
            chosen.append((path, text))
    return chosen
