"""Forward and backward of a decoder's layers as ONNX nodes, up to the hidden state that the head reads.

Each block comes as its value and a function that takes the gradient by that value to the gradient by the block's input,
and leaves those of the adapter in ``Backbone.gradients``. Frozen weights have none. Quantised matrices are dequantised
where they are used, once forward and once backward, so that no float copy outlives its product.

Values are float32 (C, N, features): C clients, N = B * L positions of each.
"""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from ..common.blocks import BLOCK, ROWS, SCALES
from ..common.fusion import GROUPS, fused_sizes, group_name
from ..common.lora import LoraLayout
from ..common.shape import EMBEDDING, QKV
from .nodes import Dims, Nodes

Back = Callable[[str], str]
Block = tuple[str, Back]


def free_rank(name: str, size: tuple[int, int]) -> Dims:
    """Axes of an adapter's tensor of ``LoraLayout.shapes``, with the rank left open."""
    return ["rank", size[1]] if name.endswith(".A") else [size[0], "rank"]


class Backbone:
    """The layers of one decoder with an adapter on every projection.

    nodes: the graph that is added to; it has the adapter's inputs, whose rank is free. layout: of their names and their
      scaling. tokens: int64 (C, B, L). bits: of the quantised matrices, None for float32.
    """

    def __init__(self, nodes: Nodes, layout: LoraLayout, bits: int | None, tokens: str) -> None:
        self.gradients: dict[str, str] = {}
        self._n, self._layout, self._bits = nodes, layout, bits
        self._shape, self._sizes = layout.shape, fused_sizes(layout.shape)
        self._tokens = tokens
        self._length = nodes.op("Shape", tokens, start=2, end=3)
        self._clients = nodes.op("Shape", tokens, start=0, end=1)
        self._rank = nodes.op("Shape", "lora.0.q_proj.A", start=1, end=2)
        self._cos, self._sin, self._mask = self._positions()

    def forward(self) -> Block:
        """The hidden state after the last layer, before the last norm."""
        hidden, backs = self._embedded(), list[Back]()
        for layer in range(self._shape.layers):
            hidden, back = self._layer(layer, hidden)
            backs.append(back)

        def backward(grad: str) -> str:
            for back in reversed(backs):
                grad = back(grad)
            return grad

        return hidden, backward

    def norm(self, x: str, weight: str) -> Block:
        """Root mean square norm."""
        n, gamma, eps = self._n, self._plain(weight), self._shape.rms_eps
        out, inverse = n.ops("SimplifiedLayerNormalization", x, gamma, outputs=2, axis=-1, epsilon=eps)

        def backward(grad: str) -> str:
            scaled, unit = n.op("Mul", grad, gamma), n.op("Mul", x, inverse)
            along = n.op("ReduceMean", n.op("Mul", scaled, unit), n.integers(-1))
            return n.op("Mul", n.op("Sub", scaled, n.op("Mul", unit, along)), inverse)

        return out, backward

    def matrix(self, weight: str, beside: str) -> str:
        """A float32 matrix (out, in).

        Args:
          beside: the value that it is multiplied with. A quantised matrix is dequantised only when that is there, and
            apart from other uses, for its row numbers are made from the value's size.
        """
        n, rows = self._n, self._sizes[weight][0]
        if self._bits is None:
            return self._plain(weight)
        count = n.op("Shape", beside, start=1, end=2)
        limit = n.op("Min", n.op("Add", count, n.integers(rows)), n.integers(rows))
        zero, one = (n.constant(np.array(value, dtype=np.int64)) for value in (0, 1))
        return self._gathered(weight, n.op("Range", zero, n.op("Squeeze", limit), one))

    # --- blocks -----------------------------------------------------------------------------------------------

    def _layer(self, layer: int, hidden: str) -> Block:
        prefix = f"model.layers.{layer}"
        middle, first = self._residual(hidden, f"{prefix}.input_layernorm.weight", layer, self._attention)
        out, second = self._residual(middle, f"{prefix}.post_attention_layernorm.weight", layer, self._mlp)
        return out, lambda grad: first(second(grad))

    def _residual(self, x: str, norm: str, layer: int, inner: Callable[[int, str], Block]) -> Block:
        """x + inner(norm(x))."""
        normed, norm_back = self.norm(x, norm)
        change, inner_back = inner(layer, normed)
        return self._n.op("Add", x, change), lambda grad: self._n.op("Add", grad, norm_back(inner_back(grad)))

    def _mlp(self, layer: int, x: str) -> Block:
        n, width = self._n, self._shape.intermediate_size
        both, in_back = self._linear(layer, "gate_up_proj", x)
        gate, up = n.split(both, [width, width], axis=-1)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one kernel.
        gated = n.op("Mul", n.op("QuickGelu", gate, alpha=1.0), up)
        out, out_back = self._linear(layer, "down_proj", gated)

        def backward(grad: str) -> str:
            grad, sigmoid = out_back(grad), n.op("Sigmoid", gate)
            silu = n.op("Mul", gate, sigmoid)
            # silu' = s + silu (1 - s) = s + silu - silu s
            slope = n.op("Sub", n.op("Add", sigmoid, silu), n.op("Mul", silu, sigmoid))
            by_gate = n.op("Mul", n.op("Mul", grad, up), slope)
            return in_back(n.joined([by_gate, n.op("Mul", grad, silu)], axis=-1))

        return out, backward

    def _attention(self, layer: int, x: str) -> Block:
        """Softmax attention, written out; query heads that share a KV head are stacked along the rows."""
        n, shape = self._n, self._shape
        scale, kv, group = shape.head_dim**-0.5, shape.kv_heads, shape.heads // shape.kv_heads
        qkv, in_back = self._linear(layer, "qkv_proj", x)
        q, k, v = self._heads(qkv)
        scores = n.op("FusedMatMul", q, k, transB=1, alpha=scale)
        p = n.op("Softmax", n.op("Add", scores, self._mask), axis=-1)
        mixed = n.op("MatMul", p, v)
        flat = self._flat(self._unstacked(mixed, kv, group), shape.heads * shape.head_dim)
        out, out_back = self._linear(layer, "o_proj", flat)

        def backward(grad: str) -> str:
            grad = self._stacked(out_back(grad), kv, group)
            by_v = n.op("FusedMatMul", p, grad, transA=1)
            by_p = n.op("FusedMatMul", grad, v, transB=1)
            along = n.op("ReduceSum", n.op("Mul", grad, mixed), n.integers(-1))
            by_scores = n.op("Mul", p, n.op("Sub", by_p, along))
            by_q = n.op("FusedMatMul", by_scores, k, alpha=scale)
            by_k = n.op("FusedMatMul", by_scores, q, transA=1, alpha=scale)
            return in_back(self._heads_back(by_q, by_k, by_v))

        return out, backward

    def _linear(self, layer: int, group: str, x: str) -> Block:
        """x W^T, plus the bias if there is one, plus the adapter's change."""
        n, weight, bias = self._n, group_name(layer, group), group_name(layer, group, "bias")
        out = n.op("FusedMatMul", x, self.matrix(weight, x), transB=1)
        if bias in self._sizes:
            out = n.op("Add", out, self._plain(bias))
        change, change_back = self._adapter(layer, group, x)

        def backward(grad: str) -> str:
            by_adapter = change_back(grad)
            return n.op("Add", n.op("FusedMatMul", grad, self.matrix(weight, grad)), by_adapter)

        return n.op("Add", out, change), backward

    def _adapter(self, layer: int, group: str, x: str) -> Block:
        """scaling * (x A^T) B^T for all projections of a group at once: As stacked, Bs on a diagonal."""
        n, scaling, parts = self._n, self._layout.scaling, GROUPS[group]
        names = [f"lora.{layer}.{part}" for part in parts]
        a = n.joined([f"{name}.A" for name in names], axis=1)
        b = self._diagonal([f"{name}.B" for name in names])
        low = n.op("FusedMatMul", x, a, transB=1)

        def backward(grad: str) -> str:
            by_low = n.op("FusedMatMul", grad, b, alpha=scaling)
            by_a = self._ranks(n.op("FusedMatMul", by_low, x, transA=1), len(parts), axis=1)
            # Blocks off the diagonal are computed too and dropped, which costs less than to cut ``grad``.
            by_b = n.op("FusedMatMul", grad, low, transA=1, alpha=scaling)
            rows = n.split(by_b, [self._shape.projection_size(part)[0] for part in parts], axis=1)
            for i, name in enumerate(names):
                self.gradients[f"{name}.A"] = by_a[i]
                self.gradients[f"{name}.B"] = self._ranks(rows[i], len(parts), axis=2)[i]
            return n.op("FusedMatMul", by_low, a)

        return n.op("FusedMatMul", low, b, transB=1, alpha=scaling), backward

    def _diagonal(self, blocks: list[str]) -> str:
        """(C, rows, rank) each to (C, all rows, all ranks) with zeros elsewhere."""
        n, last = self._n, len(blocks) - 1
        if not last:
            return blocks[0]
        pads = [n.op("Mul", self._rank, n.integers(0, 0, i, 0, 0, last - i)) for i in range(len(blocks))]
        return n.joined([n.op("Pad", block, pad) for block, pad in zip(blocks, pads, strict=True)], axis=1)

    def _ranks(self, x: str, count: int, axis: int) -> list[str]:
        """An axis of so many times the rank, cut into one part for each."""
        return [x] if count == 1 else self._n.ops("Split", x, outputs=count, axis=axis, num_outputs=count)

    def _embedded(self) -> str:
        n = self._n
        tokens = n.op("Reshape", self._tokens, n.integers(0, -1))
        if self._bits is None:
            return n.op("Gather", self._plain(EMBEDDING), tokens)
        return self._gathered(EMBEDDING, tokens)

    def _plain(self, weight: str) -> str:
        """A weight in float32."""
        return self._n.input(weight, TensorProto.FLOAT, self._sizes[weight])

    def _gathered(self, weight: str, indices: str) -> str:
        """Rows of a quantised matrix in float32."""
        n, (rows, columns), bits = self._n, self._sizes[weight], self._bits or 0
        blocks = -(-columns // BLOCK)
        packed = n.input(weight + ROWS, TensorProto.UINT8, [rows, blocks * BLOCK * bits // 8])
        scales = n.input(weight + SCALES, TensorProto.FLOAT, [rows, blocks])
        full = n.op(
            "GatherBlockQuantized", packed, indices, scales,
            bits=bits, block_size=BLOCK, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        return n.op("Slice", full, *(n.integers(end) for end in (0, columns, -1))) if columns % BLOCK else full

    # --- heads ------------------------------------------------------------------------------------------------

    def _heads(self, qkv: str) -> tuple[str, str, str]:
        """(C, N, all heads) to q (C * B, kv_heads, group * L, d) and k, v (C * B, kv_heads, L, d), q and k rotated."""
        n, shape = self._n, self._shape
        texts = self._texts(qkv, sum(shape.projection_size(part)[0] for part in QKV))
        q, k, v = (shape.projection_size(part)[0] for part in QKV)
        qk, value = n.split(texts, [q + k, v], axis=-1)
        query, key = n.split(self._rotated(qk, self._sin), [q, k], axis=-1)
        group = shape.heads // shape.kv_heads
        return (
            self._stacked(query, shape.kv_heads, group),
            self._stacked(key, shape.kv_heads, 1),
            self._stacked(value, shape.kv_heads, 1),
        )

    def _heads_back(self, by_q: str, by_k: str, by_v: str) -> str:
        n, shape = self._n, self._shape
        group = shape.heads // shape.kv_heads
        grads = [self._unstacked(g, shape.kv_heads, size) for g, size in ((by_q, group), (by_k, 1), (by_v, 1))]
        # A rotation's transpose turns the other way.
        qk = self._rotated(n.joined(grads[:2], axis=-1), n.op("Neg", self._sin))
        features = sum(shape.projection_size(part)[0] for part in QKV)
        return self._flat(n.joined([qk, grads[2]], axis=-1), features)

    def _rotated(self, x: str, sin: str) -> str:
        """(C * B, L, heads * d) with each pair (i, i + d/2) turned by its position's angle."""
        return self._n.op("RotaryEmbedding", x, self._n.integers(0), self._cos, sin)

    def _stacked(self, x: str, kv: int, group: int) -> str:
        """Rows of kv * group heads, in any shape, to (C * B, kv, group * L, d)."""
        n, d = self._n, self._shape.head_dim
        split = n.op("Reshape", x, n.joined([n.integers(-1), self._length, n.integers(kv, group, d)], axis=0))
        turned = n.op("Transpose", split, perm=[0, 2, 3, 1, 4])
        return n.op("Reshape", turned, n.integers(0, kv, -1, d))

    def _unstacked(self, x: str, kv: int, group: int) -> str:
        """The way back, to (C * B, L, kv * group * d)."""
        n, d = self._n, self._shape.head_dim
        split = n.op("Reshape", x, n.joined([n.integers(0, kv, group), self._length, n.integers(d)], axis=0))
        return n.op("Reshape", n.op("Transpose", split, perm=[0, 3, 1, 2, 4]), n.integers(0, 0, kv * group * d))

    def _texts(self, x: str, features: int) -> str:
        """(C, N, features) to (C * B, L, features)."""
        n = self._n
        return n.op("Reshape", x, n.joined([n.integers(-1), self._length, n.integers(features)], axis=0))

    def _flat(self, x: str, features: int) -> str:
        """(C * B, L, features) to (C, N, features)."""
        n = self._n
        return n.op("Reshape", x, n.joined([self._clients, n.integers(-1, features)], axis=0))

    def _positions(self) -> tuple[str, str, str]:
        """Cosines and sines (L, d / 2), and the causal mask (group * L, L) that is added to scores."""
        n, shape, half = self._n, self._shape, self._shape.head_dim // 2
        zero, one = (n.constant(np.array(value, dtype=np.int64)) for value in (0, 1))
        row = n.op("Range", zero, n.op("Squeeze", self._length), one)
        column = n.op("Unsqueeze", row, n.integers(1))
        frequency = n.constant(shape.rope_theta ** (-np.arange(half) / half)[None])
        # Angles in float64: at position 100,000 a float32 angle is off by 0.004.
        angle = n.op("Mul", n.op("Cast", column, to=TensorProto.DOUBLE), frequency)
        cos, sin = (n.op("Cast", n.op(kind, angle), to=TensorProto.FLOAT) for kind in ("Cos", "Sin"))
        rows = n.op("Tile", column, n.integers(shape.heads // shape.kv_heads, 1))
        hidden = n.number(float(np.finfo(np.float32).min))
        return cos, sin, n.op("Where", n.op("GreaterOrEqual", rows, row), n.number(0), hidden)
