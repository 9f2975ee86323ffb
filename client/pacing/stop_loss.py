"""Stop-loss: drafting that does not pay is switched off, and tried again after ever longer waits. It sets no length.

Time lost to drafting is kept as an account, in tokens that the target alone would have written meanwhile: a block that
took s seconds for n tokens costs s / (seconds of a token alone) - n, below zero where drafting pays. The
account never goes below zero (a CUSUM, Page 1954), so what was gained long ago does not hide that it stopped paying.
What a drafter that never pays costs is the stake once, and again for each probe after 1, 2, 4 … waits. A block that
emitted one token cannot have gained by drafting, whatever a noisy clock says: it counts at least as one alone.

While it is off, a text that begins may still be of another kind, so its first blocks draft a little (a peek): as soon
as a proposal is accepted, drafting goes on as in a probe; if none is, it is off again, and the wait goes on as if
nothing had been. No clock decides a peek: it is too short for one.
"""

from collections import deque
from dataclasses import dataclass

from ...common.errors import ConfigError
from ..state.decision import Decision
from .boundary import Boundary
from .means import Mean
from .outcome import Outcome
from .pace import Pace

_DECISIONS_KEPT = 64
_FIRST_ALONE = 3
"""Tokens by the target alone before the first draft: without them there is nothing to compare with."""
_ALONE_BLOCKS = 96
"""Blocks between two tokens alone while drafting pays: the machine and the length of the text change what one takes."""
_UNPROVEN_BLOCKS = 8
"""The same until drafting has paid: three tokens alone on a busy machine may say anything."""
_ALONE_NEWEST = 0.1
_PEEK_WAIT = 16
"""Blocks alone before a text may begin with a peek."""


@dataclass(frozen=True, kw_only=True)
class StopLossConfig:
    """When drafting is switched off, and on again.

    limit_tokens: loss at which drafting that paid before is switched off. stake_tokens: what a probe, or the beginning,
    may lose. worst_block_tokens: what one block may add, as the machine may have done something else. first_wait,
    longest_wait: blocks alone before a probe; doubled by each that does not pay. peek_blocks, peek_tokens: blocks of a
    peek without an accepted proposal, and what each may draft.
    """

    limit_tokens: float = 16.0
    stake_tokens: float = 3.0
    worst_block_tokens: float = 1.5
    first_wait: int = 32
    longest_wait: int = 256
    peek_blocks: int = 2
    peek_tokens: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.stake_tokens <= self.limit_tokens:
            raise ConfigError(
                f"stake_tokens is {self.stake_tokens}, expected above 0, to {self.limit_tokens} (the limit)"
            )
        for name in ("peek_blocks", "peek_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.worst_block_tokens <= 0:
            raise ConfigError(f"worst_block_tokens is {self.worst_block_tokens}, expected above 0")
        if not 1 <= self.first_wait <= self.longest_wait:
            raise ConfigError(f"first_wait is {self.first_wait}, expected 1 to {self.longest_wait} (the longest)")


class StopLoss:
    """A pace that lets another one draft as long as that pays.

    Args:
      inner: sets the length where drafting is on.
      config: when it is not.
    """

    def __init__(self, inner: Pace, config: StopLossConfig | None = None) -> None:
        self.inner, self._config = inner, config or StopLossConfig()
        self.decisions: deque[Decision] = deque(maxlen=_DECISIONS_KEPT)
        """The newest, oldest first."""
        self._alone = Mean(_ALONE_NEWEST)
        """Seconds of a token by the target alone."""
        self._blocks, self._since_alone = 0, 0
        self._drafting = True
        self._wait, self._waited = self._config.first_wait, 0
        self._drafts_next, self._peeks_next = False, False
        self._peeking = 0
        """Blocks that a peek may still take; 0 where there is none."""
        self._open_account()

    @property
    def drafting(self) -> bool:
        """Whether drafting is on, be it as a probe."""
        return self._drafting

    @property
    def alone_tokens_per_s(self) -> float | None:
        """Of the target without a drafter, lately; None before it wrote a token."""
        return 1 / self._alone.value if self._alone.value > 0 else None

    def begin(self) -> None:
        self.inner.begin()
        self._peeks_next = not self._drafting and self._waited >= _PEEK_WAIT

    def budget(self, most: int) -> int:
        peeks, self._peeks_next = self._peeks_next, False
        if not self._drafting and (peeks or self._waited >= self._wait):
            self._try(peek=self._waited < self._wait)
        most = min(most, self._config.peek_tokens) if self._peeking else most
        longest = _ALONE_BLOCKS if self._proven else _UNPROVEN_BLOCKS
        measures = self._alone.count < _FIRST_ALONE or self._since_alone >= longest
        budget = 0 if measures or not self._drafting else self.inner.budget(most)
        self._drafts_next = budget > 0
        return budget

    def limit(self, boundary: Boundary) -> int:
        return self.inner.limit(boundary)

    def note(self, outcome: Outcome) -> None:
        self._blocks += 1
        self.inner.note(outcome)
        if self._drafts_next:
            self._since_alone += 1
            if not outcome.proposed:  # the drafter was asked and proposed nothing: the target's call was one alone
                self._since_alone = 0
                self._alone.add_time(outcome.cost.target_s)
            self._book(len(outcome.tokens), outcome.cost.seconds)
        else:
            self._since_alone = 0
            self._waited += not self._drafting
            self._alone.add_time(outcome.cost.seconds)

    def _try(self, peek: bool) -> None:
        self._drafting, self._peeking = True, self._config.peek_blocks if peek else 0
        self._open_account()
        if not peek:
            self._decide("drafting tried again", f"after {self._waited} tokens by the target alone")

    def _open_account(self) -> None:
        self._loss, self._proven = self._config.limit_tokens - self._config.stake_tokens, False
        self._tokens, self._seconds = 0, 0.0

    def _book(self, tokens: int, seconds: float) -> None:
        if self._alone.value <= 0:
            return  # the clock stands still
        if self._peeking and not self._goes_on_peeking(tokens):
            return
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        counted = max(seconds, self._alone.value) if tokens == 1 else seconds
        lost = min(counted / self._alone.value - tokens, self._config.worst_block_tokens)
        self._loss = max(0.0, self._loss + lost)
        if self._loss >= self._config.limit_tokens:
            self._switch_off()
        elif not self._loss and not self._proven:
            self._proven, self._wait = True, self._config.first_wait
            self._decide("drafting stays on", self._figures())

    def _goes_on_peeking(self, tokens: int) -> bool:
        """Whether drafting is still on after a block of a peek, be it as a probe that begins with this block."""
        self._peeking = self._peeking - 1 if tokens == 1 else 0
        self._drafting = self._peeking > 0 or tokens > 1
        if tokens > 1:
            self._decide("drafting tried again", "a proposal was accepted when a text began")
        return self._drafting

    def _switch_off(self) -> None:
        self._decide("drafting switched off", self._figures())
        # A probe that failed makes the wait longer; drafting that had paid starts with the first wait.
        failed = not self._proven and self._waited > 0
        self._wait = min(2 * self._wait, self._config.longest_wait) if failed else self._config.first_wait
        self._drafting, self._waited = False, 0

    def _figures(self) -> str:
        drafted = self._tokens / self._seconds if self._seconds > 0 else 0.0
        return f"{drafted:.1f} tokens/s with drafting, {1 / self._alone.value:.1f} by the target alone"

    def _decide(self, what: str, why: str) -> None:
        self.decisions.append(Decision(what=what, why=why, at_block=self._blocks))
