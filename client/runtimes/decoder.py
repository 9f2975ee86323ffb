"""The one seam between decoding and models: a decoder scores tokens and can be rewound. It knows no runtime."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ContextLimitError

Logits = NDArray[np.float32]
"""float32 (rows, vocab_size), or one row of it."""
Hidden = NDArray[np.float32]
"""float32 (rows, hidden size), or one row of it: what the head of a model read for each row of logits."""


def check_fits(length: int, limit: int) -> None:
    """Returns if a context of ``length`` tokens is within ``limit``.

    Raises:
      ContextLimitError: it is not.
    """
    if length > limit:
        raise ContextLimitError(
            f"{length} tokens exceed the model's context of {limit}; shorten the prompt or generate less"
        )


class Decoder(Protocol):
    """A causal language model with a context that grows by ``score`` and shrinks by ``rewind``.

    Drafters and targets, on every runtime, are decoders.
    """

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""

    @property
    def limit(self) -> int:
        """The longest context in tokens."""

    @property
    def length(self) -> int:
        """Tokens in the context now."""

    @property
    def stale(self) -> bool:
        """Whether the model has changed (a new adapter) since this context began.

        A context that is held goes on as it began: within a block of drafting all rows must be of one model, or the
        law of a proposal is not the one it was drawn from. It takes the change up when it begins anew, ``rewind(0)``.
        """

    @property
    def hidden(self) -> Hidden:
        """float32 (kept, hidden size): of the rows that the last ``score`` returned, valid as long as they are.

        Without rows where the decoder keeps none.
        """

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        """Appends ``tokens`` to the context.

        Returns:
          float32 (kept, vocab_size): rows of the last ``kept`` tokens (default: all); each row is the logits of the
          token after it. The array is valid until the next call.

        Raises:
          ContextLimitError: the context would exceed ``limit``; nothing is appended.
        """

    def rewind(self, length: int) -> None:
        """Forgets every token beyond the first ``length``."""


class TableDecoder:
    """The in-memory twin: a dict from context to a row of logits, for enumeration and property tests.

    Args:
      rows: logits by context. limit: the longest context.
      hidden: hidden states by context; by default there are none.
    """

    def __init__(
        self,
        rows: Mapping[tuple[int, ...], Sequence[float]],
        limit: int = 1 << 20,
        hidden: Mapping[tuple[int, ...], Sequence[float]] | None = None,
    ) -> None:
        self._rows = {context: np.asarray(row, dtype=np.float32) for context, row in rows.items()}
        self._states, self._hidden = hidden, np.empty((0, 0), np.float32)
        self._context: list[int] = []
        self._limit = limit

    @property
    def vocab_size(self) -> int:
        return len(next(iter(self._rows.values())))

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def length(self) -> int:
        return len(self._context)

    @property
    def stale(self) -> bool:
        return False

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        check_fits(len(self._context) + len(tokens), self._limit)
        rows, states = [], []
        for token in tokens:
            self._context.append(token)
            rows.append(self._rows[tuple(self._context)])
            if self._states is not None:
                states.append(np.asarray(self._states[tuple(self._context)], dtype=np.float32))
        if states:
            self._hidden = np.stack(states)[-(kept or len(rows)) :]
        return np.stack(rows)[-(kept or len(rows)) :]

    @property
    def hidden(self) -> Hidden:
        return self._hidden

    def rewind(self, length: int) -> None:
        del self._context[length:]
