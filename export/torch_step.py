"""The training step in torch, with its own backward: what the train graph must agree with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..common.lora import LoraLayout
from .llama import Llama, Tensors
from .torch_losses import hybrid_loss

#: Inputs without an axis of clients.
_OF_ALL = ("divergences", "beta", "eta")


def torch_step(layout: LoraLayout, weights: Tensors, lora: Tensors, batch: Tensors) -> dict[str, Tensor]:
    """The train graph's outputs by name.

    Args:
      weights: by Hugging Face name, as they are once dequantised.
      lora, batch: the graph's inputs by name, with their axis of clients.
    """
    clients = [_one_client(layout, weights, *pair) for pair in zip(_each(lora), _each(batch), strict=True)]
    return {name: torch.stack([client[name] for client in clients]) for name in clients[0]}


def _one_client(layout: LoraLayout, weights: Tensors, lora: Tensors, batch: Tensors) -> dict[str, Tensor]:
    adapter = {name: lora[name].detach().requires_grad_() for name in layout.shapes}
    model = Llama(shape=layout.shape, weights=weights, lora=adapter, scaling=layout.scaling)
    # Row -1 is padding and weighs nothing, so that it may be any.
    kl, nll, overlap = hybrid_loss(model.logits(batch["tokens"])[batch["rows"]], batch)
    gradients = torch.autograd.grad(kl + nll, list(adapter.values()))
    found = {"loss": kl + nll, "kl": kl, "nll": nll, "overlap": overlap} | {
        f"grad.{name}": gradient for name, gradient in zip(adapter, gradients, strict=True)
    }
    return {name: value.detach() for name, value in found.items()}


def _each(inputs: Tensors) -> list[Mapping[str, Tensor]]:
    """One dict for each client."""
    clients = max(len(value) for name, value in inputs.items() if name not in _OF_ALL)
    return [{n: value if n in _OF_ALL else value[i] for n, value in inputs.items()} for i in range(clients)]
