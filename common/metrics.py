"""Counters of speculative decoding and the figures made from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

RATIOS: Mapping[str, tuple[str, str]] = {
    "draft_acceptance_rate": ("accepted", "drafted"),
    "mean_acceptance_length": ("tokens", "target_calls"),
    "tokens_per_s": ("tokens", "seconds"),
}
"""By figure, the two counters of which it is the ratio: of sums, so that it can be made for any number of texts."""


@dataclass(frozen=True, kw_only=True)
class DraftCounters:
    """What was drafted and accepted. A commutative monoid: ``+`` adds field by field, ``DraftCounters()`` is zero.

    drafted counts proposed *target* tokens (a draft that spells no target token counts as one rejected proposal);
    draft_tokens counts *drafter* tokens drawn, of which a target token may need several.
    tokens are those that became part of the text: where an accepted token ends it, the one behind is none.
    target_calls leave out the reading of the prompt.
    """

    prompts: int = 0
    tokens: int = 0
    target_calls: int = 0
    blocks: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_tokens: int = 0
    drafter_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: "DraftCounters") -> "DraftCounters":
        return DraftCounters(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def contradiction(self) -> str:
        """What of the counters cannot be true together, on one line; empty where all can."""
        if self.accepted > self.drafted:
            return f"accepted is {self.accepted}, expected at most drafted = {self.drafted}"
        if self.accepted > 0 and self.blocks < 1:
            return f"accepted is {self.accepted} in {self.blocks} blocks, expected at least 1 block"
        return ""

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted proposals per proposal; 0 when nothing was drafted."""
        return self._ratio("draft_acceptance_rate")

    @property
    def mean_acceptance_length(self) -> float:
        """tau, the block efficiency of the papers: tokens emitted per call of the target; 0 when there was none.

        Not ``1 + accepted / blocks``, which counts a token that is never emitted wherever an accepted one ends a text.
        """
        return self._ratio("mean_acceptance_length")

    @property
    def tokens_per_s(self) -> float:
        return self._ratio("tokens_per_s")

    def _ratio(self, name: str) -> float:
        over, under = (getattr(self, counter) for counter in RATIOS[name])
        return float(over / under) if under else 0.0

    def to_json(self) -> dict[str, Any]:
        """The raw counters: what adds up, and so what crosses the network."""
        return asdict(self)
