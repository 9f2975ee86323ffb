"""The decode graph of a Llama-type decoder: tokens in, logits out, with KV buffers that can be rolled back.

The graph holds no weights: every weight is an external initializer under its Hugging Face name, which the runtime
binds from the checkpoint itself. So a graph is a few hundred kB whatever the model's size, and drafting, training and
the original checkpoint share one set of weights.

Inputs
  tokens        int64 (S,)                the tokens to feed
  kept          int64 (1,)                how many last rows of logits to return, 1..S
  past          int32 (1, 1)              position of the last token fed = past length + S - 1 (GroupQueryAttention)
  total         int32 ()                  past length + S
  key.{l}, value.{l}  float32 (1, kv_heads, limit, padded head)   KV buffers, bound as past *and* present
  lora.{l}.{projection}.A  float32 (rank, in)   and  .B  float32 (out, rank)     only in a graph made with a rank
Outputs
  logits        float32 (kept, vocab)
  key_out.{l}, value_out.{l}              the same buffers

Rollback is a smaller length on the next call: rows beyond it are never read. Head sizes that are no multiple of 16,
which GroupQueryAttention refuses, are padded with zeros around the attention only; the weights stay as they are.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..common.shape import EMBEDDING, PROJECTIONS, DecoderShape
from ..common.weights import PACKED, PACKED_BLOCK, PACKED_SCALES

_MS = "com.microsoft"
_OPSET, _IR_VERSION = 21, 10
_HEAD_MULTIPLE = 16
#: MatMulNBits' accuracy_level: rows of the input become int8 too. Eight bits have no other fast kernel.
_INTEGERS = 4


def decode_graph(
    shape: DecoderShape, rank: int | None = None, scaling: float = 1.0, packed: bool = False
) -> onnx.ModelProto:
    """Builds the graph.

    Args:
      shape: the decoder.
      rank: LoRA rank of the adapter inputs on all projections; None for a graph without an adapter.
      scaling: LoRA's alpha / rank, a constant of the graph.
      packed: matrices are int8 blocks (``weights.read_packed``), multiplied in integers: a quarter of the memory
        traffic, and rows quantised on the fly, so logits differ from those of float32 by about a hundredth.
    """
    return _Builder(shape, rank, scaling, packed).build()


class _Builder:
    """Collects nodes in order; each method adds one block and returns its output's name."""

    def __init__(self, shape: DecoderShape, rank: int | None, scaling: float, packed: bool) -> None:
        self.shape, self.rank, self.scaling, self.packed = shape, rank, scaling, packed
        self.padded_head = -(-shape.head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[np.generic]] = {}
        self.externals: dict[str, TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def build(self) -> onnx.ModelProto:
        self._declare_inputs()
        hidden = self._op("Gather", [self._weight(EMBEDDING), "tokens"], "embedded")
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
        gate, up = self._linear(layer, "gate_proj", normed), self._linear(layer, "up_proj", normed)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one kernel.
        silu = self._op("QuickGelu", [gate], f"silu.{layer}", domain=_MS, alpha=1.0)
        return hidden, self._linear(layer, "down_proj", self._op("Mul", [silu, up], f"gated.{layer}"))

    def _attention(self, layer: int, normed: str) -> str:
        shape = self.shape
        q = self._heads(self._linear(layer, "q_proj", normed), shape.heads, rotary=True)
        k = self._heads(self._linear(layer, "k_proj", normed), shape.kv_heads, rotary=True)
        v = self._heads(self._linear(layer, "v_proj", normed), shape.kv_heads, rotary=False)
        self._declare_kv(layer)
        out = f"attended.{layer}"
        names = [q, k, v, f"key.{layer}", f"value.{layer}", "past", "total", *self._rotary_tables()]
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
        return self._linear(layer, "o_proj", self._unpad_heads(out, shape.heads))

    def _linear(self, layer: int, projection: str, x: str) -> str:
        """x W^T, plus scaling * (x A^T) B^T where the graph has an adapter."""
        weight = f"model.layers.{layer}.{PROJECTIONS[projection]}.{projection}.weight"
        base = self._product(x, weight, f"{projection}.{layer}")
        if self.rank is None:
            return base
        rows, cols = self.shape.projection_size(projection)
        a, b = f"lora.{layer}.{projection}.A", f"lora.{layer}.{projection}.B"
        self._input(a, TensorProto.FLOAT, [self.rank, cols])
        self._input(b, TensorProto.FLOAT, [rows, self.rank])
        low = self._op("Gemm", [x, a], f"{projection}.low.{layer}", transB=1)
        return self._op("Gemm", [low, b, base], f"{projection}.lora.{layer}", transB=1, alpha=self.scaling)

    def _product(self, x: str, weight: str, output: str) -> str:
        """x W^T."""
        if not self.packed:
            return self._op("Gemm", [x, self._weight(weight)], output, transB=1)
        rows, columns = self.shape.weights[weight]
        blocks = -(-columns // PACKED_BLOCK)
        parts = {
            weight + PACKED: external_tensor(weight + PACKED, (rows, blocks, PACKED_BLOCK), TensorProto.UINT8),
            weight + PACKED_SCALES: external_tensor(weight + PACKED_SCALES, (rows * blocks,)),
        }
        self.externals |= parts
        sizes = {"K": columns, "N": rows, "bits": 8, "block_size": PACKED_BLOCK}
        return self._op("MatMulNBits", [x, *parts], output, domain=_MS, accuracy_level=_INTEGERS, **sizes)

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
        rows = self._op("Slice", [normed, start, self._integers("end", [np.iinfo(np.int64).max])], "kept.rows")
        name = EMBEDDING if self.shape.tied else "lm_head.weight"
        self._product(rows, name, "logits")
        self._output("logits", TensorProto.FLOAT, ["kept", self.shape.vocab_size])

    # --- heads whose size GroupQueryAttention refuses ----------------------------------------------------------

    def _heads(self, x: str, heads: int, rotary: bool) -> str:
        """(S, heads * d) to (1, S, heads * d'), zeros after each rotary half (or after each head of values)."""
        d, pad = self.shape.head_dim, self.padded_head - self.shape.head_dim
        if pad == 0:
            return self._op("Unsqueeze", [x, self._integers("axis0", [0])], f"{x}.batch")
        halves = 2 if rotary else 1
        sizes = self._integers(f"split{heads}.{halves}", [-1, heads * halves, d // halves])
        pads = self._integers(f"pads{halves}", [0, 0, 0, 0, 0, pad // halves])
        padded = self._op("Pad", [self._op("Reshape", [x, sizes], f"{x}.split"), pads], f"{x}.padded")
        joined = self._integers(f"join{heads}", [1, -1, heads * self.padded_head])
        return self._op("Reshape", [padded, joined], f"{x}.batch")

    def _unpad_heads(self, x: str, heads: int) -> str:
        d = self.shape.head_dim
        if d == self.padded_head:
            return self._op("Squeeze", [x, self._integers("axis0", [0])], f"{x}.flat")
        split = self._op("Reshape", [x, self._integers(f"heads{heads}", [-1, heads, self.padded_head])], f"{x}.heads")
        ends = [self._integers(n, [v]) for n, v in (("from0", 0), ("to_d", d), ("axis2", 2))]
        cut = self._op("Slice", [split, *ends], f"{x}.cut")
        return self._op("Reshape", [cut, self._integers(f"flat{heads}", [-1, heads * d])], f"{x}.flat")

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
        self._input("tokens", TensorProto.INT64, ["S"])
        self._input("kept", TensorProto.INT64, [1])
        self._input("past", TensorProto.INT32, [1, 1])
        self._input("total", TensorProto.INT32, [])

    def _declare_kv(self, layer: int) -> None:
        dims: list[int | str] = [1, self.shape.kv_heads, "limit", self.padded_head]
        for kind in ("key", "value"):
            self._input(f"{kind}.{layer}", TensorProto.FLOAT, dims)
            self._output(f"{kind}_out.{layer}", TensorProto.FLOAT, dims)

    def _weight(self, name: str) -> str:
        if name not in self.externals:
            self.externals[name] = external_tensor(name, self.shape.weights[name])
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
