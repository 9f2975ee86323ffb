"""One text of the agent while it is written: what was asked, what it counted, how it ends. It knows no models."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ...common.metrics import DraftCounters
from ..decoding.options import Options
from ..pacing.outcome import Outcome
from ..spelling.text import StopStrings, TextCodec, Utf8Stream

Reason = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """A text that is asked for. target: empty for the agent's first. learn: None as the agent's settings say."""

    prompt: str
    target: str
    options: Options
    learn: bool | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters to show."""

    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens of a block; of the proposed ones, the accepted begin ``tokens``."""

    tokens: tuple[int, ...]
    proposed: int
    accepted: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What is last of a text."""

    reason: Reason
    counters: DraftCounters
    first_piece_s: float
    learned: bool


Event = Piece | Block | Finished


@dataclass
class Account:
    """Sees a text's outcomes: a ``Witness``.

    codec: the target's tokenizer, to tell how the text ends.
    """

    codec: TextCodec
    options: Options
    blocks: list[Block] = field(default_factory=list)
    """Those that nobody has taken yet."""
    counters: DraftCounters = DraftCounters(prompts=1)
    give_up: Callable[[], object] = lambda: None
    """Ends the wait for a target that runs elsewhere."""
    is_cut: bool = False

    def __post_init__(self) -> None:
        self._utf8, self._stop = Utf8Stream(), StopStrings(self.options.stop)
        self._last = -1

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``."""
        self.counters += outcome.counters
        self.blocks.append(Block(outcome.tokens, len(outcome.proposed), outcome.accepted))
        self._last = outcome.tokens[-1]
        if self.options.stop:
            for token in outcome.tokens:
                self._stop.feed(self._utf8.feed(self.codec.vocabulary.token_bytes[token]))

    def cut(self) -> None:
        """Has the text end after the block under way."""
        self.is_cut = True
        self.give_up()

    def taken(self) -> list[Block]:
        """The blocks since the last call."""
        taken, self.blocks = self.blocks, []
        return taken

    @property
    def reason(self) -> Reason:
        """Why the text has ended, as ``Generation.finish_reason``."""
        if self._stop.found:
            return "stop"
        if self._last in self.codec.vocabulary.eos:
            return "eos"
        return "length" if self.counters.tokens >= self.options.max_new_tokens else "context"
