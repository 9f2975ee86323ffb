"""The modelled clock: every block takes its usual time."""

import pytest

from fleetdraft.client.pacing.outcome import BlockCost
from fleetdraft.simulations.bench.modelled import CostModel


def block(drawn: int, target_s: float, rest_s: float = 0.0, reading_s: float = 0.0) -> BlockCost:
    return BlockCost(
        draft_tokens=drawn,
        proposed=drawn,
        accepted=0,
        target_s=target_s,
        rest_s=rest_s + reading_s,
        reading_s=reading_s,
    )


def test_a_text_takes_the_medians_of_its_parts() -> None:
    """The first block that asks the drafter reads the prompt, whichever it is."""
    read, drawn, alone = block(2, 0.02, 0.004, 0.5), block(2, 0.02, 0.004, 0.001), block(0, 0.01, 0.0005)
    model = CostModel([[read, drawn, alone]] * 3 + [[block(2, 9.0, 9.0, 9.0), block(2, 9.0, 9.0, 9.0)]])
    assert model.seconds([read, drawn, alone]) == pytest.approx(0.524 + 0.025 + 0.0105)
    assert model.seconds([alone, drawn]) == pytest.approx(0.0105 + 0.524)


def test_scoring_more_tokens_never_takes_less() -> None:
    model = CostModel([[block(0, 0.010), block(1, 0.015), block(2, 0.012), block(3, 0.02)]])
    assert model.target_s == {1: 0.010, 2: 0.015, 3: 0.015, 4: 0.02}


def test_a_drafter_that_is_not_asked_costs_nothing() -> None:
    alone, asked = block(0, 0.01), block(0, 0.01, 0.001, 0.002)
    model = CostModel([[alone, alone], [asked, asked]])
    assert model.seconds([alone, alone]) == pytest.approx(0.02)
    assert model.seconds([asked, asked]) == pytest.approx(0.026)
