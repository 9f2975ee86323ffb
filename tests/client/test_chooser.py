"""The random chooser draws by weight; the enumeration visits every branch once with its probability."""

import numpy as np
import pytest

from fleetdraft.client.decoding.chooser import Chooser, RandomChooser, enumerate_outcomes
from fleetdraft.client.decoding.sampling import RUN, Weights


def test_random_chooser_draws_by_weight_and_never_a_zero() -> None:
    chooser, weights = RandomChooser(np.random.default_rng(0)), Weights(np.array([0.0, 3.0, 0.0, 1.0, 0.0]))
    drawn = np.bincount([chooser.choose(weights) for _ in range(4000)], minlength=5)
    assert drawn[[0, 2, 4]].sum() == 0
    assert drawn[1] == pytest.approx(3000, abs=110)  # four standard deviations


def test_random_chooser_draws_by_weight_over_a_wide_row() -> None:
    chooser, values, likely = (
        RandomChooser(np.random.default_rng(0)),
        np.zeros(1000, np.float32),
        [0, RUN - 1, RUN, 999],
    )
    values[likely] = [1.0, 2.0, 3.0, 4.0]
    weights = Weights(values)
    drawn = np.bincount([chooser.choose(weights) for _ in range(4000)], minlength=1000)
    assert drawn[likely] == pytest.approx([400, 800, 1200, 1600], abs=125)  # four standard deviations
    assert drawn.sum() == drawn[likely].sum()


def test_random_chooser_accepts_always_at_one_and_never_at_zero() -> None:
    chooser = RandomChooser(np.random.default_rng(0))
    assert all(chooser.accept(1.0) and not chooser.accept(0.0) for _ in range(100))


@pytest.mark.parametrize("probability", [-1e-9, 1.0 + 1e-9, float("nan")])
def test_enumeration_refuses_a_coin_that_is_none(probability: float) -> None:
    """A negative mass could cancel an error of the law."""
    with pytest.raises(ValueError, match="expected 0 to 1"):
        enumerate_outcomes(lambda chooser: chooser.accept(probability))


def test_enumeration_gives_the_exact_law() -> None:
    def run(chooser: Chooser) -> str:
        first = chooser.choose(Weights(np.array([1.0, 0.0, 3.0])))
        return "kept" if first == 0 or chooser.accept(0.5) else "refused"

    assert enumerate_outcomes(run) == {"kept": 0.625, "refused": 0.375}
