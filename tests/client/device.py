"""A device as numbers: what blocks take and what comes of them, for tests of paces. It knows no test."""

from dataclasses import dataclass

import numpy as np

from fleetdraft.client.pacing.boundary import Boundary
from fleetdraft.client.pacing.outcome import BlockCost, Outcome
from fleetdraft.client.pacing.pace import Pace
from fleetdraft.client.runtimes.decoder import TableDecoder
from fleetdraft.client.runtimes.rows import Rows

STATE = np.array([1.0, 0, 0, 0, 0, 0, 0, 0], np.float32)


def outcome_of(cost: BlockCost) -> Outcome:
    """The outcome of a block."""
    judged = min(cost.accepted + 1, cost.proposed)
    return Outcome(
        tokens=(0,) * (cost.accepted + 1),
        rows=np.zeros((cost.accepted + 1, 1), np.float32),
        cost=cost,
        proposed=(0,) * cost.proposed,
        accepted=cost.accepted,
        acceptance=(np.arange(judged) < cost.accepted).astype(np.float64),
    )


def boundary(proposed: int, state: np.ndarray = STATE, budget: int = 8) -> Boundary:
    """The boundary behind so many proposals of one drafter token each."""
    start = (0,) * proposed
    rows = Rows(TableDecoder({(): (0.0,)}), np.zeros(1, np.float32))
    rows._rows[start], rows._hidden[start] = np.zeros(1, np.float32), state
    return Boundary(proposed=start, start=start, left=budget - proposed, rows=rows)


@dataclass(frozen=True)
class Device:
    """Milliseconds: a target call over one token takes ``single``, over k ``batch + k * more``, a draft ``draft``."""

    acceptance: float
    single: float = 10.0
    batch: float = 12.0
    more: float = 0.5
    draft: float = 1.0
    reading: float = 0.3

    def block(self, drafted: int, rng: np.random.Generator, reads: bool = True) -> BlockCost:
        """What a block that drafts so many tokens, each a proposal, takes; ``reads``: the drafter was asked at all."""
        refused = np.flatnonzero(rng.random(drafted) >= self.acceptance)
        target = self.batch + self.more * (drafted + 1) if drafted else self.single
        reading_s = self.reading / 1e3 if reads else 0.0
        return BlockCost(
            draft_tokens=drafted,
            proposed=drafted,
            accepted=int(refused[0]) if len(refused) else drafted,
            target_s=target / 1e3,
            rest_s=reading_s + self.draft * drafted / 1e3,
            reading_s=reading_s,
        )

    def step(self, pace: Pace, rng: np.random.Generator, most: int = 8) -> BlockCost:
        """One block under a pace, which is told."""
        budget = pace.budget(most)
        drafted = next((n for n in range(budget) if not pace.limit(boundary(n, budget=budget))), budget)
        block = self.block(drafted, rng, reads=budget > 0)
        pace.note(outcome_of(block))
        return block

    def tokens_per_s(self, pace: Pace, blocks: int, rng: np.random.Generator, most: int = 8) -> float:
        tokens = seconds = 0.0
        for _ in range(blocks):
            block = self.step(pace, rng, most)
            tokens, seconds = tokens + block.accepted + 1, seconds + block.seconds
        return tokens / seconds

    @property
    def alone(self) -> float:
        """Tokens per second of the target alone."""
        return 1e3 / self.single

    def best(self) -> float:
        """Of all fixed budgets, none included."""
        rng = np.random.default_rng(1)

        def rate(drafted: int) -> float:
            blocks = [self.block(drafted, rng, reads=drafted > 0) for _ in range(3000)]
            return sum(b.accepted + 1 for b in blocks) / sum(b.seconds for b in blocks)

        return max(map(rate, range(9)))
