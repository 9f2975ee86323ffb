"""The train graph of a drafter: adapters and batches in, losses and gradients out, run by plain ONNX Runtime.

Forward and backward are written node by node. Like the decode graph it holds no weights. Here they are inputs, which
ONNX Runtime reads where they are; it would copy external initializers. Optimiser and clipping stay outside, in NumPy. A
leading axis of *clients* lets one call train many adapters, each on a batch of its own; a device has one.

Inputs (C clients; each with B texts of L tokens, R judged rows, K listed teacher tokens a row, S draws; all are free)
  tokens         int64   (C, B, L)    positions 0..L-1; padding on the right is harmless: no judged row sees it
  rows           int64   (C, R)       judged positions of the client's texts, b * L + l, each once; -1 is padding
  teacher_ids    int64   (C, R, K)    drafter tokens
  teacher_probs  float32 (C, R, K)    their probabilities; 0 is padding
  kl_weight      float32 (C, R)       factor of each row's divergence, already normalised; 0 where rows is -1
  labels         int64   (C, R)
  nll_weight     float32 (C, R)       factor of each row's -log q(label), already normalised; 0 where rows is -1
  uniforms       float32 (C, R, S)    in [0, 1), one for each token that tvd++sampled draws; read by that alone
  divergences    float32 (7,)         weights of the losses.DIVERGENCES; those of weight 0 still run, in little time
  beta, eta      float32 ()           of the JSD and of LK
  lora.{l}.{projection}.A  float32 (C, rank, in)   and  .B  float32 (C, out, rank)
  and the frozen weights that all clients share, as ``fusion.train_tensors`` names them
Outputs
  loss, kl, nll  float32 (C,)         loss = kl + nll; kl is the sum of the divergences
  overlap        float32 (C,)         sum of kl_weight * sum of min(p, q): the expected acceptance
  grad.lora.{l}.{projection}.A, .B    gradient of the client's loss (tvd++: its policy gradient), shaped as the input

The logits of row b * L + l, the law of the token after tokens[b, : l + 1], are compared with the teacher's row;
``common/losses.py`` is the same loss in float64.
"""

import onnx
from onnx import TensorProto

from ..common.lora import LoraLayout
from ..common.losses import DIVERGENCES
from ..common.shape import EMBEDDING
from .backbone import Back, Backbone, free_rank
from .head_loss import Judged, head_loss
from .nodes import Dims, Nodes

#: Name to dtype and axes of the batch inputs, in order.
BATCH_INPUTS: dict[str, tuple[int, Dims]] = {
    "tokens": (TensorProto.INT64, ["C", "B", "L"]),
    "rows": (TensorProto.INT64, ["C", "R"]),
    "teacher_ids": (TensorProto.INT64, ["C", "R", "K"]),
    "teacher_probs": (TensorProto.FLOAT, ["C", "R", "K"]),
    "kl_weight": (TensorProto.FLOAT, ["C", "R"]),
    "labels": (TensorProto.INT64, ["C", "R"]),
    "nll_weight": (TensorProto.FLOAT, ["C", "R"]),
    "uniforms": (TensorProto.FLOAT, ["C", "R", "S"]),
    "divergences": (TensorProto.FLOAT, [len(DIVERGENCES)]),
    "beta": (TensorProto.FLOAT, []),
    "eta": (TensorProto.FLOAT, []),
}
_HEAD = "lm_head.weight"


def train_graph(layout: LoraLayout, bits: int | None = None) -> onnx.ModelProto:
    """Builds the graph.

    Guarantees:
      - Inputs and outputs are exactly those of the module's docstring.
      - Every matrix of weights is in float32 only while it is used.

    Args:
      bits: 4 or 8: matrices are blocks of integers (``common/blocks.py``), dequantised where they are used. None:
        float32.
    """
    n = Nodes()
    for name, (dtype, dims) in BATCH_INPUTS.items():
        n.input(name, dtype, dims)
    for name, size in layout.shapes.items():
        n.input(name, TensorProto.FLOAT, ["C", *free_rank(name, size)])
    backbone = Backbone(n, layout, bits, "tokens")
    hidden, backbone_back = backbone.forward()
    chosen, rows_back = _judged_rows(n, hidden, "rows", layout.shape.hidden_size)
    normed, norm_back = backbone.norm(chosen, "model.norm.weight")
    head = backbone.matrix(EMBEDDING if layout.shape.tied else _HEAD, beside=normed)
    judged = Judged(**{name: name for name in list(BATCH_INPUTS)[2:]})
    loss = head_loss(n, normed, head, judged, layout.shape.vocab_size)
    backbone_back(rows_back(norm_back(loss.gradient)))
    sums = {"loss": n.op("Add", loss.kl, loss.nll), "kl": loss.kl, "nll": loss.nll, "overlap": loss.overlap}
    for name, value in sums.items():
        n.output(value, name, ["C"])
    for name, size in layout.shapes.items():
        n.output(backbone.gradients[name], f"grad.{name}", ["C", *free_rank(name, size)])
    return n.model("train")


def _judged_rows(n: Nodes, hidden: str, rows: str, features: int) -> tuple[str, Back]:
    """(C, N, features) to the judged (C, R, features)."""
    flat = n.op("Reshape", hidden, n.integers(-1, features))
    count = n.op("Shape", flat, start=0, end=1)
    first = _first_of_client(n, hidden)
    present = n.op("GreaterOrEqual", rows, n.integers(0))
    here = n.op("Add", rows, first)

    def backward(grad: str) -> str:
        # Padding goes to a row of its own, which is cut off: rows that are written twice would depend on who is last.
        target = n.op("Unsqueeze", n.op("Where", present, here, count), n.integers(-1))
        room = n.op("ConstantOfShape", n.joined([n.op("Add", count, n.integers(1)), n.integers(features)], axis=0))
        spread = n.op("ScatterND", room, target, grad)
        kept = n.op("Slice", spread, n.integers(0), count, n.integers(0))
        return n.op("Reshape", kept, n.op("Shape", hidden))

    return n.op("Gather", flat, n.op("Where", present, here, n.integers(0))), backward


def _first_of_client(n: Nodes, hidden: str) -> str:
    """(C, 1): where each client's rows begin when those of all are in one axis."""
    zero, one = (n.integers(value) for value in (0, 1))
    scalar = [n.op("Squeeze", x) for x in (zero, n.op("Shape", hidden, start=0, end=1), one)]
    begins = n.op("Mul", n.op("Range", *scalar), n.op("Shape", hidden, start=1, end=2))
    return n.op("Unsqueeze", begins, one)
