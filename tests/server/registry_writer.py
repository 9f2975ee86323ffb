"""Changes a registry as fast as it can and prints what was returned, until it is killed: ``registry_writer.py DIR``.

Rounds, verdicts both good and bad, promotions and rollbacks. The line printed after each is where the registry stood.
"""

import sys
from pathlib import Path

import numpy as np

from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.shape import DecoderShape
from fleetdraft.server.registry import decisions
from fleetdraft.server.registry.catalogue import Catalogue
from fleetdraft.server.registry.registry import Registry

SHAPE = DecoderShape(
    vocab_size=32, hidden_size=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
LAYOUT = LoraLayout(rank=2, alpha=4, shape=SHAPE)


def opened(root: Path) -> Registry:
    return Registry(root, LAYOUT, "base")


def measured(rate: float) -> dict[str, DraftCounters]:
    return {"spm": DraftCounters(drafted=4000, accepted=int(4000 * rate), blocks=1000)}


def carried(round: int) -> bytes:
    """Of a size that changes."""
    return round.to_bytes(8, "little") * (1 + round % 900)


def change(root: Path, registry: Registry, round: int) -> None:
    """One round, and what an operator does now and then between two."""
    adapter = registry.head().adapter
    value = np.float32(round % 7 + 1)
    registry.write(
        adapter.plus({name: np.full(shape, value, np.float32) for name, shape in LAYOUT.shapes.items()}),
        round=round,
        rule="fedit",
        participants=("ann",),
        rejected={},
        families={},
        carried=carried(round),
        privacy={"epsilon": float(round)},
    )
    tell(registry, root)
    registry.evaluated(measured(0.1 if round % 3 == 0 else 0.4))
    tell(registry, root)
    if round % 5 == 0:
        registry.close()
        decide(root, round)
        tell(registry, root)


def decide(root: Path, round: int) -> None:
    catalogue = Catalogue(root)
    now = catalogue.standing()
    try:
        if round % 2 and len(now.promotions) > 1:
            decisions.roll_back(catalogue, "tried")
        else:
            decisions.promote(catalogue, now.releases[0], "tried")
    finally:
        catalogue.close()


def tell(registry: Registry, root: Path) -> None:
    """The number of events, of the head and of the newest round."""
    print(len(Catalogue(root).events()), registry.head().number, registry.last_round(), flush=True)


if __name__ == "__main__":
    with opened(Path(sys.argv[1])) as registry:
        registry.begin(LAYOUT.initial(seed=0))
        round = registry.last_round()
        while True:
            round += 1
            change(Path(sys.argv[1]), registry, round)
