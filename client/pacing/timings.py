"""What drafting and scoring take on this device, by what was measured lately. It knows no acceptance."""

from itertools import accumulate, pairwise

from .means import Line, Mean
from .outcome import BlockCost


class Timings:
    """Seconds of the parts of a block, as means of the newest ones."""

    def __init__(self) -> None:
        self._scoring: dict[int, Mean] = {}
        """Of the target's call by the number of tokens it scored."""
        self._table: list[float] = []
        """``scoring``; empty until it is asked for."""
        self._drafting, self._tokens_per_position, self._reading = Line(), Mean(), Mean()

    def note(self, block: BlockCost) -> None:
        """Takes a block in."""
        self._scoring.setdefault(block.proposed + 1, Mean()).add_time(block.target_s)
        self._table = []
        if block.reading_s > 0:
            self._reading.add_time(block.reading_s)
        if block.proposed:
            self._drafting.add(block.draft_tokens, block.rest_s - block.reading_s)
            self._tokens_per_position.add(block.draft_tokens / block.proposed)

    @property
    def drafted(self) -> bool:
        """Whether a block with a proposal was seen; before, what a draft takes is not known."""
        return self._tokens_per_position.count > 0

    @property
    def tokens_per_position(self) -> float:
        """Drafter tokens of a proposed target token, at least one."""
        return max(1.0, self._tokens_per_position.value)

    def rest_s(self, draft_tokens: float) -> float:
        """Everything but the target's call, for a block that drafts so many tokens."""
        return self._reading.value + self._drafting.at(draft_tokens)

    @property
    def draft_token_s(self) -> float:
        """One more drafter token."""
        return self._drafting.slope

    @property
    def position_s(self) -> float:
        """One more position, without the target's part."""
        return self._drafting.slope * self.tokens_per_position

    @property
    def scoring(self) -> list[float]:
        """Seconds of the target's call over 1, 2, 3 … tokens, as far as was measured; nothing at first.

        Between the measured numbers a line; never less than for fewer tokens: means of few blocks are noisy.
        """
        if self._scoring and not self._table:
            known = sorted(self._scoring)
            least = list(accumulate((self._scoring[n].value for n in known), max))
            self._table = [least[0]] * known[0]
            for (below, shorter), (above, longer) in pairwise(zip(known, least, strict=True)):
                step = (longer - shorter) / (above - below)
                self._table += [shorter + step * more for more in range(1, above - below + 1)]
        return self._table

    def scoring_s(self, tokens: float) -> float:
        """The target's call over so many tokens, one or more, also between two numbers; beyond ``scoring`` as its last.

        At first 0.
        """
        if not (table := self.scoring):
            return 0.0
        below, last = int(tokens - 1), len(table) - 1
        if below >= last:
            return table[last]
        return table[below] + (tokens - 1 - below) * (table[below + 1] - table[below])
