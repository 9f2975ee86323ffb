"""The boundary between two positions of a draft: all that a limit of the next one may look at. It decides nothing.

It holds what is drawn already, and rows of the drafter that follow from it. Nothing here depends on a token of the
position that is to be proposed, which is what ``verify.md`` asks of a limit.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..runtimes.decoder import Hidden, Logits
from ..runtimes.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Where a draft may end.

    proposed: target tokens so far. start: their drafter tokens. left: of the block's budget. rows: the drafter's, in
    this block.
    """

    proposed: tuple[int, ...]
    start: tuple[int, ...]
    left: int
    rows: Rows

    @property
    def hidden(self) -> Hidden:
        """float32 (hidden size,): the drafter's state here; empty where it keeps none.

        Costs a drafter call where no walk needed the row yet, which the next position would make.
        """
        return self.rows.hidden(self.start)

    @property
    def row(self) -> Logits:
        """float32 (drafter vocab,): the drafter's logits here; costs what ``hidden`` does."""
        return self.rows.after(self.start)


LimitRule = Callable[[Boundary], int]
"""Drafter tokens that the next position may use at most, of those left; 0 ends the draft.

May depend on anything before the position's first draw, and nothing after.
"""


def unlimited(boundary: Boundary) -> int:
    """Each position may use all that is left."""
    return boundary.left
