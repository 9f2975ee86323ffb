"""The train graph of a drafter: adapter and batch in, loss and gradients out, run by plain ONNX Runtime.

Forward and backward are traced from torch once, off the device. Like the decode graph it holds no weights: they are
external initializers under their Hugging Face names. Optimiser and clipping stay outside, in NumPy.

Inputs (B texts of L tokens, K listed teacher tokens a row; all three vary from call to call)
  tokens         int64   (B, L)      positions 0..L-1; padding on the right is harmless where both weights are 0
  teacher_ids    int64   (B, L, K)   drafter tokens
  teacher_probs  float32 (B, L, K)   their probabilities; 0 is padding
  kl_weight      float32 (B, L)      factor of each row's divergence, already normalised
  labels         int64   (B, L)
  nll_weight     float32 (B, L)      factor of each row's -log q(label), already normalised
  mix            float32 ()          1 is KL(p‖q), 0 is KL(q‖p), linear between
  lora.{l}.{projection}.A  float32 (rank, in)   and  .B  float32 (out, rank)
Outputs
  loss, kl, nll  float32 ()          loss = kl + nll
  grad.lora.{l}.{projection}.A, .B   gradient of loss, in the shape of the input

Row i of the logits, the law of the token after tokens[: i + 1], is compared with teacher row i; ``common/losses.py`` is
the same loss in float64.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import onnx
import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from ..common.lora import LoraLayout
from ..common.losses import FLOOR, PADDING_LOG
from ..common.shape import DecoderShape
from .decode_graph import external_tensor
from .llama import Llama, Tensors

#: Name to dtype and axes of the batch inputs, in order.
BATCH_INPUTS = {
    "tokens": (torch.int64, "BL"),
    "teacher_ids": (torch.int64, "BLK"),
    "teacher_probs": (torch.float32, "BLK"),
    "kl_weight": (torch.float32, "BL"),
    "labels": (torch.int64, "BL"),
    "nll_weight": (torch.float32, "BL"),
    "mix": (torch.float32, ""),
}
Losses = tuple[Tensor, Tensor]


def hybrid_loss(logits: Tensor, batch: Tensors) -> Losses:
    """(kl, nll), the two weighted sums of ``common.losses.hybrid_loss``.

    Args:
      logits: (B * L, vocab).
      batch: the batch inputs by name.
    """
    ids, probs = (batch[name].flatten(0, 1) for name in ("teacher_ids", "teacher_probs"))
    # One gather for teacher and labels, so that the backward is one scatter into (B * L, vocab).
    wanted = torch.cat([ids, batch["labels"].reshape(-1, 1)], dim=-1)
    log_listed, log_label = _log_softmax(logits, wanted).split([ids.shape[1], 1], dim=-1)
    listed = torch.where(probs > 0, log_listed, PADDING_LOG)
    p = torch.cat([probs, _tail(probs)], dim=-1)
    log_q_row = torch.cat([listed, torch.log(_tail(torch.exp(listed)))], dim=-1)
    ratio = log_q_row - torch.log(p.clamp(min=FLOOR))
    divergence = ((1 - batch["mix"]) * torch.exp(log_q_row) - batch["mix"] * p) * ratio
    kl = (batch["kl_weight"].reshape(-1, 1) * divergence).sum()
    return kl, -(batch["nll_weight"].reshape(-1, 1) * log_label).sum()


def train_step(layout: LoraLayout, weights: Tensors, lora: Tensors, batch: Tensors) -> tuple[Tensor, ...]:
    """(loss, kl, nll, gradient of each LoRA tensor in the layout's order): the graph's outputs, computed by torch."""

    def loss(adapter: dict[str, Tensor]) -> tuple[Tensor, Losses]:
        model = Llama(shape=layout.shape, weights=weights, lora=adapter, scaling=layout.scaling)
        kl, nll = hybrid_loss(model.logits(batch["tokens"]), batch)
        return kl + nll, (kl, nll)

    adapter = {name: lora[name] for name in layout.shapes}
    gradients, (total, (kl, nll)) = torch.func.grad_and_value(loss, has_aux=True)(adapter)
    return total, kl, nll, *(gradients[name] for name in layout.shapes)


def train_graph(layout: LoraLayout) -> onnx.ModelProto:
    """Traces ``train_step`` and exports it.

    Guarantees:
      - Inputs and outputs are exactly those of the module's docstring; B, L and K are free.
      - External initializers are exactly ``layout.shape.weights``, so any session binds the checkpoint's own arrays.
    """
    examples = _examples(layout)
    outputs = ["loss", "kl", "nll", *(f"grad.{name}" for name in layout.shapes)]
    with _quiet():
        traced = _traced(layout, examples)
        program = torch.onnx.export(traced, input_names=list(examples), output_names=outputs, verbose=False)
    return _without_weights(cast(torch.onnx.ONNXProgram, program).model_proto, layout.shape)


def _examples(layout: LoraLayout) -> dict[str, Tensor]:
    """Zeros for every input of the traced step: batch, adapter, then weights. Sizes above 1 keep an axis free."""
    sizes = {"B": 2, "L": 5, "K": 3}
    batch = {name: torch.zeros([sizes[axis] for axis in axes], dtype=t) for name, (t, axes) in BATCH_INPUTS.items()}
    return batch | {name: torch.zeros(size) for name, size in (layout.shapes | layout.shape.weights).items()}


def _traced(layout: LoraLayout, examples: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """The step with its backward written out, as an exported program of positional inputs."""

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(examples, values, strict=True))
        return train_step(layout, named, named, named)

    values = tuple(examples.values())
    decompositions = cast(Any, core_aten_decompositions())  # torch annotates table and parameter differently
    graph = make_fx(step, tracing_mode="symbolic", decomposition_table=decompositions)(*values)
    axes = [BATCH_INPUTS[name][1] if name in BATCH_INPUTS else "" for name in examples]
    free = tuple(dict.fromkeys(range(len(named)), Dim.DYNAMIC) for named in axes)
    return torch.export.export(_Positional(graph), values, dynamic_shapes=(free,), strict=False)


class _Positional(torch.nn.Module):
    """torch.export takes modules with a signature it can read; a traced GraphModule has none."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.graph(*values)


def _without_weights(model: onnx.ModelProto, shape: DecoderShape) -> onnx.ModelProto:
    """Turns the weight inputs into external initializers and drops what only describes the tracing."""
    graph = model.graph
    kept = [_with_named_axes(value) for value in graph.input if value.name not in shape.weights]
    del graph.input[:], graph.value_info[:]
    graph.input.extend(kept)
    graph.initializer.extend(external_tensor(name, dims) for name, dims in shape.weights.items())
    for part in (graph, *graph.node, *graph.input, *graph.output):
        part.ClearField("metadata_props")
    return model


def _with_named_axes(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Gives a batch input's free axes the names of the module's docstring; torch numbers them."""
    if value.name in BATCH_INPUTS:
        for dim, axis in zip(value.type.tensor_type.shape.dim, BATCH_INPUTS[value.name][1], strict=True):
            dim.dim_param = axis
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's notes about operators of packages that are not used here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _log_softmax(logits: Tensor, ids: Tensor) -> Tensor:
    """(N, V) logits to the log-probabilities (N, K) of ``ids``; torch's fused forms have no ONNX backward."""
    top = logits.detach().amax(dim=-1, keepdim=True)
    return logits.gather(-1, ids) - top - torch.log(torch.exp(logits - top).sum(dim=-1, keepdim=True))


def _tail(listed: Tensor) -> Tensor:
    """(N, 1): what the listed probabilities leave, at least FLOOR."""
    return (1 - listed.sum(dim=-1, keepdim=True)).clamp(min=FLOOR)
