"""Rows of token ids become what a model sees and what it should say next. It does not know where they come from."""

from __future__ import annotations

from torch import Tensor

IGNORED = -100
"""The label of a position that is not learned, as `torch.nn.functional.cross_entropy` has it."""

NOTHING = -1
"""Fills a row behind its last id."""


def inputs_and_labels(rows: Tensor, bos_id: int | None) -> tuple[Tensor, Tensor]:
    """Splits rows into what the model sees and what it should say next, both int64 (rows, row_tokens).

    The token that begins a text is never a label: a model should not say it, and where pieces begin is chance.

    Args:
      rows: int64 (rows, row_tokens + 1).
      bos_id: the token that begins a text, None where there is none.
    """
    inputs, labels = rows[:, :-1].clamp(min=0), rows[:, 1:]
    unlearned = labels == NOTHING
    if bos_id is not None:
        unlearned |= labels == bos_id
    return inputs, labels.masked_fill(unlearned, IGNORED)
