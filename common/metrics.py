"""Counters of speculative decoding and the figures made from them, under vLLM's names."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DraftCounters:
    """What was drafted and accepted. A commutative monoid: ``+`` adds field by field, ``DraftCounters()`` is zero.

    drafted counts proposed *target* tokens (a draft that spells no target token counts as one rejected proposal);
    draft_tokens counts *drafter* tokens drawn, of which a target token may need several.
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
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Target tokens emitted per verified block (block efficiency tau), at least 1 when a block was verified."""
        return 1.0 + self.accepted / self.blocks if self.blocks else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """The raw counters: what adds up, and so what crosses the network."""
        return asdict(self)
