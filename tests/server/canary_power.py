"""How often the canary blocks, by simulation. As a program it prints the table of docs/releases.md."""

import numpy as np

from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.registry.canary import CanaryConfig, judge

LENGTH = 4
_FALLS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


def drawn(chance: float, blocks: int, rng: np.random.Generator) -> DraftCounters:
    """Blocks of drafts that end at the first rejection, as they do: their proposals hang together."""
    accepted = np.minimum(rng.geometric(1 - chance, blocks) - 1, LENGTH).sum()
    return DraftCounters(drafted=LENGTH * blocks, accepted=int(accepted), blocks=blocks)


def chance_of(rate: float) -> float:
    """The chance of each proposal at which drafts of ``LENGTH`` are accepted at ``rate``."""
    grid = np.linspace(0, 1, 100_001)
    return float(grid[np.searchsorted(sum(grid**k for k in range(1, LENGTH + 1)) / LENGTH, rate)])


def blocked(
    before: float, after: float, blocks: int, config: CanaryConfig, families: int = 1, trials: int = 1000
) -> float:
    """Share of trials in which a release is blocked, whose rate in the first of ``families`` is ``after``."""
    rng = np.random.default_rng(0)
    old, new = chance_of(before), chance_of(after)
    hits = 0
    for _ in range(trials):
        baseline = {f"{i}": drawn(old, blocks, rng) for i in range(families)}
        now = {f"{i}": drawn(old if i else new, blocks, rng) for i in range(families)}
        hits += judge(now, baseline, config).is_blocked
    return hits / trials


def main() -> None:
    """Prints a row for each rate and number of blocks."""
    config = CanaryConfig()
    print(f"| rate | blocks | {' | '.join(f'fall {fall:.0%}' for fall in _FALLS)} |")
    print(f"|---|---|{'---|' * len(_FALLS)}")
    for rate in (0.2, 0.4, 0.7):
        for blocks in (300, 1000, 3000, 10_000):
            shares = [blocked(rate, rate * (1 - fall), blocks, config, families=3) for fall in _FALLS]
            print(f"| {rate} | {blocks:,} | {' | '.join(f'{share:.1%}' for share in shares)} |")


if __name__ == "__main__":
    main()
