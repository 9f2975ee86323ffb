"""A Llama-type decoder as one function of its weights, in plain torch: what both graphs must agree with.

Weights go by their Hugging Face names, LoRA tensors by those of ``LoraLayout``. No module, no cache, no dropout.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..common.shape import EMBEDDING, PROJECTIONS, DecoderShape

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Llama:
    """A decoder with an adapter on every projection.

    weights: float32, matrices (out, in). lora: A (rank, in) and B (out, rank). scaling: alpha / rank.
    """

    shape: DecoderShape
    weights: Tensors
    lora: Tensors
    scaling: float

    def logits(self, tokens: Tensor) -> Tensor:
        """int64 (B, L) to float32 (B * L, vocab); row b * L + i is the law of the token after tokens[b, : i + 1]."""
        hidden = functional.embedding(tokens, self.weights[EMBEDDING])
        for layer in range(self.shape.layers):
            prefix = f"model.layers.{layer}"
            hidden = hidden + self._attention(layer, self._norm(hidden, f"{prefix}.input_layernorm.weight"))
            hidden = hidden + self._mlp(layer, self._norm(hidden, f"{prefix}.post_attention_layernorm.weight"))
        head = self.weights[EMBEDDING if self.shape.tied else "lm_head.weight"]
        return (self._norm(hidden, "model.norm.weight") @ head.T).flatten(0, 1)

    def _attention(self, layer: int, x: Tensor) -> Tensor:
        """Causal softmax attention over (B, L, hidden)."""
        q, k, v = (
            self._linear(layer, name, x).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = self._rotated(q), self._rotated(k)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self._linear(layer, "o_proj", mixed.transpose(1, 2).flatten(2))

    def _mlp(self, layer: int, x: Tensor) -> Tensor:
        gate, up = self._linear(layer, "gate_proj", x), self._linear(layer, "up_proj", x)
        return self._linear(layer, "down_proj", functional.silu(gate) * up)

    def _linear(self, layer: int, projection: str, x: Tensor) -> Tensor:
        name = f"model.layers.{layer}.{PROJECTIONS[projection]}.{projection}"
        a, b = (self.lora[f"lora.{layer}.{projection}.{factor}"] for factor in "AB")
        base = functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))
        return base + self.scaling * ((x @ a.T) @ b.T)

    def _norm(self, x: Tensor, weight: str) -> Tensor:
        return functional.rms_norm(x, (self.shape.hidden_size,), self.weights[weight], self.shape.rms_eps)

    def _rotated(self, x: Tensor) -> Tensor:
        """(…, L, d): each pair (i, i + d/2) turned by its position's angle."""
        half = self.shape.head_dim // 2
        frequency = self.shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[-2])[:, None] * torch.cat([frequency, frequency])
        low, high = x.chunk(2, dim=-1)
        return x * torch.cos(angle).to(x.dtype) + torch.cat([-high, low], dim=-1) * torch.sin(angle).to(x.dtype)
