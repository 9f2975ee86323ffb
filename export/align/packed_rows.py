"""Documents as one stream of tokens on disk, read as rows in an order that the seed decides. It does not know models.

    BEGIN document END BEGIN document END …      cut into rows of one length; a row may hold several documents

Attention is not kept from crossing a document's end: what comes before it is what a drafter has to learn to ignore.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from ...common.errors import ModelError, UserError
from ...common.files import read_json, write_json
from ...common.vocabulary import Vocabulary
from .documents import is_held_out
from .model import Words

PARTS = ("train", "validation")
_ABOUT = "tokens.json"
_AT_ONCE = 512
"""Documents that are tokenised together."""


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """A tokenizer with the ids that begin and end a text.

    words: `vocab_size` is one more than the highest id.
    """

    directory: Path
    encoder: Tokenizer
    words: Words

    @classmethod
    def from_directory(cls, directory: Path) -> TextTokenizer:
        """Reads `tokenizer.json` and what names its roles.

        Raises:
          ModelError: no such file, an unknown kind, or no token that ends a text.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{directory} holds no tokenizer.json, expected a tokenizer or model directory")
        try:
            encoder = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ModelError(f"{path} cannot be read: {error}") from error
        width = max(encoder.get_vocab().values(), default=-1) + 1
        vocabulary = Vocabulary.from_directory(directory, width)
        if not vocabulary.eos:
            raise ModelError(f"{directory} names no token that ends a text; set eos_token in tokenizer_config.json")
        words = Words(vocab_size=width, bos_id=vocabulary.bos, eos_id=vocabulary.eos[0])
        return cls(directory=directory, encoder=encoder, words=words)

    def streams(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The ids of each text, with those that begin and end it."""
        begin = [] if self.words.bos_id is None else [self.words.bos_id]
        for encoding in self.encoder.encode_batch(list(texts), add_special_tokens=False):
            yield [*begin, *encoding.ids, self.words.eos_id]


@dataclass(frozen=True)
class PackedRows:
    """Rows of `row_tokens + 1` ids; a row's last id is the next row's first.

    Guarantees:
      - The batch of a step depends on tokens, row length, seed, step and batch size only, and is found without those
        before it.
      - Every row comes once before any comes again.
    """

    tokens: NDArray[np.unsignedinteger]
    row_tokens: int
    seed: int

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.row_tokens)

    def chosen(self, first: int, count: int) -> Tensor:
        """The rows `first`, `first + 1`, … of an endless sequence: int64 (count, row_tokens + 1).

        Raises:
          UserError: there are not enough tokens for one row.
        """
        if not len(self):
            raise UserError(f"the texts have {len(self.tokens)} tokens, expected more than {self.row_tokens}, a row")
        return torch.from_numpy(np.stack([self._row(number) for number in range(first, first + count)]))

    def _row(self, number: int) -> NDArray[np.int64]:
        epoch, place = divmod(number, len(self))
        start = int(_order(len(self), self.seed, epoch)[place]) * self.row_tokens
        return self.tokens[start : start + self.row_tokens + 1].astype(np.int64)

    def some(self, most: int, batch_rows: int) -> Iterator[Tensor]:
        """Batches of at most `most` rows, spread evenly over all."""
        places = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(int)) * self.row_tokens
        rows = [self.tokens[place : place + self.row_tokens + 1].astype(np.int64) for place in places]
        for at in range(0, len(rows), batch_rows):
            yield torch.from_numpy(np.stack(rows[at : at + batch_rows]))


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def packed(
    texts: Iterable[str], tokenizer: TextTokenizer, folder: Path, job: str, held_out: float
) -> dict[str, NDArray[np.unsignedinteger]]:
    """The token streams `train` and `validation`; written to `folder` unless they are there, whole, from the same job.

    Args:
      job: a text that two jobs share only if they would write the same.
      held_out: share of the documents that are for validation.
    """
    about, dtype = folder / _ABOUT, np.uint16 if tokenizer.words.vocab_size <= 1 << 16 else np.uint32
    if not _is_whole(folder, job, np.dtype(dtype)):
        about.unlink(missing_ok=True)
        sizes = _write(texts, tokenizer, folder, np.dtype(dtype), held_out)
        write_json(about, {"job": job, "dtype": np.dtype(dtype).name, "tokens": sizes})
    return {part: _opened(folder / f"{part}.tokens", dtype) for part in PARTS}


def _is_whole(folder: Path, job: str, dtype: np.dtype[np.unsignedinteger]) -> bool:
    try:
        about = read_json(folder / _ABOUT)
        sizes = {part: (folder / f"{part}.tokens").stat().st_size for part in PARTS}
        return bool(about["job"] == job and sizes == {part: about["tokens"][part] * dtype.itemsize for part in PARTS})
    except (UserError, OSError, LookupError, TypeError):  # damaged or missing: what is written anew is the same
        return False


def _opened(path: Path, dtype: type[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _write(
    texts: Iterable[str], tokenizer: TextTokenizer, folder: Path, dtype: np.dtype[np.unsignedinteger], held_out: float
) -> dict[str, int]:
    """Writes both streams; returns their lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = dict.fromkeys(PARTS, 0)
    partial = {part: folder / f"{part}.partial" for part in PARTS}
    with partial["train"].open("wb") as train, partial["validation"].open("wb") as validation:
        remaining = iter(texts)
        while batch := list(islice(remaining, _AT_ONCE)):
            for text, stream in zip(batch, tokenizer.streams(batch), strict=True):
                part = "validation" if is_held_out(text, held_out) else "train"
                (validation if part == "validation" else train).write(np.array(stream, dtype).tobytes())
                sizes[part] += len(stream)
        for file in (train, validation):
            file.flush()
            os.fsync(file.fileno())
    for part, path in partial.items():
        os.replace(path, folder / f"{part}.tokens")
    return sizes
