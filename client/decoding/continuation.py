"""A text being generated: its tokens, its characters, what was counted, and when it ends. It knows no drafter."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...common.errors import ContextLimitError
from ...common.metrics import DraftCounters
from ..runtimes.decoder import Decoder, Logits
from ..spelling.text import StopStrings, TextCodec, Utf8Stream
from .options import Options
from .processors import History, ProcessedRows


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished text."""

    text: str
    token_ids: tuple[int, ...]
    counters: DraftCounters
    finish_reason: str
    """``eos``, ``stop`` (a stop string), ``length`` (max_new_tokens) or ``context`` (the target's context is full)."""


class Continuation:
    """What a target writes behind a prompt.

    The target's context holds all tokens but the last, which the next block scores together with its proposals.

    Args:
      target: its context is replaced by the prompt.
      codec: the target's tokenizer.
      prompt: text to continue.
      options: length, stop strings and processors.

    Raises:
      ContextLimitError: the prompt alone fills the target's context.
    """

    def __init__(self, target: Decoder, codec: TextCodec, prompt: str, options: Options) -> None:
        self._started = time.perf_counter()
        tokens = codec.prompt_tokens(prompt)
        room = target.limit - len(tokens)
        if not tokens or room < 1:
            raise ContextLimitError(
                f"the prompt has {len(tokens)} tokens, expected 1 to {target.limit - 1} (the target's context)"
            )
        self._bytes, self._eos = codec.vocabulary.token_bytes, codec.vocabulary.eos
        self._limit, self._limited_by = min((options.max_new_tokens, "length"), (room, "context"))
        self._utf8, self._stop = Utf8Stream(), StopStrings(options.stop)
        self._processors, self._history = options.logits_processors, History(tokens)
        self._ids, self._reason = list[int](), ""
        self._seconds, self._tally = 0.0, Counter(prompts=1)
        self.prompt, self.last = tokens, tokens[-1]
        target.rewind(0)
        if len(tokens) > 1:
            target.score(tokens[:-1], 1)

    @property
    def open(self) -> bool:
        """Whether it goes on."""
        return not self._reason

    @property
    def remaining(self) -> int:
        """Tokens until the length limit."""
        return self._limit - len(self._ids)

    def rows(self, raw: Logits, proposals: Sequence[int] = ()) -> ProcessedRows:
        """The target's rows of a block as the user's processors leave them.

        Args:
          raw: float32 (k + 1, V).
          proposals: k target tokens.
        """
        if self._processors:
            self._history.propose(proposals)
        return ProcessedRows(raw, self._history, self._processors)

    def emit(self, tokens: Sequence[int]) -> tuple[str, int]:
        """Takes tokens up to the end of the text; returns the new characters and how many tokens were taken."""
        piece, taken = "", 0
        for token in tokens[: self.remaining]:
            piece += self._take(token)
            taken += 1
            if not self.open:
                break
        self.last = self._ids[-1]
        if self._processors:
            self._history.append(tokens[:taken])
        self.count(tokens=taken)
        return piece, taken

    def _take(self, token: int) -> str:
        """The characters that can be shown after ``token``."""
        self._ids.append(token)
        piece = self._stop.feed(self._utf8.feed(self._bytes[token]))
        if self._stop.found:
            self._reason = "stop"
        elif token in self._eos:
            self._reason = "eos"
        elif not self.remaining:
            self._reason = self._limited_by
        return piece

    def close(self) -> str:
        """Ends the clock; returns the characters that were held back."""
        self._seconds = time.perf_counter() - self._started
        if self._stop.found:
            return ""
        return self._stop.feed(self._utf8.close()) + self._stop.close()

    def count(self, **fields: int) -> None:
        """Adds to the counters."""
        for name, number in fields.items():
            self._tally[name] += number

    def add(self, block: DraftCounters) -> None:
        """Adds what one verified block counted."""
        self.count(
            blocks=block.blocks,
            drafted=block.drafted,
            accepted=block.accepted,
            draft_tokens=block.draft_tokens,
            drafter_calls=block.drafter_calls,
        )

    def finished(self, text: str) -> Generation:
        """The result, once it is closed."""
        counters = DraftCounters(**self._tally, seconds=self._seconds)
        return Generation(text=text, token_ids=tuple(self._ids), counters=counters, finish_reason=self._reason)
