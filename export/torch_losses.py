"""The training losses in torch: autograd finds their gradients, with frozen parts detached. It knows no model."""

import torch
from torch import Tensor

from ..common.losses import DIVERGENCES, FLOOR, PADDING_LOG, SPREAD, TINY
from .llama import Tensors


def hybrid_loss(logits: Tensor, batch: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, nll, overlap), the weighted sums of ``common.losses.hybrid_loss``.

    Args:
      logits: (R, vocab) of the judged rows.
      batch: the inputs of one client by name.
    """
    log_q = torch.log_softmax(logits, dim=-1)
    listed = torch.where(batch["teacher_probs"] > 0, log_q.gather(-1, batch["teacher_ids"]), PADDING_LOG)
    p = torch.cat([batch["teacher_probs"], _tail(batch["teacher_probs"])], dim=-1)
    q = torch.cat([torch.exp(listed), _tail(torch.exp(listed))], dim=-1)
    log_q_row = torch.cat([listed, torch.log(q[:, -1:])], dim=-1)
    losses = _divergences(p, q, log_q_row, batch)
    divergence = sum(weight * losses[name] for name, weight in zip(DIVERGENCES, batch["divergences"], strict=True))
    log_label = log_q.gather(-1, batch["labels"][:, None])[:, 0]
    overlap = torch.minimum(p, q).sum(-1)
    weight = batch["kl_weight"]
    return (weight * divergence).sum(), -(batch["nll_weight"] * log_label).sum(), (weight * overlap).sum()


def _divergences(p: Tensor, q: Tensor, log_q: Tensor, batch: Tensors) -> dict[str, Tensor]:
    """Values (R,) by name of p, q and log q (R, outcomes)."""
    ratio = log_q - torch.log(p.clamp(min=FLOOR))
    forward, distance = -(p * ratio).sum(-1), 0.5 * (q - p).abs().sum(-1)
    share = torch.exp(-batch["eta"] * torch.minimum(p, q).sum(-1)).detach()
    return {
        "forward-kl": forward,
        "reverse-kl": (q * ratio).sum(-1),
        "jsd": _jsd(p, q, log_q, batch["beta"]),
        "tvd": distance,
        "tvd++": _instead(distance, _policy(p, q)),
        "tvd++sampled": _instead(distance, _sampled_policy(p, q, log_q, batch)),
        "lk": share * forward + (1 - share) * distance,
    }


def _jsd(p: Tensor, q: Tensor, log_q: Tensor, beta: Tensor) -> Tensor:
    log_m = torch.log((beta * p + (1 - beta) * q).clamp(min=TINY))
    by_p = beta * p * (torch.log(p.clamp(min=TINY)) - log_m)
    return (by_p + (1 - beta) * q * (log_q - log_m)).sum(-1)


def _policy(p: Tensor, q: Tensor) -> Tensor:
    """(R,) with the gradient of tvd++: the expected advantage under q."""
    reward, law = (p > q).to(q.dtype), q.detach()
    mean = (law * reward).sum(-1, keepdim=True)
    variance = (law * (reward - mean) ** 2).sum(-1, keepdim=True)
    return -(q * (reward - mean) / (variance.sqrt() + SPREAD)).sum(-1)


def _sampled_policy(p: Tensor, q: Tensor, log_q: Tensor, batch: Tensors) -> Tensor:
    """(R,) with the gradient of tvd++sampled: REINFORCE on the drawn tokens."""
    # A search from the right is the first outcome that the distribution function takes beyond the number.
    drawn = torch.searchsorted(q.detach()[:, :-1].cumsum(-1), batch["uniforms"], right=True)
    reward = (p > q).to(q.dtype).gather(-1, drawn)
    counted = reward[batch["kl_weight"] > 0]
    if not counted.numel():
        return torch.zeros_like(q[:, 0])
    advantage = (reward - counted.mean()) / (counted.std(correction=0) + SPREAD)
    return -(advantage * log_q.gather(-1, drawn)).mean(-1)


def _instead(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value`` with the gradient of ``surrogate``."""
    return value.detach() + surrogate - surrogate.detach()


def _tail(listed: Tensor) -> Tensor:
    """(R, 1): what the listed probabilities leave, at least FLOOR."""
    return (1 - listed.sum(dim=-1, keepdim=True)).clamp(min=FLOOR)
