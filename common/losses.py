"""The drafter's training loss in float64 NumPy, with gradients: what the train graph must agree with.

Each row compares drafter ``q`` with teacher ``p`` over K + 1 outcomes: K listed drafter tokens and the *tail*, the
mass of all others. Listing only the top K loses what the teacher says *within* the tail: by the log-sum inequality both
divergences of the truncated rows are lower bounds of those of the full rows. It knows no model and no optimiser.

Source: ALGORITHMS §3; forward and reverse KL of knowledge distillation, the path term of OmniDraft's hybrid loss.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

#: Least tail mass, and least teacher probability inside a logarithm: a term of the reverse KL is at most log(1e6) for
#: it, and 1 - Σq stays clear of float32 rounding.
FLOOR = 1e-6
#: Log-probability of a padding entry: its exponential is 0 in float32, yet 0 times it is 0 and not NaN.
PADDING_LOG = -1e3


@dataclass(frozen=True, kw_only=True)
class HybridTerms:
    """What N rows of logits are compared with.

    teacher_ids: int64 (N, K) drafter tokens, distinct within a row but for padding.
    teacher_probs: (N, K); an entry of 0 is padding and its id is ignored.
    labels: int64 (N,) the drafter token of an n-gram's path.
    kl_weight, nll_weight: (N,), already normalised.
    mix: 1 is KL(p‖q), 0 is KL(q‖p), linear between.
    """

    teacher_ids: NDArray[np.int64]
    teacher_probs: Reals
    kl_weight: Reals
    labels: NDArray[np.int64]
    nll_weight: Reals
    mix: float


@dataclass(frozen=True, kw_only=True)
class HybridLoss:
    """``kl`` = Σ kl_weight · divergence, ``nll`` = Σ nll_weight · (−log q(label)); gradient: (N, V) of their sum."""

    kl: float
    nll: float
    gradient: Reals

    @property
    def loss(self) -> float:
        return self.kl + self.nll


def forward_kl(p: Reals, log_q: Reals) -> tuple[Reals, Reals]:
    """KL(p‖q) by row, and its gradient by log q: covers what the teacher does.

    Args:
      p, log_q: (N, outcomes).

    Returns:
      (N,) divergences and (N, outcomes) gradients.
    """
    return (p * (_floored_log(p) - log_q)).sum(axis=-1), -p


def reverse_kl(p: Reals, log_q: Reals) -> tuple[Reals, Reals]:
    """KL(q‖p) by row, and its gradient by log q: avoids what the teacher does not do. Shapes as in ``forward_kl``."""
    q, ratio = np.exp(log_q), log_q - _floored_log(p)
    return (q * ratio).sum(axis=-1), q * (ratio + 1.0)


def divergence(logits: Reals, terms: HybridTerms) -> tuple[Reals, Reals]:
    """mix · KL(p‖q) + (1 − mix) · KL(q‖p) over listed tokens and tail.

    Args:
      logits: (N, V).

    Returns:
      (N,) divergences and (N, V) gradients by the logits.
    """
    log_q = log_softmax(logits)
    listed = np.where(terms.teacher_probs > 0, np.take_along_axis(log_q, terms.teacher_ids, axis=-1), PADDING_LOG)
    q_tail, p_tail = _tail(np.exp(listed)), _tail(terms.teacher_probs)
    p_row, log_q_row = np.hstack([terms.teacher_probs, p_tail]), np.hstack([listed, np.log(q_tail)])
    forward, forward_slope = forward_kl(p_row, log_q_row)
    reverse, reverse_slope = reverse_kl(p_row, log_q_row)
    slope = terms.mix * forward_slope + (1 - terms.mix) * reverse_slope
    # log q_tail = log(1 - Σ exp(listed)), constant where it is floored.
    slope_of_tail = np.where(q_tail > FLOOR, slope[:, -1:] / q_tail, 0.0)
    by_listed = slope[:, :-1] - slope_of_tail * np.exp(listed)
    value = terms.mix * forward + (1 - terms.mix) * reverse
    return value, _through_log_softmax(log_q, terms.teacher_ids, by_listed)


def negative_log_likelihood(logits: Reals, labels: NDArray[np.int64]) -> tuple[Reals, Reals]:
    """−log softmax(logits)[label] by row (N,), and its gradient by the logits (N, V)."""
    log_q, columns = log_softmax(logits), labels[:, None]
    value = -np.take_along_axis(log_q, columns, axis=-1)[:, 0]
    return value, _through_log_softmax(log_q, columns, np.full(columns.shape, -1.0))


def hybrid_loss(logits: Reals, terms: HybridTerms) -> HybridLoss:
    """Σ kl_weight · divergence + Σ nll_weight · (−log q(label)).

    Args:
      logits: (N, V) the drafter's rows.
      terms: N teacher rows, labels and weights.
    """
    kl, kl_gradient = divergence(logits, terms)
    nll, nll_gradient = negative_log_likelihood(logits, terms.labels)
    gradient = terms.kl_weight[:, None] * kl_gradient + terms.nll_weight[:, None] * nll_gradient
    return HybridLoss(kl=float(terms.kl_weight @ kl), nll=float(terms.nll_weight @ nll), gradient=gradient)


def log_softmax(logits: Reals) -> Reals:
    """Row-wise, shifted by the row's maximum so that nothing overflows."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _through_log_softmax(log_q: Reals, ids: NDArray[np.int64], slope: Reals) -> Reals:
    """Gradient by the logits of a function of log q[ids] whose gradient there is ``slope`` (N, K)."""
    gradient = -slope.sum(axis=-1, keepdims=True) * np.exp(log_q)
    np.add.at(gradient, (np.arange(len(ids))[:, None], ids), slope)
    return gradient


def _tail(listed: Reals) -> Reals:
    """(N, 1): what the listed probabilities (N, K) leave, at least FLOOR."""
    return np.maximum(1.0 - listed.sum(axis=-1, keepdims=True), FLOOR)


def _floored_log(x: Reals) -> Reals:
    return np.log(np.maximum(x, FLOOR))
