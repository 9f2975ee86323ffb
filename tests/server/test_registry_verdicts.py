"""What a verdict does to a registry: who is promoted, who is blocked, and where the next round starts."""

import numpy as np
import pytest

from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.registry.canary import CanaryConfig
from fleetdraft.server.registry.catalogue import Catalogue
from fleetdraft.server.registry.registry import Registry


@pytest.fixture
def registry(tmp_path, layout) -> Registry:
    registry = Registry(tmp_path, layout, "base")
    registry.begin(layout.initial(seed=0))
    return registry


def step(registry: Registry, round: int, value: float = 0.5, **more):
    adapter = registry.head().adapter
    delta = {name: np.full(shape, value, np.float32) for name, shape in adapter.layout.shapes.items()}
    lineage = {"rule": "fedit", "participants": ("ann",), "rejected": {}, "families": {}}
    return registry.write(adapter.plus(delta), round=round, **(lineage | more))


def measured(rate: float) -> dict[str, DraftCounters]:
    return {"spm": DraftCounters(drafted=4000, accepted=round(4000 * rate), blocks=1000)}


def test_nothing_is_promoted_before_it_was_measured(registry) -> None:
    step(registry, round=1)
    assert registry.promoted() is None
    assert registry.evaluation() == {}


def test_a_release_that_lowers_nobody_is_promoted(registry, tmp_path, layout) -> None:
    assert registry.evaluated(measured(0.4)).outcome == "promoted"
    step(registry, round=1)
    assert registry.promoted().number == 0
    assert registry.evaluated(measured(0.41)).outcome == "promoted"
    read = Registry(tmp_path, layout, "base")
    assert (read.promoted().number, read.head().number, read.evaluation()) == (1, 1, measured(0.41))


def test_a_blocked_release_is_kept_and_the_next_round_starts_from_the_promoted_one(registry) -> None:
    registry.evaluated(measured(0.4))
    step(registry, round=1, carried=b"bad moments")
    assert registry.evaluated(measured(0.2)).is_blocked
    assert (registry.head().number, registry.promoted().number, registry.carried()) == (0, 0, b"")
    after = step(registry, round=2, value=0.25)
    assert after.number == 2
    assert [lineage.number for lineage in registry.history()] == [0, 2]


def test_a_block_takes_back_all_that_came_since_the_promoted_release(registry) -> None:
    """Evaluated every third round: which of the three did it, nobody knows."""
    registry.evaluated(measured(0.4))
    for round in (1, 2, 3):
        step(registry, round)
    assert registry.evaluated(measured(0.2)).is_blocked
    assert registry.head().number == 0


def test_a_blocked_round_is_not_done_again_and_what_it_spent_stays_spent(registry) -> None:
    registry.evaluated(measured(0.4))
    step(registry, round=1, privacy={"epsilon": 2.0})
    registry.evaluated(measured(0.2))
    assert (registry.lineage().round, registry.last_round()) == (0, 1)
    assert registry.privacy() == {"epsilon": 2.0}


def test_an_undecided_release_stays_the_head_and_is_not_promoted(registry, tmp_path) -> None:
    registry.evaluated(measured(0.4))
    step(registry, round=1)
    assert registry.evaluated({}).outcome == "undecided"
    assert (registry.head().number, registry.promoted().number) == (1, 0)
    assert Catalogue(tmp_path).events()[-1].reason.startswith("undecided: spm unknown (0.400 to –): fewer than 200")


def test_the_promoted_release_is_not_judged_against_itself(registry) -> None:
    registry.evaluated(measured(0.4))
    assert registry.evaluated(measured(0.1)).outcome == "promoted"
    step(registry, round=1)
    assert registry.evaluated(measured(0.1)).outcome == "promoted"


def test_the_tolerance_is_the_callers(registry) -> None:
    registry.evaluated(measured(0.4))
    step(registry, round=1)
    assert registry.evaluated(measured(0.3), CanaryConfig(tolerance=0.5)).outcome == "promoted"
