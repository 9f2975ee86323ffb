"""The decode graph of a Llama-type decoder: tokens in, logits out, with KV buffers that can be rolled back.

The graph holds no weights: every weight is an external initializer, which the runtime binds (``common/fusion.py`` names
them). So a graph is a few kB whatever the model's size, and drafting and training share one file of weights.

Inputs
  tokens        int64 (S,)                the tokens to feed
  kept          int64 (1,)                how many last rows of logits to return, 1..S
  past          int32 (1, 1)              position of the last token fed = past length + S - 1 (GroupQueryAttention)
  total         int32 ()                  past length + S
  key.{l}, value.{l}  float32 (1, kv_heads, limit, padded head)   KV buffers, bound as past *and* present
  lora.{l}.{group}.A  float32 (parts * rank, in)  and  .B  (out, parts * rank)    only in a graph with an adapter
Outputs
  logits        float32 (kept, vocab)
  hidden        float32 (kept, hidden)    what the head reads, only in a graph with an adapter; unbound it costs nothing
  key_out.{l}, value_out.{l}              the same buffers

The rank is the adapter's own: one graph serves any, also two adapters at once (``LoraAdapter.beside``).

A graph for *clients* has a leading axis C on tokens, the LoRA inputs, logits and hidden, and C instead of 1 elsewhere,
so that one call serves many contexts, each with an adapter of its own; they may differ in length where S is 1, and
``total`` is the longest. A device has one context, and there a product adds the adapter's change as it goes, which
saves an operation for each: a tenth of a small drafter's step.

Rollback is a smaller length on the next call: rows beyond it are never read. Head sizes that are no multiple of 16,
which GroupQueryAttention refuses, are padded with zeros around the attention only; the weights stay as they are.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..common.blocks import BLOCK, PACKED, ROWS, SCALES
from ..common.fusion import GROUPS, fused_sizes, group_name
from ..common.shape import EMBEDDING, DecoderShape

_MS = "com.microsoft"
_OPSET, _IR_VERSION = 21, 10
_HEAD_MULTIPLE = 16
#: MatMulNBits' accuracy_level: rows of the input become int8 too, in blocks as the weights. Eight bits have no other
#: fast kernel.
_INTEGERS = 4


def decode_graph(
    shape: DecoderShape, lora: bool = False, bits: int | None = None, clients: bool = False
) -> onnx.ModelProto:
    """Builds the graph.

    Args:
      shape: the decoder.
      lora: with the inputs of an adapter on all projections.
      bits: 4 or 8: matrices are blocks of integers (``common/blocks.py``), multiplied in integers, so inputs are
        rounded on the fly and logits differ from those of float32 by about a hundredth. None: float32.
      clients: with the axis of clients.
    """
    return _Builder(shape, lora, bits, clients).build()


class _Builder:
    """Collects nodes in order; each method adds one block and returns its output's name."""

    def __init__(self, shape: DecoderShape, lora: bool, bits: int | None, clients: bool) -> None:
        self.shape, self.lora, self.bits, self.clients = shape, lora, bits, clients
        self.axis: list[int | str] = ["C"] if clients else []
        self.sizes = fused_sizes(shape)
        self.padded_head = -(-shape.head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[np.generic]] = {}
        self.externals: dict[str, TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def build(self) -> onnx.ModelProto:
        self._declare_inputs()
        hidden = self._embedded()
        delta = ""
        for layer in range(self.shape.layers):
            hidden, delta = self._layer(layer, hidden, delta)
        _, normed = self._norm(hidden, delta, "model.norm.weight")
        self._head(normed)
        graph = helper.make_graph(
            self.nodes,
            "decode",
            self.inputs,
            self.outputs,
            [*self.externals.values(), *(numpy_helper.from_array(v, k) for k, v in self.constants.items())],
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="fleetdraft")

    # --- blocks -----------------------------------------------------------------------------------------------

    def _layer(self, layer: int, hidden: str, delta: str) -> tuple[str, str]:
        prefix = f"model.layers.{layer}"
        hidden, normed = self._norm(hidden, delta, f"{prefix}.input_layernorm.weight")
        delta = self._attention(layer, normed)
        hidden, normed = self._norm(hidden, delta, f"{prefix}.post_attention_layernorm.weight")
        both = self._linear(layer, "gate_up_proj", normed)
        gate, up = self._split(both, [self.shape.intermediate_size] * 2)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one kernel.
        silu = self._op("QuickGelu", [gate], f"silu.{layer}", domain=_MS, alpha=1.0)
        return hidden, self._linear(layer, "down_proj", self._op("Mul", [silu, up], f"gated.{layer}"))

    def _attention(self, layer: int, normed: str) -> str:
        shape = self.shape
        self._declare_kv(layer)
        out = f"attended.{layer}"
        qkv = self._padded_heads(self._batched(self._linear(layer, "qkv_proj", normed)))
        names = [*qkv, f"key.{layer}", f"value.{layer}", "past", "total", *self._rotary_tables()]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                names,
                [out, f"key_out.{layer}", f"value_out.{layer}"],
                domain=_MS,
                num_heads=shape.heads,
                kv_num_heads=shape.kv_heads,
                do_rotary=1,
                scale=shape.head_dim**-0.5,
            )
        )
        return self._linear(layer, "o_proj", self._flat(self._unpadded_heads(out)))

    def _linear(self, layer: int, group: str, x: str) -> str:
        """x W^T, plus the bias if there is one, plus (x A^T) B^T where the graph has an adapter."""
        name = f"{group}.{layer}"
        total = self._product(x, group_name(layer, group), name)
        if (bias := group_name(layer, group, "bias")) in self.sizes:
            total = self._op("Add", [total, self._weight(bias)], f"{name}.bias")
        if not self.lora:
            return total
        a, b = (f"lora.{layer}.{group}.{factor}" for factor in "AB")
        ranks, (rows, columns) = f"{len(GROUPS[group])} * rank", self.sizes[group_name(layer, group)]
        self._input(a, TensorProto.FLOAT, [*self.axis, ranks, columns])
        self._input(b, TensorProto.FLOAT, [*self.axis, rows, ranks])
        if not self.clients:
            low = self._op("Gemm", [x, a], f"{name}.low", transB=1)
            return self._op("Gemm", [low, b, total], f"{name}.lora", transB=1)
        low = self._op("FusedMatMul", [x, a], f"{name}.low", domain=_MS, transB=1)
        change = self._op("FusedMatMul", [low, b], f"{name}.change", domain=_MS, transB=1)
        return self._op("Add", [total, change], f"{name}.lora")

    def _product(self, x: str, weight: str, output: str) -> str:
        """x W^T."""
        if self.bits is None:
            kind, domain = ("FusedMatMul", _MS) if self.clients else ("Gemm", "")
            return self._op(kind, [x, self._weight(weight)], output, domain=domain, transB=1)
        rows, columns = self.sizes[weight]
        blocks = -(-columns // BLOCK)
        packed = self._external(weight + PACKED, (rows, blocks, BLOCK * self.bits // 8), TensorProto.UINT8)
        scales = self._external(weight + SCALES, (rows, blocks))
        sizes = {"K": columns, "N": rows, "bits": self.bits, "block_size": BLOCK}
        return self._op("MatMulNBits", [x, packed, scales], output, domain=_MS, accuracy_level=_INTEGERS, **sizes)

    def _embedded(self) -> str:
        if self.bits is None:
            return self._op("Gather", [self._weight(EMBEDDING), "tokens"], "embedded")
        rows, columns = self.sizes[EMBEDDING]
        blocks = -(-columns // BLOCK)
        packed = self._external(EMBEDDING + ROWS, (rows, blocks * BLOCK * self.bits // 8), TensorProto.UINT8)
        names = [packed, "tokens", self._external(EMBEDDING + SCALES, (rows, blocks))]
        sizes = {"bits": self.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        full = self._op("GatherBlockQuantized", names, "embedded.blocks", domain=_MS, **sizes)
        return self._columns(full, columns) if columns % BLOCK else full

    def _norm(self, hidden: str, delta: str, weight: str) -> tuple[str, str]:
        """(residual stream after adding delta, its RMS norm)."""
        out, gamma = f"{weight}.out", self._weight(weight)
        if not delta:
            eps = self.shape.rms_eps
            return hidden, self._op("SimplifiedLayerNormalization", [hidden, gamma], out, axis=-1, epsilon=eps)
        total = f"{weight}.sum"
        self.nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [hidden, delta, gamma],
                [out, "", "", total],
                domain=_MS,
                epsilon=self.shape.rms_eps,
            )
        )
        return total, out

    def _head(self, normed: str) -> None:
        start = self._op("Neg", ["kept"], "kept.start")
        ends = [self._integers(n, [v]) for n, v in (("end", np.iinfo(np.int64).max), ("rows", len(self.axis)))]
        rows = self._op("Slice", [normed, start, *ends], "hidden" if self.lora else "kept.rows")
        self._product(rows, EMBEDDING if self.shape.tied else "lm_head.weight", "logits")
        self._output("logits", TensorProto.FLOAT, [*self.axis, "kept", self.shape.vocab_size])
        if self.lora:
            self._output("hidden", TensorProto.FLOAT, [*self.axis, "kept", self.shape.hidden_size])

    # --- heads whose size GroupQueryAttention refuses ----------------------------------------------------------

    def _batched(self, x: str) -> str:
        """(C, S, features), as GroupQueryAttention takes it."""
        return x if self.clients else self._op("Unsqueeze", [x, self._integers("axis0", [0])], f"{x}.batch")

    def _flat(self, x: str) -> str:
        """The reverse of ``_batched``."""
        return x if self.clients else self._op("Squeeze", [x, self._integers("axis0", [0])], f"{x}.flat")

    def _padded_heads(self, qkv: str) -> tuple[str, str, str]:
        """What GroupQueryAttention takes for q, k and v: all in one, or each with heads of the padded size d'."""
        shape = self.shape
        if shape.head_dim == self.padded_head:
            return qkv, "", ""
        heads = [shape.heads, shape.kv_heads, shape.kv_heads]
        q, k, v = self._split(qkv, [count * shape.head_dim for count in heads])
        return self._padded(q, heads[0], 2), self._padded(k, heads[1], 2), self._padded(v, heads[2], 1)

    def _padded(self, x: str, heads: int, halves: int) -> str:
        """(C, S, heads * d) to (C, S, heads * d'), zeros after each of so many parts of a head (rotary ones have 2)."""
        d, pad = self.shape.head_dim, self.padded_head - self.shape.head_dim
        sizes = self._integers(f"split{heads}.{halves}", [0, -1, heads * halves, d // halves])
        pads = self._integers(f"pads{halves}", [0, 0, 0, 0, 0, 0, 0, pad // halves])
        padded = self._op("Pad", [self._op("Reshape", [x, sizes], f"{x}.split"), pads], f"{x}.padded")
        return self._op(
            "Reshape", [padded, self._integers(f"join{heads}", [0, -1, heads * self.padded_head])], f"{x}.p"
        )

    def _unpadded_heads(self, x: str) -> str:
        d, heads = self.shape.head_dim, self.shape.heads
        if d == self.padded_head:
            return x
        sizes = self._integers("heads", [0, -1, heads, self.padded_head])
        cut = self._columns(self._op("Reshape", [x, sizes], f"{x}.heads"), d)
        return self._op("Reshape", [cut, self._integers("flat", [0, -1, heads * d])], f"{x}.joined")

    def _columns(self, x: str, count: int) -> str:
        """The first ``count`` entries of the last axis."""
        ends = [self._integers(n, [v]) for n, v in (("first", 0), (f"to{count}", count), ("last", -1))]
        return self._op("Slice", [x, *ends], f"{x}.cut")

    def _split(self, x: str, sizes: list[int]) -> list[str]:
        """``x`` cut along its last axis."""
        parts = [f"{x}.{part}" for part in range(len(sizes))]
        cuts = self._integers(f"cuts{'.'.join(map(str, sizes))}", sizes)
        self.nodes.append(helper.make_node("Split", [x, cuts], parts, axis=-1))
        return parts

    def _rotary_tables(self) -> tuple[str, str]:
        """Cosines and sines (limit, d' / 2) of position times frequency, folded when a session opens."""
        if "rotary.frequency" not in self.constants:
            half, padded = self.shape.head_dim // 2, self.padded_head // 2
            frequency = np.zeros((1, padded))
            frequency[0, :half] = self.shape.rope_theta ** (-np.arange(half) / half)
            self.constants["rotary.frequency"] = frequency
            ends = (("from", 0), ("to", self.shape.context_limit), ("step", 1))
            bounds = [self._scalar(f"rotary.{end}", value) for end, value in ends]
            positions = self._op("Range", bounds, "rotary.positions")
            column = self._op("Unsqueeze", [positions, self._integers("axis1", [1])], "rotary.column")
            # Angles in float64: at position 100,000 a float32 angle is off by 0.004.
            angle = self._op("Mul", [column, "rotary.frequency"], "rotary.angle")
            for table in ("Cos", "Sin"):
                wide = self._op(table, [angle], f"rotary.{table}.wide")
                self._op("Cast", [wide], f"rotary.{table}", to=TensorProto.FLOAT)
        return "rotary.Cos", "rotary.Sin"

    # --- declarations -----------------------------------------------------------------------------------------

    def _declare_inputs(self) -> None:
        self._input("tokens", TensorProto.INT64, [*self.axis, "S"])
        self._input("kept", TensorProto.INT64, [1])
        self._input("past", TensorProto.INT32, [*(self.axis or [1]), 1])
        self._input("total", TensorProto.INT32, [])

    def _declare_kv(self, layer: int) -> None:
        dims: list[int | str] = [*(self.axis or [1]), self.shape.kv_heads, "limit", self.padded_head]
        for kind in ("key", "value"):
            self._input(f"{kind}.{layer}", TensorProto.FLOAT, dims)
            self._output(f"{kind}_out.{layer}", TensorProto.FLOAT, dims)

    def _weight(self, name: str) -> str:
        return self._external(name, self.sizes[name])

    def _external(self, name: str, dims: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> str:
        self.externals[name] = external_tensor(name, dims, dtype)
        return name

    def _integers(self, name: str, values: list[int]) -> str:
        self.constants[name] = np.array(values, dtype=np.int64)
        return name

    def _scalar(self, name: str, value: float) -> str:
        self.constants[name] = np.array(value, dtype=np.float64)
        return name

    def _input(self, name: str, dtype: int, dims: list[int | str]) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))

    def _output(self, name: str, dtype: int, dims: list[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, dims))

    def _op(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output


def external_tensor(name: str, dims: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> TensorProto:
    """An initializer, by default float32, whose values the runtime binds by name."""
    tensor = TensorProto(name=name, data_type=dtype, dims=dims, data_location=TensorProto.EXTERNAL)
    size = helper.tensor_dtype_to_np_dtype(dtype).itemsize * int(np.prod(dims))
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor
