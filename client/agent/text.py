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
    """A text that is asked for.

    target: empty for the agent's first. learn: None as the agent's settings say. blocks: whether these are told.
    """

    prompt: str
    target: str
    options: Options
    learn: bool | None = None
    blocks: bool = False


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

    codec: the target's tokenizer, to tell how the text ends. keeps: whether somebody takes the blocks.
    """

    codec: TextCodec
    options: Options
    keeps: bool = False
    blocks: list[Block] = field(default_factory=list)
    """Those that nobody has taken yet."""
    give_up: Callable[[], object] = lambda: None
    """Ends the wait for a target that runs elsewhere."""
    is_cut: bool = False

    def __post_init__(self) -> None:
        self._utf8, self._stop = Utf8Stream(), StopStrings(self.options.stop)
        self._last = -1
        self._count, self._tokens, self._drafted, self._accepted, self._draft_tokens, self._seconds = 0, 0, 0, 0, 0, 0.0
        self._drafter_calls = 0

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``."""
        # One by one: to add up counters as such costs more than all else that is done here for a block.
        self._count += 1
        self._tokens += len(outcome.tokens)
        self._drafted += len(outcome.proposed)
        self._accepted += outcome.accepted
        self._draft_tokens += outcome.cost.draft_tokens
        self._drafter_calls += outcome.cost.drafter_calls
        self._seconds += outcome.cost.seconds
        if self.keeps:
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
    def counters(self) -> DraftCounters:
        """Of the text so far, as ``Outcome.counters`` adds up."""
        return DraftCounters(
            prompts=1,
            tokens=self._tokens,
            target_calls=self._count,
            blocks=self._count,
            drafted=self._drafted,
            accepted=self._accepted,
            draft_tokens=self._draft_tokens,
            drafter_calls=self._drafter_calls,
            seconds=self._seconds,
        )

    @property
    def reason(self) -> Reason:
        """Why the text has ended, as ``Generation.finish_reason``."""
        if self._stop.found:
            return "stop"
        if self._last in self.codec.vocabulary.eos:
            return "eos"
        return "length" if self._tokens >= self.options.max_new_tokens else "context"
