"""A Llama-type decoder as one function of its weights, in plain torch operations that have a backward in ONNX.

Weights go by their Hugging Face names, LoRA tensors by those of ``LoraLayout``. No module, no cache, no dropout: the
train graph is traced from it, and the parity checks compare both graphs with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
        batch, length = tokens.shape
        positions = _Positions.of(length, self.shape)
        hidden = torch.nn.functional.embedding(tokens.reshape(-1), self.weights[EMBEDDING])
        for layer in range(self.shape.layers):
            prefix = f"model.layers.{layer}"
            normed = self._norm(hidden, f"{prefix}.input_layernorm.weight")
            hidden = hidden + self._attention(layer, normed, batch, positions)
            normed = self._norm(hidden, f"{prefix}.post_attention_layernorm.weight")
            hidden = hidden + self._mlp(layer, normed)
        head = self.weights[EMBEDDING if self.shape.tied else "lm_head.weight"]
        return self._norm(hidden, "model.norm.weight") @ head.T

    def _attention(self, layer: int, x: Tensor, batch: int, positions: "_Positions") -> Tensor:
        """Softmax attention, written out; query heads that share a KV head are stacked along the rows."""
        heads, kv_heads, d = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        length, group = x.shape[0] // batch, heads // kv_heads

        def split(projection: str, per_head: int) -> Tensor:
            """(B * L, features) to (B, kv_heads, per_head, L, d)."""
            features = self._linear(layer, projection, x)
            return features.view(batch, length, kv_heads, per_head, d).permute(0, 2, 3, 1, 4)

        def stack(x: Tensor, per_head: int) -> Tensor:
            return x.reshape(batch * kv_heads, per_head * length, d)

        q = stack(positions.rotate(split("q_proj", group)), group)
        k = stack(positions.rotate(split("k_proj", 1)), 1)
        v = stack(split("v_proj", 1), 1)
        scores = (q @ k.transpose(1, 2)).view(batch * kv_heads, group, length, length) * d**-0.5
        weights = torch.softmax(scores + positions.mask, dim=-1).view(batch * kv_heads, group * length, length)
        mixed = (weights @ v).view(batch, kv_heads, group, length, d).permute(0, 3, 1, 2, 4)
        return self._linear(layer, "o_proj", mixed.reshape(batch * length, heads * d))

    def _mlp(self, layer: int, x: Tensor) -> Tensor:
        gate, up = self._linear(layer, "gate_proj", x), self._linear(layer, "up_proj", x)
        # The fused backward of torch's silu has no ONNX form.
        return self._linear(layer, "down_proj", gate * torch.sigmoid(gate) * up)

    def _linear(self, layer: int, projection: str, x: Tensor) -> Tensor:
        weight = self.weights[f"model.layers.{layer}.{PROJECTIONS[projection]}.{projection}.weight"]
        a, b = (self.lora[f"lora.{layer}.{projection}.{factor}"] for factor in "AB")
        return x @ weight.T + self.scaling * ((x @ a.T) @ b.T)

    def _norm(self, x: Tensor, weight: str) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.shape.rms_eps) * self.weights[weight]


@dataclass(frozen=True, kw_only=True)
class _Positions:
    """What depends on positions alone: rotary cosines and sines (L, d), and the causal mask (L, L), added to scores."""

    cos: Tensor
    sin: Tensor
    mask: Tensor

    @classmethod
    def of(cls, length: int, shape: DecoderShape) -> "_Positions":
        half = shape.head_dim // 2
        frequency = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        row = torch.arange(length)
        angle = row[:, None].float() * torch.cat([frequency, frequency]).float()
        mask = torch.where(row[:, None] >= row[None, :], 0.0, torch.finfo(torch.float32).min)
        return cls(cos=torch.cos(angle), sin=torch.sin(angle), mask=mask)

    def rotate(self, x: Tensor) -> Tensor:
        """(…, L, d): each pair (i, i + d/2) turned by its angle."""
        low, high = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-high, low], dim=-1) * self.sin
