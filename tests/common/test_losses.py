"""The reference losses: values from their definitions row by row, gradients against finite differences."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.common import losses
from fleetdraft.common.losses import DIVERGENCES, FLOOR, SPREAD, HybridTerms, divergence, hybrid_loss, log_softmax

every_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def _weights(**chosen: float) -> np.ndarray:
    return np.array([chosen.get(name, 0.0) for name in DIVERGENCES])


def _terms(rows: int, listed: int, vocab: int, name: str) -> HybridTerms:
    """Random teacher rows; the last entry of every second row is padding, and the second row has no divergence."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(listed + 1), size=rows)[:, :listed]
    probs[::2, -1] = 0.0
    weight = rng.random(rows)
    weight[1] = 0.0
    return HybridTerms(
        teacher_ids=np.stack([rng.permutation(vocab)[:listed] for _ in range(rows)]),
        teacher_probs=probs,
        kl_weight=weight,
        labels=rng.integers(0, vocab, rows),
        nll_weight=rng.random(rows),
        divergences=_weights(**{name: 1.0}),
        beta=0.3,
        eta=2.0,
        uniforms=rng.random((rows, 5)),
    )


# --- the definitions, row by row ------------------------------------------------------------------------------------


def _outcomes(logits: np.ndarray, terms: HybridTerms) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """p and q of each row, without padding, the tail last."""
    for row, ids, probs in zip(logits, terms.teacher_ids, terms.teacher_probs, strict=True):
        q = (np.exp(row) / np.exp(row).sum())[ids[probs > 0]]
        p = probs[probs > 0]
        yield np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum())


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def _tvd(p: np.ndarray, q: np.ndarray) -> float:
    return 1 - float(np.minimum(p, q).sum())


def _value(name: str, p: np.ndarray, q: np.ndarray, terms: HybridTerms) -> float:
    m, share = terms.beta * p + (1 - terms.beta) * q, np.exp(-terms.eta * np.minimum(p, q).sum())
    if name == "forward-kl":
        return _kl(p, q)
    if name == "reverse-kl":
        return _kl(q, p)
    if name == "jsd":
        return terms.beta * _kl(p, m) + (1 - terms.beta) * _kl(q, m)
    if name == "lk":
        return float(share * _kl(p, q) + (1 - share) * _tvd(p, q))
    return _tvd(p, q)


def _surrogates(name: str, base: np.ndarray, terms: HybridTerms) -> list[Callable[[np.ndarray, np.ndarray], float]]:
    """For each row a function of p and q that has the loss's gradient at ``base``: what is held fixed is from there."""
    found = list(_outcomes(base, terms))
    if name == "lk":
        shares = [np.exp(-terms.eta * np.minimum(p, q).sum()) for p, q in found]
        return [lambda p, q, s=share: s * _kl(p, q) + (1 - s) * _tvd(p, q) for share in shares]
    if name == "tvd++":
        return [lambda p, q, a=a: -float(a @ q) for a in (_advantage(p, q) for p, q in found)]
    if name == "tvd++sampled":
        return _sampled_surrogates(found, terms)
    return [lambda p, q: _value(name, p, q, terms) for _ in found]


def _advantage(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    mean = q[p > q].sum()
    return ((p > q) - mean) / (np.sqrt(mean * (1 - mean)) + SPREAD)


def _sampled_surrogates(found: list[tuple[np.ndarray, np.ndarray]], terms: HybridTerms) -> list[Callable]:
    drawn = [[int(np.argmax(np.cumsum(q) > u)) for u in row] for (_, q), row in zip(found, terms.uniforms, strict=True)]
    rewards = [[float(p[x] > q[x]) for x in row] for (p, q), row in zip(found, drawn, strict=True)]
    counted = [r for row, weight in zip(rewards, terms.kl_weight, strict=True) if weight > 0 for r in row]
    scaled = [(np.array(row) - np.mean(counted)) / (np.std(counted) + SPREAD) for row in rewards]
    return [lambda p, q, a=a, x=x: -float(np.mean(a * np.log(q[x]))) for a, x in zip(scaled, drawn, strict=True)]


def _numeric_gradient(loss: Callable[[np.ndarray], float], logits: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences."""
    gradient = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        shift = np.zeros_like(logits)
        shift[index] = step
        gradient[index] = (loss(logits + shift) - loss(logits - shift)) / (2 * step)
    return gradient


@every_divergence
def test_value_is_that_of_the_definition(name):
    logits, terms = np.random.default_rng(1).normal(size=(4, 9)), _terms(4, 3, 9, name)
    loss, rows = hybrid_loss(logits, terms), list(_outcomes(logits, terms))
    assert loss.kl == pytest.approx(terms.kl_weight @ [_value(name, p, q, terms) for p, q in rows], rel=1e-12)
    assert loss.overlap == pytest.approx(terms.kl_weight @ [np.minimum(p, q).sum() for p, q in rows], rel=1e-12)


@every_divergence
def test_gradient_is_the_derivative_with_the_frozen_parts_frozen(name):
    logits, terms = np.random.default_rng(1).normal(size=(4, 9)), _terms(4, 3, 9, name)
    rows = _surrogates(name, logits, terms)

    def loss(moved: np.ndarray) -> float:
        pairs = zip(rows, _outcomes(moved, terms), strict=True)
        kl = terms.kl_weight @ [row(p, q) for row, (p, q) in pairs]
        return float(kl - terms.nll_weight @ log_softmax(moved)[np.arange(4), terms.labels])

    # Central differences at 1e-5 in float64 are good to about 1e-10 of values near 1.
    np.testing.assert_allclose(hybrid_loss(logits, terms).gradient, _numeric_gradient(loss, logits), atol=1e-8)


def test_two_outcomes_by_hand():
    p, log_q = np.array([[0.75, 0.25]]), np.log([[0.5, 0.5]])
    forward = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert losses.forward_kl(p, log_q)[0] == pytest.approx(forward)
    assert losses.reverse_kl(p, log_q)[0] == pytest.approx(0.5 * np.log(1 / 1.5) + 0.5 * np.log(2))
    assert losses.tvd(p, log_q)[0] == pytest.approx(0.25)
    assert losses.overlap(p, log_q) == pytest.approx(0.75)
    assert losses.lk(p, log_q, eta=np.log(2) / 0.75)[0] == pytest.approx((forward + 0.25) / 2)
    by_p, by_q = 0.75 * np.log(1.2) + 0.25 * np.log(2 / 3), 0.5 * np.log(0.8) + 0.5 * np.log(4 / 3)
    assert losses.jsd(p, log_q, beta=0.5)[0] == pytest.approx((by_p + by_q) / 2)
    # The reward is 1 for the first outcome alone: mean and spread are 1/2, the advantages 1 and -1.
    np.testing.assert_allclose(losses.tvd_plus(p, log_q)[1], [[-0.5, 0.5]], rtol=1e-5)


def test_several_divergences_add_by_their_weights():
    logits, weights = np.random.default_rng(5).normal(size=(4, 9)), np.arange(1.0, 8)
    parts = [divergence(logits, _terms(4, 3, 9, name)) for name in DIVERGENCES]
    value, gradient, _ = divergence(logits, replace(_terms(4, 3, 9, ""), divergences=weights))
    np.testing.assert_allclose(value, sum(w * part[0] for w, part in zip(weights, parts, strict=True)))
    np.testing.assert_allclose(gradient, sum(w * part[1] for w, part in zip(weights, parts, strict=True)), atol=1e-12)


def _row_loss(name: str, p: np.ndarray, log_q: np.ndarray) -> losses.Loss:
    if name == "tvd++sampled":
        draws = np.random.default_rng(7).random((len(p), 6))
        return losses.tvd_plus_sampled(p, log_q, draws, np.ones(len(p), bool))
    given = {"jsd": {"beta": 0.3}, "lk": {"eta": 2.0}}.get(name, {})
    return getattr(losses, name.replace("-", "_").replace("++", "_plus"))(p, log_q, **given)


def _by_logits(slope: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    return slope - np.exp(log_q) * slope.sum(axis=-1, keepdims=True)


@every_divergence
def test_a_drafter_that_agrees_with_its_teacher_has_no_loss_and_no_gradient(name):
    log_q = log_softmax(np.random.default_rng(2).normal(size=(3, 7)))
    value, slope = _row_loss(name, np.exp(log_q), log_q)
    np.testing.assert_allclose(value, 0.0, atol=1e-12)
    np.testing.assert_allclose(_by_logits(slope, log_q), 0.0, atol=1e-12)


@every_divergence
def test_a_small_step_against_the_gradient_lowers_what_is_reported(name):
    # 40 draws leave the sampled gradient a noise that does not turn it round.
    logits = np.random.default_rng(3).normal(size=(20, 9))
    terms = replace(_terms(20, 4, 9, name), uniforms=np.random.default_rng(4).random((20, 40)))
    terms = replace(terms, nll_weight=np.zeros(20))
    before = hybrid_loss(logits, terms)
    assert hybrid_loss(logits - 1e-3 * before.gradient, terms).kl < before.kl


# --- truncation -----------------------------------------------------------------------------------------------------


@every_divergence
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), steep=st.floats(0.1, 1.5), beta=st.floats(0.01, 0.99), eta=st.floats(0, 30))
def test_listing_fewer_tokens_never_raises_the_loss_nor_lowers_the_overlap(name, seed, steep, beta, eta):
    rng = np.random.default_rng(seed)
    # Probabilities clear of FLOOR, where they are cut.
    logits, p = steep * rng.normal(size=(6, 9)), 0.999 * rng.dirichlet(np.ones(9), size=6) + 0.001 / 9
    ids = np.tile(np.arange(9), (6, 1))
    found = [
        divergence(
            logits,
            replace(_terms(6, k, 9, name), teacher_ids=ids[:, :k], teacher_probs=p[:, :k], beta=beta, eta=eta),
        )
        for k in range(1, 9)
    ]
    assert np.all(np.diff([value for value, _, _ in found], axis=0) >= -1e-9)
    assert np.all(np.diff([overlap for _, _, overlap in found], axis=0) <= 1e-9)


@every_divergence
def test_padding_entries_change_nothing(name):
    logits, terms, zeros = np.random.default_rng(3).normal(size=(4, 9)), _terms(4, 3, 9, name), np.zeros((4, 2))
    longer = replace(
        terms,
        teacher_ids=np.hstack([terms.teacher_ids, terms.teacher_ids[:, :2]]),
        teacher_probs=np.hstack([terms.teacher_probs, zeros]),
    )
    np.testing.assert_array_equal(hybrid_loss(logits, terms).gradient, hybrid_loss(logits, longer).gradient)


@every_divergence
def test_rows_at_the_floor_stay_finite(name):
    logits = np.array([[60.0, 0.0, -60.0], [-60.0, 0.0, 60.0]])
    probs = np.array([[0.0, 1.0], [FLOOR / 100, 1.0]])
    terms = replace(_terms(2, 2, 3, name), teacher_ids=np.array([[0, 0], [0, 2]]), teacher_probs=probs)
    loss = hybrid_loss(logits, replace(terms, kl_weight=np.ones(2)))
    assert np.isfinite(loss.loss)
    assert np.isfinite(loss.gradient).all()


# --- TVD++ ----------------------------------------------------------------------------------------------------------


def test_tvd_plus_divides_each_rows_gradient_by_the_spread_of_its_reward():
    rng = np.random.default_rng(6)
    p, log_q = rng.dirichlet(np.ones(6), size=5), log_softmax(rng.normal(size=(5, 6)))
    mean = np.where(p > np.exp(log_q), np.exp(log_q), 0).sum(axis=1, keepdims=True)
    plain, plus = (_by_logits(_row_loss(name, p, log_q)[1], log_q) for name in ("tvd", "tvd++"))
    np.testing.assert_allclose(plus, plain / np.sqrt(mean * (1 - mean)), rtol=1e-4)


def test_draws_follow_the_drafter():
    log_q = log_softmax(np.random.default_rng(8).normal(size=(3, 5)))
    even = np.tile((np.arange(10_000) + 0.5) / 10_000, (3, 1))
    drawn = losses.draw(log_q, even)
    counts = np.stack([np.bincount(row, minlength=5) for row in drawn])
    np.testing.assert_allclose(counts, 10_000 * np.exp(log_q), atol=1)


def _sampled_gradients(p: np.ndarray, log_q: np.ndarray, normalised: bool, count: int = 2000) -> np.ndarray:
    """By the logits, ``count`` times from fresh draws; not normalised: with the bare reward."""
    rng, found = np.random.default_rng(9), []
    for _ in range(count):
        uniforms = rng.random((len(p), 8))
        slope = losses.tvd_plus_sampled(p, log_q, uniforms, np.ones(len(p), bool))[1]
        if not normalised:
            drawn, slope = losses.draw(log_q, uniforms), np.zeros_like(log_q)
            reward = np.take_along_axis(p > np.exp(log_q), drawn, axis=1)
            np.add.at(slope, (np.arange(len(p))[:, None], drawn), reward / -8)
        found.append(_by_logits(slope, log_q))
    return np.stack(found)


@pytest.fixture(scope="module")
def policy() -> tuple[np.ndarray, np.ndarray, float]:
    """p, log q, and the spread of the reward over the batch."""
    rng = np.random.default_rng(6)
    p, log_q = rng.dirichlet(np.ones(6), size=5), log_softmax(rng.normal(size=(5, 6)))
    mean = np.where(p > np.exp(log_q), np.exp(log_q), 0).sum(axis=1).mean()
    return p, log_q, float(np.sqrt(mean * (1 - mean)))


def test_sampled_gradients_are_on_average_those_of_tvd_by_one_scale(policy):
    p, log_q, spread = policy
    mean = _sampled_gradients(p, log_q, normalised=True).mean(axis=0)
    expected = _by_logits(losses.tvd(p, log_q)[1], log_q)
    scale = (mean * expected).sum() / (expected * expected).sum()
    # 80,000 draws are good to 1 %; a mean over the batch's own 40 draws costs 1/40 of the scale.
    assert scale == pytest.approx(1 / spread, rel=0.05)
    assert np.linalg.norm(mean - scale * expected) <= 0.03 * np.linalg.norm(mean)


def test_the_advantage_lowers_the_variance_of_sampled_gradients(policy):
    p, log_q, spread = policy
    scaled, bare = _sampled_gradients(p, log_q, normalised=True), _sampled_gradients(p, log_q, normalised=False)
    assert (spread * scaled).var(axis=0).sum() < 0.8 * bare.var(axis=0).sum()


def test_rows_without_weight_do_not_count_in_the_advantage():
    logits, terms = np.random.default_rng(1).normal(size=(4, 9)), _terms(4, 3, 9, "tvd++sampled")
    other = logits.copy()
    other[1] = -logits[1]
    there = [0, 2, 3]
    before, after = (hybrid_loss(x, terms).gradient[there] for x in (logits, other))
    np.testing.assert_array_equal(before, after)


def test_a_batch_without_any_divergence_has_no_gradient():
    terms = replace(_terms(4, 3, 9, "tvd++sampled"), kl_weight=np.zeros(4), nll_weight=np.zeros(4))
    assert not hybrid_loss(np.random.default_rng(1).normal(size=(4, 9)), terms).gradient.any()
