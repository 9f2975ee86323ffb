"""A target that another program runs: what is to be scored goes out, rows of logits come in. It knows no wire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...common.errors import ConfigError
from ..runtimes.decoder import Hidden, Logits, check_fits

_FLOAT = np.dtype("<f4")


@dataclass(frozen=True, kw_only=True)
class Question:
    """Keep ``keep`` tokens of the context, append ``tokens``, answer with the logits behind the last ``rows``."""

    keep: int
    tokens: tuple[int, ...]
    rows: int


class RemoteDecoder:
    """A ``Decoder`` whose model is elsewhere.

    Args:
      vocab_size: width of a row.
      limit: tokens that the model can hold.
      ask: sends a question and waits for its answer: little-endian float32, (rows, vocab_size), row-major.
    """

    def __init__(self, vocab_size: int, limit: int, ask: Callable[[Question], bytes]) -> None:
        self.vocab_size, self.limit, self._ask = vocab_size, limit, ask
        self.length, self.stale = 0, False

    @property
    def hidden(self) -> Hidden:
        """See ``Decoder.hidden``; none are kept."""
        return np.empty((0, 0), np.float32)

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        """See ``Decoder.score``.

        Raises:
          ConfigError: the answer has another size, or holds no distribution.
        """
        check_fits(self.length + len(tokens), self.limit)
        rows = len(tokens) if kept is None else kept
        if not tokens:
            return np.empty((0, self.vocab_size), np.float32)
        answer = self._ask(Question(keep=self.length, tokens=tuple(map(int, tokens)), rows=rows))
        wanted = rows * self.vocab_size * _FLOAT.itemsize
        if len(answer) != wanted:
            raise ConfigError(
                f"logits has {len(answer)} bytes, expected {wanted}: float32 of {rows} rows x {self.vocab_size} tokens"
            )
        logits = np.frombuffer(answer, _FLOAT).astype(np.float32, copy=False).reshape(rows, self.vocab_size)
        if not np.isfinite(logits.max(axis=1, initial=-np.inf)).all():  # NaN is the maximum of what it is among
            raise ConfigError("logits has a row without a finite maximum, expected finite values or -inf")
        self.length += len(tokens)
        return logits

    def rewind(self, length: int) -> None:
        """See ``Decoder.rewind``; the next question says so."""
        self.length = min(length, self.length)
