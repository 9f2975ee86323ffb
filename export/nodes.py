"""Collects the nodes of an ONNX graph under names of its own. It knows no model.

``graph`` drops what no output needs, so a backward pass may be written whole and only its wanted gradients declared.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MS = "com.microsoft"
_OPSET, _IR_VERSION = 21, 10
#: Operators of ONNX Runtime's own domain.
_OWN = {"FusedMatMul", "GatherBlockQuantized", "QuickGelu", "RotaryEmbedding"}
Dims = Sequence[int | str]


class Nodes:
    """One graph in the making; a value is its name.

    prefix: begins every name that is made here, so that the body of a loop shares none with what is around it.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[np.generic]] = {}
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, called: str = "", **attributes: Any) -> str:
        """Adds a node with one output, which it returns."""
        return self._add(kind, inputs, [called or self._fresh(kind)], attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Adds a node with several outputs."""
        base = self._fresh(kind)
        return self._add(kind, inputs, [f"{base}.{index}" for index in range(outputs)], attributes)

    def split(self, x: str, sizes: list[int], axis: int) -> list[str]:
        """Cuts an axis into parts."""
        return [x] if len(sizes) == 1 else self.ops("Split", x, self.integers(*sizes), outputs=len(sizes), axis=axis)

    def joined(self, parts: list[str], axis: int) -> str:
        """Puts parts together along an axis."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A constant float32 scalar."""
        return self.constant(np.array(value, dtype=np.float32))

    def constant(self, value: NDArray[np.generic]) -> str:
        """A constant; equal ones are one."""
        for name, known in self._constants.items():
            if known.dtype == value.dtype and known.shape == value.shape and (known == value).all():
                return name
        name = f"{self._prefix}constant.{len(self._constants)}"
        self._constants[name] = value
        return name

    def input(self, name: str, dtype: int, dims: Dims) -> str:
        """Declares an input; a second time it is the same."""
        self._inputs.setdefault(name, helper.make_tensor_value_info(name, dtype, dims))
        return name

    def output(self, value: str, name: str, dims: Dims, dtype: int = TensorProto.FLOAT) -> None:
        """Declares ``value`` as an output called ``name``."""
        self.op("Identity", value, called=name)
        self._outputs.append(helper.make_tensor_value_info(name, dtype, dims))

    def graph(self, name: str) -> onnx.GraphProto:
        """The graph, without the nodes that no output needs."""
        wanted, kept = {value.name for value in self._outputs}, list[onnx.NodeProto]()
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input, *(_read(attribute) for attribute in node.attribute))
                kept.append(node)
        constants = [numpy_helper.from_array(value, n) for n, value in self._constants.items() if n in wanted]
        return helper.make_graph(kept[::-1], name, list(self._inputs.values()), self._outputs, constants)

    def model(self, name: str) -> onnx.ModelProto:
        """The graph as a file's content."""
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MS, 1)]
        return helper.make_model(
            self.graph(name), opset_imports=opsets, ir_version=_IR_VERSION, producer_name="fleetdraft"
        )

    def _add(self, kind: str, inputs: tuple[str, ...], outputs: list[str], attributes: dict[str, Any]) -> list[str]:
        domain = MS if kind in _OWN else ""
        self._nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs

    def _fresh(self, kind: str) -> str:
        return f"{self._prefix}{kind}.{len(self._nodes)}"


def _read(attribute: onnx.AttributeProto) -> set[str]:
    """What a loop's body may read from around it."""
    return {name for node in attribute.g.node for name in node.input}
