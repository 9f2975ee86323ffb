"""A decoder over any runtime's engine: keeps the tokens and the limit, and grows the engine. It knows no runtime."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from .decoder import Hidden, Logits, check_fits

_PREFILL = 256
"""Tokens of a call whose rows nobody asked for. Runtimes make rows for all of them: at 128k logits, 128 MiB."""


class Engine(Protocol):
    """What a runtime does for one context of a fixed capacity. It is never given more, and need not check."""

    def append(self, tokens: Sequence[int], kept: int) -> Logits:
        """Appends at least one token; float32 (at least ``kept``, vocab_size): the rows of the last ones."""

    def truncate(self, length: int) -> None:
        """Forgets every token beyond the first ``length``, which is less than it holds."""


class TargetContext:
    """A ``Decoder`` that leaves the arithmetic to an engine.

    Most runtimes allocate a context whole, so one for the longest text would cost gigabytes. Here a context begins
    small; where a text outgrows it, a new engine of twice the capacity reads the text again, which costs one prompt's
    reading for each doubling. Its rows are then those of the text read in one go: equal within float noise.
    """

    def __init__(self, engine: Callable[[int], Engine], vocab_size: int, limit: int, first: int) -> None:
        """Begins an empty context.

        Args:
          engine: makes an engine that holds that many tokens.
          vocab_size: width of a row of logits.
          limit: the longest context in tokens.
          first: capacity of the first engine.
        """
        self._make, self._vocab_size, self._limit = engine, vocab_size, limit
        self._tokens: list[int] = []
        self._capacity = min(first, limit)
        self._engine: Engine | None = None

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def stale(self) -> bool:
        """See ``Decoder.stale``; a target has no adapter."""
        return False

    @property
    def hidden(self) -> Hidden:
        """See ``Decoder.hidden``; none are kept."""
        return np.empty((0, 0), np.float32)

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        """See ``Decoder.score``."""
        end, kept = self.length + len(tokens), len(tokens) if kept is None else kept
        check_fits(end, self.limit)
        if not len(tokens):
            return np.empty((0, self.vocab_size), np.float32)
        engine = self._holding(end)
        rows = _read(engine, tokens, kept)
        self._tokens.extend(tokens)
        return rows

    def rewind(self, length: int) -> None:
        """See ``Decoder.rewind``."""
        if self._engine is not None and length < self.length:
            self._engine.truncate(length)
            del self._tokens[length:]

    def _holding(self, end: int) -> Engine:
        """The engine, with room for ``end`` tokens."""
        if self._engine is None or end > self._capacity:
            self._engine = None  # its memory is free before the next one's is taken
            while self._capacity < end:
                self._capacity = min(2 * self._capacity, self._limit)
            self._engine = self._make(self._capacity)
            if self._tokens:
                _read(self._engine, self._tokens, 1)
        return self._engine


def _read(engine: Engine, tokens: Sequence[int], kept: int) -> Logits:
    """float32 (kept, vocab_size): the rows of the last ``kept`` tokens; a long text before them is read in parts."""
    kept, at = max(kept, 1), 0
    while len(tokens) - at > max(kept, _PREFILL):
        end = min(at + _PREFILL, len(tokens) - kept)
        engine.append(tokens[at:end], 1)
        at = end
    return engine.append(tokens[at:], kept)[-kept:]
