"""The training step in torch, with its own backward: what the train graph must agree with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..common.lora import LoraLayout
from ..common.losses import FLOOR, PADDING_LOG
from .llama import Llama, Tensors


def torch_step(layout: LoraLayout, weights: Tensors, lora: Tensors, batch: Tensors) -> dict[str, Tensor]:
    """The train graph's outputs by name.

    Args:
      weights: by Hugging Face name, as they are once dequantised.
      lora, batch: the graph's inputs by name, with their axis of clients.
    """
    clients = [_one_client(layout, weights, *pair) for pair in zip(_each(lora), _each(batch), strict=True)]
    return {name: torch.stack([client[name] for client in clients]) for name in clients[0]}


def hybrid_loss(logits: Tensor, batch: Tensors) -> tuple[Tensor, Tensor]:
    """(kl, nll), the two weighted sums of ``common.losses.hybrid_loss``.

    Args:
      logits: (R, vocab) of the judged rows.
      batch: the inputs of one client by name.
    """
    log_q = torch.log_softmax(logits, dim=-1)
    listed = torch.where(batch["teacher_probs"] > 0, log_q.gather(-1, batch["teacher_ids"]), PADDING_LOG)
    p = torch.cat([batch["teacher_probs"], _tail(batch["teacher_probs"])], dim=-1)
    log_q_row = torch.cat([listed, torch.log(_tail(torch.exp(listed)))], dim=-1)
    ratio = log_q_row - torch.log(p.clamp(min=FLOOR))
    divergence = (((1 - batch["mix"]) * torch.exp(log_q_row) - batch["mix"] * p) * ratio).sum(-1)
    log_label = log_q.gather(-1, batch["labels"][:, None])[:, 0]
    return (batch["kl_weight"] * divergence).sum(), -(batch["nll_weight"] * log_label).sum()


def _one_client(layout: LoraLayout, weights: Tensors, lora: Tensors, batch: Tensors) -> dict[str, Tensor]:
    adapter = {name: lora[name].detach().requires_grad_() for name in layout.shapes}
    model = Llama(shape=layout.shape, weights=weights, lora=adapter, scaling=layout.scaling)
    # Row -1 is padding and weighs nothing, so that it may be any.
    kl, nll = hybrid_loss(model.logits(batch["tokens"])[batch["rows"]], batch)
    gradients = torch.autograd.grad(kl + nll, list(adapter.values()))
    found = {"loss": kl + nll, "kl": kl, "nll": nll} | {
        f"grad.{name}": gradient for name, gradient in zip(adapter, gradients, strict=True)
    }
    return {name: value.detach() for name, value in found.items()}


def _each(inputs: Tensors) -> list[Mapping[str, Tensor]]:
    """One dict for each client; a scalar belongs to all."""
    clients = max(len(value) for value in inputs.values() if value.ndim)
    return [{name: value[i] if value.ndim else value for name, value in inputs.items()} for i in range(clients)]


def _tail(listed: Tensor) -> Tensor:
    """(R, 1): what the listed probabilities leave, at least FLOOR."""
    return (1 - listed.sum(dim=-1, keepdim=True)).clamp(min=FLOOR)
