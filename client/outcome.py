"""What came of one call of the target: the tokens emitted, and how the target judged what was proposed.

It is what witnesses of generation see (``generation.py``): the learner, the guard, the counters. It stays on the device.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .decoder import Logits
from .pace import BlockCost


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One block. Arrays are valid during the call only; who keeps one copies it.

    A proposal is *judged* if all proposals before it were accepted: the target's row is then the row of the text. So
    ``min(accepted + 1, len(proposed))`` proposals are judged, and the last of them is rejected unless all are accepted.

    tokens: the n >= 1 target tokens just emitted: the accepted proposals, then one of the target's own.
    rows: float32 (n, target vocab): the target's logits for each, before any processor.
    proposed: target tokens; the first ``accepted`` of them begin ``tokens``.
    acceptance: float64 (judged,): min(1, p(t) / r(t)) of each judged proposal; at temperature 0 whether it is the argmax.
    hidden: float32 (judged, hidden size): the drafter's hidden state at the boundary before each judged proposal, from
      which its first drafter token was drawn; (0, 0) where the drafter does not give any.
    cost: counts and seconds of the block.
    """

    tokens: tuple[int, ...]
    rows: Logits
    cost: BlockCost
    proposed: tuple[int, ...] = ()
    accepted: int = 0
    acceptance: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    hidden: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    @property
    def rejected(self) -> int | None:
        """The proposal in whose place ``tokens[accepted]`` was emitted; None if all were accepted."""
        return self.proposed[self.accepted] if self.accepted < len(self.proposed) else None
