"""The drafter's training losses in float64 NumPy, with gradients: what the train graph must agree with.

Each row compares drafter ``q`` with teacher ``p`` over K + 1 outcomes: K listed drafter tokens and the *tail*, the
mass of all others. It knows no model and no optimiser.

| divergence     | value                               | with fewer tokens listed                                      |
|----------------|-------------------------------------|---------------------------------------------------------------|
| forward-kl     | KL(p‖q)                             | lower: what p says *within* the tail is lost                  |
| reverse-kl     | KL(q‖p)                             | lower; a q spread wrongly within the tail costs nothing       |
| jsd            | β KL(p‖m) + (1 − β) KL(q‖m), m = βp + (1 − β)q | lower                                              |
| tvd            | ½ Σ abs(p − q) = 1 − Σ min(p, q)    | lower: mass swapped within the tail counts as agreement       |
| tvd++          | TVD; its gradient is another one    | lower; the whole tail is one action with one advantage        |
| tvd++sampled   | TVD; its gradient is another one    | as tvd++: a draw from the tail is one action                  |
| lk             | λ KL(p‖q) + (1 − λ) TVD             | lower, and λ too: rows look better accepted than they are     |

All but the last three are f-divergences, for which merging outcomes never raises the value (data processing). TVD++
reports TVD. LK grows with KL and, as ηλ(TVD − KL) <= 1 − λ by Pinsker's KL >= 2 TVD², with TVD. For the same reason
``overlap`` = Σ min(p, q), the expected acceptance, is an upper bound.

Why TVD++ is more than TVD: TVD's gradient is the policy gradient E_{x~q}[−1{p(x) > q(x)} ∇log q(x)]. TVD++ puts the
advantage (1{p(x) > q(x)} − μ) / σ for the reward. Since E_{x~q}[∇log q(x)] = 0, μ changes nothing in an expectation.
With μ and σ of the row's own q (``tvd_plus``) each row's gradient is TVD's divided by its σ: rows where TVD has
almost no gradient, because q gives almost nothing to what p wants, count again. With tokens drawn from q and μ, σ over
the batch (``tvd_plus_sampled``, as published) μ is a baseline that lowers the variance, and σ one scale for all rows.

Source: ALGORITHMS §3; KL and JSD(β) of knowledge distillation (Agarwal et al. 2024), TVD++ of direct alignment (Goel et
al. 2024), LK losses, the path term of OmniDraft's hybrid loss.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Loss = tuple[Reals, Reals]
"""Values (N,) and their gradients by log q (N, outcomes), as if no outcome's log q depended on another's."""

#: Names in the order of ``HybridTerms.divergences``, which is that of the train graph's input.
DIVERGENCES = ("forward-kl", "reverse-kl", "jsd", "tvd", "tvd++", "tvd++sampled", "lk")

#: Least tail mass, and least teacher probability inside a logarithm: a term of the reverse KL is at most log(1e6) for
#: it, and 1 - Σq stays clear of float32 rounding.
FLOOR = 1e-6
#: Least probability inside a logarithm whose factor is at most as large: the product is 0 when the probability is.
TINY = 1e-30
#: Added to the spread of rewards, which is 0 where q is p.
SPREAD = 1e-6
#: Log-probability of a padding entry: its exponential is 0 in float32, yet 0 times it is 0 and not NaN.
PADDING_LOG = -1e3


@dataclass(frozen=True, kw_only=True)
class HybridTerms:
    """What N rows of logits are compared with.

    teacher_ids: int64 (N, K) drafter tokens, distinct within a row but for padding.
    teacher_probs: (N, K); an entry of 0 is padding and its id is ignored.
    labels: int64 (N,) the drafter token of an n-gram's path.
    kl_weight, nll_weight: (N,), already normalised; a row of kl_weight 0 has no divergence.
    divergences: (7,) weights of the ``DIVERGENCES``.
    beta: between 0 and 1, of the JSD. eta: >= 0, of LK.
    uniforms: (N, S) numbers in [0, 1), one for each token that tvd++sampled draws.
    """

    teacher_ids: NDArray[np.int64]
    teacher_probs: Reals
    kl_weight: Reals
    labels: NDArray[np.int64]
    nll_weight: Reals
    divergences: Reals
    beta: float
    eta: float
    uniforms: Reals


@dataclass(frozen=True, kw_only=True)
class HybridLoss:
    """``kl`` = Σ kl_weight · divergence, ``nll`` = Σ nll_weight · (−log q(label)); gradient: (N, V) of their sum.

    overlap: Σ kl_weight · Σ min(p, q), the expected acceptance where kl_weight sums to 1.
    """

    kl: float
    nll: float
    overlap: float
    gradient: Reals

    @property
    def loss(self) -> float:
        return self.kl + self.nll


# --- divergences: p and log_q are (N, outcomes) ---------------------------------------------------------------------


def forward_kl(p: Reals, log_q: Reals) -> Loss:
    """KL(p‖q): covers what the teacher does."""
    return (p * (_floored_log(p) - log_q)).sum(axis=-1), -p


def reverse_kl(p: Reals, log_q: Reals) -> Loss:
    """KL(q‖p): avoids what the teacher does not do."""
    q, ratio = np.exp(log_q), log_q - _floored_log(p)
    return (q * ratio).sum(axis=-1), q * (ratio + 1.0)


def jsd(p: Reals, log_q: Reals, beta: float) -> Loss:
    """β KL(p‖m) + (1 − β) KL(q‖m) with m = βp + (1 − β)q: near β = 0 as forward KL, near 1 as reverse, both scaled."""
    q = np.exp(log_q)
    log_m = np.log(np.maximum(beta * p + (1 - beta) * q, TINY))
    away = (1 - beta) * q * (log_q - log_m)
    # By q it is (1 − β)(log q − log m): what comes through m cancels.
    return (beta * p * (np.log(np.maximum(p, TINY)) - log_m) + away).sum(axis=-1), away


def tvd(p: Reals, log_q: Reals) -> Loss:
    """½ Σ|p − q|, the probability that a draft is rejected; where p = q the gradient is taken as 0."""
    q = np.exp(log_q)
    return 0.5 * np.abs(q - p).sum(axis=-1), 0.5 * np.sign(q - p) * q


def tvd_plus(p: Reals, log_q: Reals) -> Loss:
    """TVD, with the policy gradient −Σ q A ∇log q; A, held fixed, is normalised by the row's own q."""
    q = np.exp(log_q)
    reward = _reward(p, q)
    mean = (q * reward).sum(axis=-1, keepdims=True)
    spread = np.sqrt((q * (reward - mean) ** 2).sum(axis=-1, keepdims=True))
    return tvd(p, log_q)[0], -q * (reward - mean) / (spread + SPREAD)


def tvd_plus_sampled(p: Reals, log_q: Reals, uniforms: Reals, counted: NDArray[np.bool_]) -> Loss:
    """TVD, with the policy gradient −1/S Σ_s A_s ∇log q(x_s) of S tokens drawn from each row's q.

    Args:
      uniforms: (N, S).
      counted: (N,) rows whose draws A is normalised over; the gradient of others is of no use.
    """
    drawn = draw(log_q, uniforms)
    reward = np.take_along_axis(_reward(p, np.exp(log_q)), drawn, axis=-1)
    seen = reward[counted] if counted.any() else np.zeros(1)
    advantage = (reward - seen.mean()) / (seen.std() + SPREAD)
    slope = np.zeros_like(log_q)
    np.add.at(slope, (np.arange(len(drawn))[:, None], drawn), -advantage / uniforms.shape[1])
    return tvd(p, log_q)[0], slope


def lk(p: Reals, log_q: Reals, eta: float) -> Loss:
    """λ KL(p‖q) + (1 − λ) TVD; λ = exp(−η Σ min(p, q)), held fixed: KL where drafts are rejected, TVD elsewhere."""
    share = np.exp(-eta * overlap(p, log_q))
    (kl, kl_slope), (distance, slope) = forward_kl(p, log_q), tvd(p, log_q)
    return share * kl + (1 - share) * distance, share[:, None] * kl_slope + (1 - share)[:, None] * slope


def overlap(p: Reals, log_q: Reals) -> Reals:
    """Σ min(p, q) by row (N,): the probability that a draft from q is accepted."""
    return np.minimum(p, np.exp(log_q)).sum(axis=-1)


def draw(log_q: Reals, uniforms: Reals) -> NDArray[np.int64]:
    """The outcomes (N, S) that ``uniforms`` (N, S) choose by the inverse of q's distribution function."""
    # The last outcome takes what is left, so that sums which miss 1 by rounding do not matter.
    reached = np.cumsum(np.exp(log_q[:, :-1]), axis=-1)
    return (reached[:, None, :] <= uniforms[:, :, None]).sum(axis=-1)


# --- from logits -----------------------------------------------------------------------------------------------------


def divergence(logits: Reals, terms: HybridTerms) -> tuple[Reals, Reals, Reals]:
    """The weighted sum of the ``DIVERGENCES`` over listed tokens and tail.

    Args:
      logits: (N, V).

    Returns:
      (N,) divergences, their (N, V) gradients by the logits, and the (N,) overlaps.
    """
    log_q = log_softmax(logits)
    listed = np.where(terms.teacher_probs > 0, np.take_along_axis(log_q, terms.teacher_ids, axis=-1), PADDING_LOG)
    q_tail, p_tail = _tail(np.exp(listed)), _tail(terms.teacher_probs)
    p_row, log_q_row = np.hstack([terms.teacher_probs, p_tail]), np.hstack([listed, np.log(q_tail)])
    value, slope = _weighted(p_row, log_q_row, terms)
    # log q_tail = log(1 - Σ exp(listed)), constant where it is floored.
    slope_of_tail = np.where(q_tail > FLOOR, slope[:, -1:] / q_tail, 0.0)
    by_listed = slope[:, :-1] - slope_of_tail * np.exp(listed)
    return value, _through_log_softmax(log_q, terms.teacher_ids, by_listed), overlap(p_row, log_q_row)


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
    kl, kl_gradient, overlaps = divergence(logits, terms)
    nll, nll_gradient = negative_log_likelihood(logits, terms.labels)
    return HybridLoss(
        kl=float(terms.kl_weight @ kl),
        nll=float(terms.nll_weight @ nll),
        overlap=float(terms.kl_weight @ overlaps),
        gradient=terms.kl_weight[:, None] * kl_gradient + terms.nll_weight[:, None] * nll_gradient,
    )


def log_softmax(logits: Reals) -> Reals:
    """Row-wise, shifted by the row's maximum so that nothing overflows."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _weighted(p: Reals, log_q: Reals, terms: HybridTerms) -> Loss:
    losses = {
        "forward-kl": forward_kl(p, log_q),
        "reverse-kl": reverse_kl(p, log_q),
        "jsd": jsd(p, log_q, terms.beta),
        "tvd": tvd(p, log_q),
        "tvd++": tvd_plus(p, log_q),
        "tvd++sampled": tvd_plus_sampled(p, log_q, terms.uniforms, terms.kl_weight > 0),
        "lk": lk(p, log_q, terms.eta),
    }
    values, slopes = zip(*(losses[name] for name in DIVERGENCES), strict=True)
    return np.tensordot(terms.divergences, values, 1), np.tensordot(terms.divergences, slopes, 1)


def _reward(p: Reals, q: Reals) -> Reals:
    """1 where more of q would lower TVD."""
    return (p > q).astype(float)


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
