"""What texts would take if every block took its usual time: a clock without a machine's noise. It knows no contestant.

What a text drafted, scored and had accepted is counted; what each of that takes is a median over all texts of a run, of
all contestants. Two contestants are then told apart by their blocks alone. What a controller's own learning takes is in
no block, and so not in here.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from statistics import median
from typing import Any

from ...client.pacing.outcome import BlockCost, Outcome


class Costs:
    """A witness that keeps what the blocks of a text took."""

    def __init__(self) -> None:
        self.blocks: list[BlockCost] = []

    def observe(self, outcome: Outcome) -> None:
        self.blocks.append(outcome.cost)


class CostModel:
    """Usual seconds of a block's parts.

    The target's call by the number of tokens it scores, never less than for fewer; the drafter's reading, of the prompt
    and of what follows it; everything else by the number of drafter tokens drawn.

    Args:
      texts: the blocks of each.
    """

    def __init__(self, texts: Iterable[Sequence[BlockCost]]) -> None:
        target, reading, rest = _lists(), _lists(), _lists()
        for blocks in texts:
            for first, block in _marked(blocks):
                target[block.proposed + 1].append(block.target_s)
                rest[_drawn(block)].append(block.rest_s - block.reading_s)
                if block.reading_s > 0:
                    reading[first].append(block.reading_s)
        scored = sorted(target)
        self._target = dict(zip(scored, accumulate((median(target[n]) for n in scored), max), strict=True))
        self._reading = {first: median(seconds) for first, seconds in reading.items()}
        self._rest = {drawn: median(seconds) for drawn, seconds in rest.items()}

    @property
    def target_s(self) -> dict[int, float]:
        """Of a call by the number of tokens it scores."""
        return dict(self._target)

    def seconds(self, blocks: Sequence[BlockCost]) -> float:
        """Of a text with these blocks, which were among ``texts``; without the target's reading of the prompt."""
        return sum(
            self._target[block.proposed + 1]
            + self._rest[_drawn(block)]
            + (self._reading[first] if block.reading_s > 0 else 0.0)
            for first, block in _marked(blocks)
        )


def _lists() -> defaultdict[Any, list[float]]:
    return defaultdict(list)


def _drawn(block: BlockCost) -> int:
    """Drafter tokens drawn; -1 where the drafter was not asked."""
    return block.draft_tokens if block.reading_s > 0 else -1


def _marked(blocks: Sequence[BlockCost]) -> Iterable[tuple[bool, BlockCost]]:
    """Each block, and whether the drafter read the prompt in it."""
    first = next((n for n, block in enumerate(blocks) if block.reading_s > 0), None)
    return ((n == first, block) for n, block in enumerate(blocks))
