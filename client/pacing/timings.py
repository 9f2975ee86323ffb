"""What drafting and scoring take on this device, by what was measured lately. It knows no acceptance."""

from .means import Line, Mean
from .outcome import BlockCost


class Timings:
    """Seconds of the parts of a block, as means of the newest ones."""

    def __init__(self) -> None:
        self._scoring: dict[int, Mean] = {}
        """Of the target's call by the number of tokens it scored."""
        self._drafting, self._tokens_per_position, self._reading = Line(), Mean(), Mean()

    def note(self, block: BlockCost) -> None:
        """Takes a block in."""
        self._scoring.setdefault(block.proposed + 1, Mean()).add_time(block.target_s)
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

    def scoring_s(self, tokens: float) -> float:
        """The target's call over so many tokens: between the measured numbers, or the nearest one's; at first 0.

        Never less than for fewer tokens: means of few blocks are noisy.
        """
        known = sorted(self._scoring)
        below = max((self._scoring[k].value for k in known if k <= tokens), default=None)
        above = next((k for k in known if k > tokens), None)
        if above is None or below is None:
            return below if below is not None else self._scoring[known[0]].value if known else 0.0
        nearest = max(k for k in known if k <= tokens)
        share = (tokens - nearest) / (above - nearest)
        return (1 - share) * below + share * max(below, self._scoring[above].value)
