"""The acceptance head: its gradient, what it says untrained, that it learns, and that its state survives."""

import numpy as np
import pytest

from fleetdraft.client.pacing import acceptance_head
from fleetdraft.client.pacing.acceptance_head import Examples, acceptance, initial_tensors, loss_and_gradient
from fleetdraft.client.pacing.head_learner import HeadConfig, HeadLearner
from fleetdraft.common.errors import ConfigError, FingerprintError, ModelError

SIZE = 6


def examples(count: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(hidden=rng.standard_normal((count, SIZE)), labels=rng.random(count))


@pytest.mark.parametrize("widest", [SIZE, 4])
@pytest.mark.parametrize("mismatch_weight", [1.0, 6.0])
def test_gradient_is_that_of_finite_differences(
    mismatch_weight: float, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance_head, "WIDEST", widest)
    rng, given, step = np.random.default_rng(1), examples(5), 1e-6
    tensors = {name: rng.standard_normal(value.shape) for name, value in initial_tensors(SIZE, 0).items()}
    _, gradient = loss_and_gradient(tensors, given, mismatch_weight)
    for name, value in tensors.items():
        for place in np.ndindex(value.shape):
            moved = []
            for sign in (1, -1):
                other = value.copy()
                other[place] += sign * step
                moved.append(loss_and_gradient({**tensors, name: other}, given, mismatch_weight)[0])
            assert gradient[name][place] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("widest", [SIZE, 4])
def test_probability_and_loss_are_of_one_network(widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance_head, "WIDEST", widest)
    rng, given = np.random.default_rng(2), examples(4)
    tensors = {name: rng.standard_normal(value.shape) for name, value in initial_tensors(SIZE, 0).items()}
    p = np.array([acceptance(tensors, state) for state in given.hidden])
    expected = -np.mean(given.labels * np.log(p) + 6 * (1 - given.labels) * np.log(1 - p))
    assert loss_and_gradient(tensors, given, 6.0)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("state", [np.zeros(SIZE), np.full(SIZE, 1e18), -np.ones(SIZE)])
def test_untrained_head_says_the_same_prior_whatever_it_sees(state: np.ndarray) -> None:
    assert HeadLearner(SIZE, HeadConfig(), seed=0)(state.astype(np.float32)) == pytest.approx(0.6)


def judged(state: np.ndarray, label: float) -> tuple[list[np.ndarray], list[float]]:
    """What ``observe`` takes: one boundary and its verdict."""
    return [state], [label]


def learned(steps: int, mismatch_weight: float = 1.0) -> HeadLearner:
    """States with a positive first number are accepted nine times of ten, the others one time of ten."""
    learner, rng = (
        HeadLearner(SIZE, HeadConfig(steps=1, mismatch_weight=mismatch_weight), seed=0),
        np.random.default_rng(3),
    )
    for _ in range(steps):
        state = rng.standard_normal(SIZE).astype(np.float32)
        learner.observe(*judged(state, float(rng.random() < (0.9 if state[0] > 0 else 0.1))))
        learner.train()
    return learner


def said(learner: HeadLearner, sign: float) -> float:
    rng = np.random.default_rng(4)
    states = rng.standard_normal((200, SIZE)).astype(np.float32)
    states[:, 0] = sign * (0.5 + np.abs(states[:, 0]))
    return float(np.mean([learner(state) for state in states]))


def test_it_learns_which_states_are_accepted_and_how_often() -> None:
    learner = learned(1500)
    assert said(learner, 1) == pytest.approx(0.9, abs=0.08)
    assert said(learner, -1) == pytest.approx(0.1, abs=0.08)


def test_a_weight_on_refusals_makes_it_more_careful() -> None:
    assert said(learned(600, mismatch_weight=6.0), 1) < said(learned(600), 1) - 0.1


def test_state_goes_on_exactly_after_a_round_trip() -> None:
    one = learned(50)
    other = HeadLearner.from_bytes(one.to_bytes(), SIZE)
    assert (len(other), other.steps) == (len(one), one.steps)
    state = np.ones(SIZE, np.float32)
    for learner in (one, other):
        learner.observe(*judged(state, 1.0))
    assert [one.train() for _ in range(5)] == [other.train() for _ in range(5)]
    assert one(state) == other(state)
    assert one.to_bytes() == other.to_bytes()


@pytest.mark.parametrize("size", [64, 1024])
def test_a_full_memory_and_a_wide_drafter_take_less_than_4_mb_and_go_on_exactly(size: int) -> None:
    one, rng = HeadLearner(size, HeadConfig(), seed=0), np.random.default_rng(5)
    for scale in (*10 ** rng.uniform(-6, 30, HeadConfig().capacity + 1), 0.0):
        one.observe(*judged((scale * rng.standard_normal(size)).astype(np.float32), float(rng.random())))
    one.train()
    assert len(one) == HeadConfig().capacity
    assert len(one.to_bytes()) < 4e6
    other = HeadLearner.from_bytes(one.to_bytes(), size)
    assert [one.train() for _ in range(3)] == [other.train() for _ in range(3)]
    assert one.to_bytes() == other.to_bytes()


@pytest.mark.parametrize("cut", [0, 10, 2000, -1])
def test_torn_state_is_told(cut: int) -> None:
    with pytest.raises(ModelError, match="not an acceptance head, or torn"):
        HeadLearner.from_bytes(learned(3).to_bytes()[:cut], SIZE)


def test_state_of_another_drafter_is_refused() -> None:
    with pytest.raises(FingerprintError, match="hidden size 6, expected 8"):
        HeadLearner.from_bytes(learned(3).to_bytes(), 8)


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    learner = HeadLearner(SIZE, HeadConfig(capacity=4, steps=200), seed=0)
    for label in (0.0,) * 50 + (1.0,) * 4:
        learner.observe(*judged(np.ones(SIZE, np.float32), label))
    assert (len(learner), learner.seen) == (4, 54)
    learner.train()
    assert learner(np.ones(SIZE, np.float32)) > 0.75


def test_a_state_that_is_not_finite_does_not_spoil_the_head() -> None:
    learner = learned(20)
    for _ in range(20):
        learner.observe(*judged(np.full(SIZE, np.nan, np.float32), 1.0))
    learner.train()
    assert len(learner) == 20
    assert 0 < learner(np.ones(SIZE, np.float32)) < 1


@pytest.mark.parametrize("field", ["capacity", "batch_size", "steps", "learning_rate", "mismatch_weight"])
def test_settings_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 0, expected"):
        HeadConfig(**{field: 0})
