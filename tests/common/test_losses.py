"""The reference losses: values a person can work out, gradients against finite differences."""

from dataclasses import replace

import numpy as np
import pytest

from fleetdraft.common.losses import FLOOR, HybridTerms, divergence, forward_kl, hybrid_loss, log_softmax, reverse_kl


def _terms(rows: int, listed: int, vocab: int, mix: float) -> HybridTerms:
    """Random teacher rows; the last entry of every second row is padding."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(listed + 1), size=rows)[:, :listed]
    probs[::2, -1] = 0.0
    return HybridTerms(
        teacher_ids=np.stack([rng.permutation(vocab)[:listed] for _ in range(rows)]),
        teacher_probs=probs,
        kl_weight=rng.random(rows),
        labels=rng.integers(0, vocab, rows),
        nll_weight=rng.random(rows),
        mix=mix,
    )


def _numeric_gradient(logits: np.ndarray, terms: HybridTerms, step: float = 1e-5) -> np.ndarray:
    """Central differences."""
    gradient = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        shift = np.zeros_like(logits)
        shift[index] = step
        rise = hybrid_loss(logits + shift, terms).loss - hybrid_loss(logits - shift, terms).loss
        gradient[index] = rise / (2 * step)
    return gradient


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_gradient_is_the_derivative_of_the_loss(mix):
    logits = np.random.default_rng(1).normal(size=(4, 9))
    terms = _terms(4, 3, 9, mix)
    # Central differences at 1e-5 in float64 are good to about 1e-10 of values near 1.
    np.testing.assert_allclose(hybrid_loss(logits, terms).gradient, _numeric_gradient(logits, terms), atol=1e-8)


def test_two_outcomes_by_hand():
    p, q = np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]])
    assert forward_kl(p, np.log(q))[0] == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert reverse_kl(p, np.log(q))[0] == pytest.approx(0.5 * np.log(1 / 1.5) + 0.5 * np.log(2))


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_a_drafter_that_agrees_with_its_teacher_has_no_loss_and_no_gradient(mix):
    logits = np.random.default_rng(2).normal(size=(3, 7))
    ids = np.array([[0, 1, 2], [3, 4, 5], [6, 0, 3]])
    probs = np.take_along_axis(np.exp(log_softmax(logits)), ids, axis=-1)
    value, gradient = divergence(logits, replace(_terms(3, 3, 7, mix), teacher_ids=ids, teacher_probs=probs))
    np.testing.assert_allclose(value, 0.0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def test_padding_entries_change_nothing():
    logits = np.random.default_rng(3).normal(size=(4, 9))
    terms = _terms(4, 3, 9, 0.5)
    zeros = np.zeros((4, 2))
    longer = replace(
        terms,
        teacher_ids=np.hstack([terms.teacher_ids, terms.teacher_ids[:, :2]]),
        teacher_probs=np.hstack([terms.teacher_probs, zeros]),
    )
    np.testing.assert_array_equal(hybrid_loss(logits, terms).gradient, hybrid_loss(logits, longer).gradient)


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_listing_fewer_tokens_never_raises_the_divergence(mix):
    rng = np.random.default_rng(4)
    logits, p = rng.normal(size=(20, 9)), rng.dirichlet(np.ones(9), size=20)
    ids = np.tile(np.arange(9), (20, 1))
    values = [
        divergence(logits, replace(_terms(20, k, 9, mix), teacher_ids=ids[:, :k], teacher_probs=p[:, :k]))[0]
        for k in range(1, 9)
    ]
    assert np.all(np.diff(values, axis=0) >= -1e-12)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_rows_at_the_floor_stay_finite(mix):
    logits = np.array([[60.0, 0.0, -60.0], [-60.0, 0.0, 60.0]])
    probs = np.array([[0.0, 1.0], [FLOOR / 100, 1.0]])
    terms = replace(_terms(2, 2, 3, mix), teacher_ids=np.array([[0, 0], [0, 2]]), teacher_probs=probs)
    loss = hybrid_loss(logits, terms)
    assert np.isfinite(loss.loss)
    assert np.isfinite(loss.gradient).all()
