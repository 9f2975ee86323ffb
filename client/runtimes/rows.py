"""The drafter's rows during one block, each evaluated once. It knows no trie and no law."""

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder, Hidden, Logits

_NONE: Hidden = np.empty(0, np.float32)


class Rows:
    """Logits of the drafter after any continuation of the context it held when the block began.

    Guarantees:
      - A row is evaluated at most once, and its value never changes.
      - A miss costs one call of the drafter, over the tokens it does not hold.

    Args:
      drafter: holds the block's context.
      root_row: float32 (D,), the drafter's logits after that context, its last ``score``.
    """

    def __init__(self, drafter: Decoder, root_row: Logits) -> None:
        self._drafter = drafter
        self._base = drafter.length
        self._held: tuple[int, ...] = ()
        self._rows: dict[tuple[int, ...], NDArray[np.float32]] = {(): root_row.copy()}
        self._hidden: dict[tuple[int, ...], Hidden] = {}
        if len(drafter.hidden):
            self._hidden[()] = drafter.hidden[-1].copy()
        self.calls = 0

    def after(self, tokens: tuple[int, ...]) -> NDArray[np.float32]:
        """float32 (D,): the logits after the block's context followed by ``tokens``."""
        row = self._rows.get(tokens)
        return self._evaluate(tokens) if row is None else row

    def hidden(self, tokens: tuple[int, ...]) -> Hidden:
        """float32 (hidden size,): what the row after ``tokens`` was made of; empty where the drafter keeps none."""
        self.after(tokens)
        return self._hidden.get(tokens, _NONE)

    def retain(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Rewinds the drafter to the longest prefix of ``tokens`` that it holds, and returns that prefix."""
        kept = _common_prefix(self._held, tokens)
        if kept < len(self._held):
            self._drafter.rewind(self._base + kept)
            self._held = tokens[:kept]
        return self._held

    def _evaluate(self, tokens: tuple[int, ...]) -> NDArray[np.float32]:
        # Rows of held tokens are known, and known rows are never overwritten: a batched evaluation may round otherwise.
        held = len(self.retain(tokens))
        known = held
        while tokens[: known + 1] in self._rows:
            known += 1
        scored = self._drafter.score(tokens[held:], len(tokens) - known)
        self.calls += 1
        self._held = tokens
        for length, row in enumerate(scored, known + 1):
            self._rows[tokens[:length]] = row.copy()
        for length, state in enumerate(self._drafter.hidden, known + 1):
            self._hidden[tokens[:length]] = state.copy()
        return self._rows[tokens]


def _common_prefix(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    if right[: len(left)] == left:
        return len(left)
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(right))
