"""The likelihood of held-out texts: nats per token, and bits per byte, which vocabularies can be compared by.

It does not know how the model was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from .rows import IGNORED, inputs_and_labels

SMALLEST = 1e-30
"""Below any probability that matters; keeps a logarithm finite."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The loss summed over texts.

    Guarantees:
      - `a + b` is the likelihood of a's and b's texts together, in either order.
    """

    nats: float
    tokens: int
    size_bytes: int

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(
            nats=self.nats + other.nats,
            tokens=self.tokens + other.tokens,
            size_bytes=self.size_bytes + other.size_bytes,
        )

    @property
    def nats_per_token(self) -> float:
        """The mean loss."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """The loss per byte of text, whatever the tokens."""
        return self.nats / math.log(2) / self.size_bytes


class CrossEntropy(torch.autograd.Function):
    """The mean cross-entropy from one softmax, which on a CPU costs a third of `torch.nn.functional.cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean nats of the labels that are not ignored.

        Args:
          ctx: keeps the probabilities for the gradient.
          logits: float (n, vocabulary).
          labels: int64 (n,).
        """
        probabilities = logits.float().softmax(-1)
        learned = labels != IGNORED
        ctx.save_for_backward(probabilities, labels, learned)
        said = probabilities.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
        return -said.clamp(min=SMALLEST).log()[learned].mean()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Returns (probabilities - one-hot labels) / count, for the labels that are not ignored."""
        probabilities, labels, learned = ctx.saved_tensors
        minus_one = torch.full((len(labels), 1), -1.0, device=labels.device)
        gradient = probabilities.scatter_add(1, labels.clamp(min=0).unsqueeze(1), minus_one)
        return gradient.mul_((learned * slope / learned.sum()).unsqueeze(1)), None


def mean_loss(model: LlamaForCausalLM, inputs: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy in nats; inputs and labels are int64 (rows, row_tokens)."""
    logits = model(input_ids=inputs, use_cache=False).logits
    loss: Tensor = CrossEntropy.apply(logits.flatten(0, 1), labels.flatten())
    return loss


@torch.inference_mode()
def summed_loss(model: LlamaForCausalLM, batches: Iterable[Tensor], bos_id: int | None) -> tuple[float, int]:
    """Sums the loss over rows of ids.

    Args:
      batches: int64 (rows, row_tokens + 1) each.
      bos_id: as in `inputs_and_labels`.

    Returns:
      nats, and the tokens that they are of.
    """
    nats, tokens = 0.0, 0
    with torch.compiler.set_stance("force_eager"):
        for rows in batches:
            inputs, labels = inputs_and_labels(rows.to(model.device), bos_id)
            learned = int((labels != IGNORED).sum())
            if learned:
                nats += mean_loss(model, inputs, labels).item() * learned
                tokens += learned
    return nats, tokens
