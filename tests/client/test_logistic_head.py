"""The logistic acceptance head: what it says at first, that it learns at once, and that its state survives."""

import math
from dataclasses import fields

import numpy as np
import pytest

from fleetdraft.client.pacing.acceptance_head import PRIOR
from fleetdraft.client.pacing.boundary import Boundary
from fleetdraft.client.pacing.head_learner import HeadConfig, HeadLearner
from fleetdraft.client.pacing.logistic_head import WIDEST, LogisticConfig, LogisticHead
from fleetdraft.client.runtimes.decoder import TableDecoder
from fleetdraft.client.runtimes.rows import Rows
from fleetdraft.common.errors import ConfigError, FingerprintError, ModelError

SIZE = 6
FOR_EVER = LogisticConfig(forgetting=0.0)


def at(state: np.ndarray, row: tuple[float, ...] = (0.0, 0.0)) -> Boundary:
    """A boundary with this state and this row of the drafter."""
    rows = Rows(TableDecoder({(): row}), np.array(row, np.float32))
    rows._hidden[()] = state.astype(np.float32)
    return Boundary(proposed=(), start=(), left=8, rows=rows)


def learned(count: int, config: LogisticConfig = FOR_EVER, size: int = SIZE) -> LogisticHead:
    """States with a positive first number are accepted nine times of ten, the others one time of ten."""
    head, rng = LogisticHead(size, config), np.random.default_rng(3)
    for _ in range(count):
        state = rng.standard_normal(size)
        head.observe([head.see(at(state))], [float(rng.random() < (0.9 if state[0] > 0 else 0.1))])
        head.train()
    return head


def said(head: LogisticHead, sign: float) -> float:
    rng = np.random.default_rng(4)
    states = rng.standard_normal((200, SIZE))
    states[:, 0] = sign * (0.5 + np.abs(states[:, 0]))
    return float(np.mean([head(head.see(at(state))) for state in states]))


@pytest.mark.parametrize("state", [np.zeros(SIZE), np.full(SIZE, 1e18), np.full(SIZE, -1.0)])
def test_untrained_it_says_the_same_prior_whatever_the_state(state: np.ndarray) -> None:
    head = LogisticHead(SIZE)
    assert head(head.see(at(state))) == pytest.approx(PRIOR)


def test_a_hundred_verdicts_teach_it_which_states_are_accepted() -> None:
    head = learned(100)
    assert said(head, 1) > 0.75
    assert said(head, -1) < 0.25


def test_many_verdicts_teach_it_how_often() -> None:
    head = learned(3000)
    assert said(head, 1) == pytest.approx(0.9, abs=0.08)
    assert said(head, -1) == pytest.approx(0.1, abs=0.08)


def test_how_sure_the_drafter_is_counts_beside_its_state() -> None:
    head, state = LogisticHead(SIZE), np.ones(SIZE)
    sure, unsure = (9.0, 0.0, 0.0), (0.1, 0.0, 0.0)
    for _ in range(60):
        head.observe([head.see(at(state, sure)), head.see(at(state, unsure))], [1.0, 0.0])
        head.train()
    assert head(head.see(at(state, sure))) > 0.85
    assert head(head.see(at(state, unsure))) < 0.15


def test_sureness_is_the_log_of_the_largest_probability() -> None:
    seen = LogisticHead(SIZE).see(at(np.ones(SIZE), (math.log(3), 0.0, -math.inf)))
    assert seen[-2] == pytest.approx(math.log(0.75))


def test_where_all_verdicts_are_alike_it_is_the_posterior_of_a_gaussian_belief() -> None:
    """As long as P is near one half, a step is that of a linear model with noise 1 / s, whose posterior is known."""
    head, rng = LogisticHead(SIZE, LogisticConfig(forgetting=0.0, state_variance=1e-4)), np.random.default_rng(0)
    head._weights[-1] = 0.0
    variances = head._variances * 1e-3
    head._variances, head._covariance = variances, np.diag(variances)
    rows, labels = [head.see(at(rng.standard_normal(SIZE))) for _ in range(40)], rng.random(40).round()
    head.observe(rows, labels)
    head.train()
    x = np.array(rows)
    precision = np.diag(1 / variances) + 0.25 * x.T @ x
    np.testing.assert_allclose(head._covariance, np.linalg.inv(precision), rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(head._weights, np.linalg.solve(precision, x.T @ (labels - 0.5)), rtol=0.05, atol=1e-5)


def test_what_waits_is_learned_once_and_bounded() -> None:
    head = LogisticHead(SIZE, LogisticConfig(pending=3))
    seen = head.see(at(np.ones(SIZE)))
    head.observe([seen] * 5, [1.0] * 5)
    assert (len(head), head.seen) == (3, 0)
    assert head.train() > 0
    assert (len(head), head.seen, head.train()) == (0, 3, 0.0)


def test_it_follows_a_drafter_that_changes() -> None:
    """What was learned of 3,000 verdicts does not keep it from learning the opposite of 3,000."""
    head, rng = learned(3000, LogisticConfig()), np.random.default_rng(5)
    for _ in range(3000):
        state = rng.standard_normal(SIZE)
        head.observe([head.see(at(state))], [float(state[0] < 0)])
        head.train()
    assert said(head, 1) < 0.4
    assert said(head, -1) > 0.6


def test_the_belief_stays_one_over_many_verdicts() -> None:
    """Symmetric, with positive variances no larger than the first ones."""
    head = learned(4000, LogisticConfig(forgetting=1e-3))
    spectrum = np.linalg.eigvalsh(head._covariance)
    np.testing.assert_allclose(head._covariance, head._covariance.T, atol=1e-12)
    assert spectrum.min() > 0
    assert spectrum.max() <= head._variances.max()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_boundary_without_numbers_does_not_spoil_it(number: float) -> None:
    head = learned(20)
    head.observe([head.see(at(np.full(SIZE, number))), head.see(at(np.ones(SIZE), (number, 0.0)))], [1.0, 0.0])
    head.train()
    assert 0 < head(head.see(at(np.ones(SIZE)))) < 1


@pytest.mark.parametrize("size", [SIZE, 1024])
def test_state_goes_on_exactly_after_a_round_trip_in_less_than_1_mb(size: int) -> None:
    one = learned(40, size=size)
    one.observe([one.see(at(np.ones(size)))], [1.0])
    data = one.to_bytes()
    other = LogisticHead.from_bytes(data, size)
    assert len(data) < 1e6
    assert (len(other), other.seen) == (1, one.seen)
    assert one.train() == other.train()
    assert one.to_bytes() == other.to_bytes()


def test_a_wide_state_is_seen_through_so_many_directions_that_keep_its_size() -> None:
    seen = LogisticHead(1024).see(at(np.random.default_rng(0).standard_normal(1024)))
    assert len(seen) == WIDEST + 2
    assert np.linalg.norm(seen[:-2]) == pytest.approx(math.sqrt(1024), rel=0.15)


@pytest.mark.parametrize("cut", [0, 10, 500, -1])
def test_torn_state_is_told(cut: int) -> None:
    with pytest.raises(ModelError, match="not an acceptance head, or torn"):
        LogisticHead.from_bytes(learned(3).to_bytes()[:cut], SIZE)


def test_state_of_another_drafter_or_of_another_head_is_refused() -> None:
    with pytest.raises(FingerprintError, match="hidden size 6, expected 8"):
        LogisticHead.from_bytes(learned(3).to_bytes(), 8)
    with pytest.raises(ModelError, match="expected 'fleetdraft logistic acceptance head 1'"):
        LogisticHead.from_bytes(HeadLearner(SIZE, HeadConfig(), 0).to_bytes(), SIZE)


def test_settings_out_of_range_are_refused() -> None:
    for field in fields(LogisticConfig):
        with pytest.raises(ConfigError, match=field.name):
            LogisticConfig(**{field.name: -1})
    with pytest.raises(ConfigError, match="gives no states"):
        LogisticHead(0)


def test_verdicts_make_it_surer_and_boundaries_without_any_less_sure() -> None:
    head = learned(400, LogisticConfig(forgetting=1e-3))
    x = head.see(at(np.ones(SIZE)))
    sure = head.doubt(x)
    assert sure < 0.5 * LogisticHead(SIZE).doubt(x)
    for _ in range(200):
        head.observe([x], [])
        head.train()
    assert head.doubt(x) > 1.2 * sure
