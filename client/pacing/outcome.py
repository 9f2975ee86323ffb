"""What came of one call of the target: the tokens emitted, and how the target judged what was proposed.

Witnesses of generation see it (``generation.py``): the learner, the guard, the counters. It stays on the device.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...common.metrics import DraftCounters
from ..runtimes.decoder import Logits


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """What one block drafted, what came of it, and what it took."""

    draft_tokens: int
    proposed: int
    """Target tokens; the target's call scored one more."""
    accepted: int
    target_s: float
    """Seconds of the target's call."""
    rest_s: float
    """Seconds of everything else: drafting, verification, the drafter's context."""
    reading_s: float = 0.0
    """Of these, the drafter's reading of what was emitted before, its first row included."""
    drafter_calls: int = 0
    """The reading and what else was evaluated, in verification too."""

    @property
    def seconds(self) -> float:
        """Of the whole block."""
        return self.target_s + self.rest_s


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One block. Arrays are valid during the call only; who keeps one copies it.

    A proposal is *judged* if all proposals before it were accepted: the target's row is then the row of the text. So
    ``min(accepted + 1, len(proposed))`` proposals are judged, and the last of them is rejected unless all are accepted.

    tokens: the n >= 1 target tokens just emitted: the accepted proposals, then one of the target's own.
    rows: float32 (n, target vocab): the target's logits for each, before any processor.
    proposed: target tokens; the first ``accepted`` of them begin ``tokens``.
    acceptance: float64 (judged,): min(1, p(t) / r(t)) of each judged proposal; at temperature 0, 1 if it is the argmax.
    cost: counts and seconds of the whole block, also where the text ended within it.
    """

    tokens: tuple[int, ...]
    rows: Logits
    cost: BlockCost
    proposed: tuple[int, ...] = ()
    accepted: int = 0
    acceptance: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def rejected(self) -> int | None:
        """The proposal in whose place ``tokens[accepted]`` was emitted; None if all were accepted."""
        return self.proposed[self.accepted] if self.accepted < len(self.proposed) else None

    @property
    def counters(self) -> DraftCounters:
        """What it adds to a text's; seconds without the reading of the prompt."""
        return DraftCounters(
            tokens=len(self.tokens),
            target_calls=1,
            blocks=1,
            drafted=len(self.proposed),
            accepted=self.accepted,
            draft_tokens=self.cost.draft_tokens,
            drafter_calls=self.cost.drafter_calls,
            seconds=self.cost.seconds,
        )

    def first(self, count: int) -> "Outcome":
        """The same as far as the first ``count`` tokens tell: a text may end within a block."""
        if count >= len(self.tokens):
            return self
        return replace(
            self,
            tokens=self.tokens[:count],
            rows=self.rows[:count],
            proposed=self.proposed[:count],
            accepted=min(self.accepted, count),
            acceptance=self.acceptance[:count],
        )
