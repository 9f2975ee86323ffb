"""What may change a target's logits before they are sampled, depending on the text so far. It knows no drafter.

A drafted text is verified against the rows that come out of here, so whatever a processor does (a penalty, a grammar
that allows some tokens only), the text is distributed as the target alone would sample it under the same processors.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError
from ..runtimes.decoder import Logits

Tokens = NDArray[np.int64]
"""int64 (n,): a text in target tokens, the prompt first. Read-only."""


class LogitsProcessor(Protocol):
    """A function of the text so far and the target's logits for the next token.

    Guarantees asked of it:
      - It depends on its arguments only: verification may ask for a row that is thrown away, and asks for the rows of
        one text in any order.
      - It leaves at least one token finite.
    """

    def __call__(self, tokens: Tokens, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns float32 (V,), minus infinity for what must not be sampled; ``logits`` (V,) stays as it is."""


class RepetitionPenalty:
    """Makes tokens of the text, the prompt included, less likely: positive logits / penalty, negative ones * penalty.

    Source: Keskar et al., CTRL (2019), §4.1, as in Hugging Face's ``RepetitionPenaltyLogitsProcessor``.
    """

    def __init__(self, penalty: float) -> None:
        self._penalty = np.float32(penalty)

    def __call__(self, tokens: Tokens, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        out = logits.copy()
        seen = out[tokens]
        with np.errstate(over="ignore"):  # a masked token may be at the least float32: minus infinity is right
            out[tokens] = np.where(seen < 0, seen * self._penalty, seen / self._penalty)
        return out


class History:
    """The tokens of a growing text, with the proposals of the block behind them; every beginning of it is a view."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._buffer = np.zeros(2 * len(tokens) + 64, np.int64)
        self._length = 0
        self.append(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        """Adds emitted tokens."""
        self._write(tokens)
        self._length += len(tokens)

    def propose(self, tokens: Sequence[int]) -> None:
        """Sets the proposals behind the text."""
        self._write(tokens)

    def before(self, position: int) -> Tokens:
        """The text with the first ``position`` proposals."""
        view = self._buffer[: self._length + position]
        view.setflags(write=False)
        return view

    def _write(self, tokens: Sequence[int]) -> None:
        end = self._length + len(tokens)
        if end > len(self._buffer):
            self._buffer = np.concatenate((self._buffer, np.zeros(end, np.int64)))
        self._buffer[self._length : end] = tokens


class ProcessedRows:
    """A block's target rows as the processors leave them, each made when it is asked for.

    Verification asks for no row behind a proposal that the target gives no probability, so no processor sees a text
    that is none under its own rules.

    Args:
      rows: float32 (k + 1, V).
      history: the text with its k proposals.
      processors: applied in order.

    Raises:
      ConfigError: (on access) a processor returned no row of the right width, or left no finite logit.
    """

    def __init__(self, rows: Logits, history: History, processors: Sequence[LogitsProcessor]) -> None:
        self._rows, self._history, self._processors = rows, history, processors

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> NDArray[np.float32]:
        row = self._rows[position]
        for processor in self._processors:
            row = _checked(processor, np.asarray(processor(self._history.before(position), row), np.float32), row)
        return row


def _checked(processor: LogitsProcessor, row: NDArray[np.float32], before: NDArray[np.float32]) -> NDArray[np.float32]:
    if row.shape != before.shape:
        raise ConfigError(f"logits processor {processor!r} returned shape {row.shape}, expected {before.shape}")
    if not np.isfinite(row.max()):
        raise ConfigError(f"logits processor {processor!r} left no token to sample: the largest logit is {row.max()}")
    return row
