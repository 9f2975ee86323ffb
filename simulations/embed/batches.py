"""The batches: texts as rows of tokens, in an order that a seed and an epoch decide.

It does not know models or learning rates.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ...export.align.rows import NOTHING

PIECE_CHARACTERS = (400, 2000)
"""A document is cut at line ends into pieces of about this size, each encoded on its own.

A prompt starts in the middle of a file behind the token that begins a text; so do most pieces.
"""


class Cursor(NamedTuple):
    """The place of the next batch: an epoch, and the first row in it."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads texts as rows of `row_tokens + 1` ids; a row's last id is the next row's first before shuffling."""

    tokenizer: Tokenizer
    texts: Sequence[str]
    bos_id: int | None
    eos_id: int
    row_tokens: int
    seed: int

    def rows(self, epoch: int) -> Tensor:
        """Returns one epoch: int64 (rows, row_tokens + 1), without the ids that do not fill a last row.

        Guarantees:
          - The result depends on the fields and the epoch only.
        """
        rng = random.Random(f"{self.seed}/{epoch}")
        rows = self._overlapping(self._ids(rng.sample(self.texts, len(self.texts)), rng))
        return rows[torch.tensor(rng.sample(range(len(rows)), len(rows)))]

    def whole(self) -> Tensor:
        """Returns all ids in the order of the texts: int64 (rows, row_tokens + 1), filled up with `NOTHING`."""
        ids = self._ids(self.texts, random.Random(self.seed))
        missing = -(len(ids) - 1) % self.row_tokens
        return self._overlapping(ids + [NOTHING] * missing)

    def batches(self, cursor: Cursor, batch_rows: int) -> Iterator[tuple[Cursor, Tensor]]:
        """Yields int64 (batch_rows, row_tokens + 1) for ever, each with the cursor of the batch after it.

        Raises:
          ValueError: the texts do not fill one batch.
        """
        while True:
            rows = self.rows(cursor.epoch)
            if len(rows) < batch_rows:
                raise ValueError(f"the texts fill {len(rows)} rows, must fill a batch of {batch_rows}")
            for start in range(cursor.row, len(rows) - batch_rows + 1, batch_rows):
                yield Cursor(cursor.epoch, start + batch_rows), rows[start : start + batch_rows]
            cursor = Cursor(cursor.epoch + 1, 0)

    def _ids(self, texts: Sequence[str], rng: random.Random) -> list[int]:
        cuts = [cut(text, rng) for text in texts]
        encodings = iter(self.tokenizer.encode_batch([piece for pieces in cuts for piece in pieces]))
        ids: list[int] = []
        for pieces in cuts:
            for encoding in islice(encodings, len(pieces)):
                ids += encoding.ids
            ids.append(self.eos_id)
        return ids

    def _overlapping(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids).unfold(0, self.row_tokens + 1, self.row_tokens)


def cut(text: str, rng: random.Random) -> list[str]:
    """Cuts a text at line ends into pieces of random size.

    Guarantees:
      - The pieces joined are the text.
    """
    pieces: list[str] = []
    piece = ""
    limit = rng.randint(*PIECE_CHARACTERS)
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > limit:
            pieces.append(piece)
            piece, limit = "", rng.randint(*PIECE_CHARACTERS)
        piece += line
    return [*pieces, piece]
