"""The vocabulary part of the train graph: the hybrid loss of judged rows and its gradient by what the head reads.

The head is frozen, so a row's loss and its gradient come out of one pass. Rows go through in chunks, the steps of a
``Scan``: there are never more logits than ``CHUNK_VALUES`` at once. ``common/losses.py`` is the same loss in float64.
"""

from dataclasses import dataclass

from onnx import TensorProto

from ..common.losses import FLOOR, PADDING_LOG
from .nodes import Nodes

#: 32 MB of logits, of which there are two copies at once: enough rows for fast products, little beside the weights.
CHUNK_VALUES = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Names of what judges R rows of each of C clients: the graph's inputs (``train_graph.py``)."""

    teacher_ids: str
    teacher_probs: str
    kl_weight: str
    labels: str
    nll_weight: str
    mix: str


@dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """kl, nll: (C,). gradient: (C, R, hidden) of each client's kl + nll."""

    kl: str
    nll: str
    gradient: str


def head_loss(n: Nodes, hidden: str, head: str, judged: Judged, vocab_size: int) -> HeadLoss:
    """Adds the loss.

    Args:
      hidden: float32 (C, R, hidden) normed rows.
      head: float32 (vocab, hidden).
    """
    chunks = _Chunks(n, hidden, max(1, CHUNK_VALUES // vocab_size))
    column = n.integers(-1)
    labels, kl_weight, nll_weight = (
        n.op("Unsqueeze", name, column) for name in (judged.labels, judged.kl_weight, judged.nll_weight)
    )
    wanted = n.op("Concat", judged.teacher_ids, labels, axis=-1)
    sources = [chunks.of(x) for x in (hidden, wanted, judged.teacher_probs, kl_weight, nll_weight)]
    outputs = n.ops("Scan", *sources, outputs=3, body=_chunk(head, judged.mix), num_scan_inputs=len(sources))
    kl, nll, gradient = (chunks.joined(x) for x in outputs)
    return HeadLoss(kl=_by_client(n, kl), nll=_by_client(n, nll), gradient=gradient)


class _Chunks:
    """Cuts (C, R, features) into (chunks, rows, features); what is missing at the end is zeros."""

    def __init__(self, n: Nodes, like: str, most: int) -> None:
        self._n, one = n, n.integers(1)
        self._leading = n.op("Shape", like, start=0, end=2)
        self._count = n.op("ReduceProd", self._leading, keepdims=1)
        chunks = self._divided(n.op("Max", self._count, one), n.integers(most))
        rows = self._divided(n.op("Max", self._count, one), chunks)
        missing = n.op("Sub", n.op("Mul", chunks, rows), self._count)
        self._pads = n.joined([n.integers(0, 0), missing, n.integers(0)], axis=0)
        self._sizes = n.joined([chunks, rows, n.integers(-1)], axis=0)

    def of(self, x: str) -> str:
        n = self._n
        return n.op("Reshape", n.op("Pad", n.op("Flatten", x, axis=2), self._pads), self._sizes)

    def joined(self, x: str) -> str:
        """(chunks, rows, features) to (C, R, features)."""
        n = self._n
        rows = n.op("Slice", n.op("Flatten", x, axis=2), n.integers(0), self._count, n.integers(0))
        return n.op("Reshape", rows, n.joined([self._leading, n.integers(-1)], axis=0))

    def _divided(self, x: str, by: str) -> str:
        """x / by, rounded up."""
        n = self._n
        return n.op("Div", n.op("Sub", n.op("Add", x, by), n.integers(1)), by)


def _by_client(n: Nodes, rows: str) -> str:
    """(C, R, 1) to the sums (C,)."""
    return n.op("ReduceSum", rows, n.integers(1, 2), keepdims=0)


def _chunk(head: str, mix: str) -> object:
    """One step: T rows with what judges them to their kl (T, 1), nll (T, 1) and gradient (T, hidden), all weighted."""
    n = Nodes("chunk/")
    hidden = n.input("chunk/hidden", TensorProto.FLOAT, ["T", "H"])
    wanted = n.input("chunk/wanted", TensorProto.INT64, ["T", "W"])
    probs = n.input("chunk/probs", TensorProto.FLOAT, ["T", "K"])
    kl_weight, nll_weight = (n.input(f"chunk/{name}", TensorProto.FLOAT, ["T", 1]) for name in ("kl", "nll"))
    log_q = n.op("LogSoftmax", n.op("FusedMatMul", hidden, head, transB=1), axis=-1)
    log_listed, log_label = _without_last(n, n.op("GatherElements", log_q, wanted, axis=1))
    divergence, by_listed = _divergence(n, probs, log_listed, mix)
    slope = n.op("Concat", n.op("Mul", by_listed, kl_weight), n.op("Neg", nll_weight), axis=-1)
    n.output(n.op("Mul", divergence, kl_weight), "chunk/kl_rows", ["T", 1])
    n.output(n.op("Neg", n.op("Mul", log_label, nll_weight)), "chunk/nll_rows", ["T", 1])
    n.output(_through_head(n, log_q, head, wanted, slope), "chunk/gradient", ["T", "H"])
    return n.graph("chunk")


def _divergence(n: Nodes, probs: str, log_listed: str, mix: str) -> tuple[str, str]:
    """(T, 1) divergences and their gradients (T, K) by ``log_listed``, as ``losses.divergence``."""
    one, floor = n.number(1), n.number(FLOOR)
    listed = n.op("Where", n.op("Greater", probs, n.number(0)), log_listed, n.number(PADDING_LOG))
    q = n.op("Exp", listed)
    left, p_left = (n.op("Sub", one, _row_sum(n, x)) for x in (q, probs))
    tail = n.op("Max", left, floor)
    p_row = n.op("Concat", probs, n.op("Max", p_left, floor), axis=-1)
    q_row = n.op("Concat", q, tail, axis=-1)
    log_q_row = n.op("Concat", listed, n.op("Log", tail), axis=-1)
    ratio = n.op("Sub", log_q_row, n.op("Log", n.op("Max", p_row, floor)))
    reverse = n.op("Mul", q_row, n.op("Sub", one, mix))
    forward = n.op("Mul", p_row, mix)
    value = _row_sum(n, n.op("Mul", n.op("Sub", reverse, forward), ratio))
    slope = n.op("Sub", n.op("Mul", reverse, n.op("Add", ratio, one)), forward)
    by_listed, by_tail = _without_last(n, slope)
    # log of the tail = log(1 - sum of q), constant where it is floored.
    by_tail = n.op("Where", n.op("Greater", left, floor), n.op("Div", by_tail, tail), n.number(0))
    return value, n.op("Sub", by_listed, n.op("Mul", by_tail, q))


def _through_head(n: Nodes, log_q: str, head: str, wanted: str, slope: str) -> str:
    """(T, hidden): gradient of a function of log q[wanted] whose gradient there is ``slope``.

    By the logits it is slope at ``wanted`` less q times the slopes' sum; only the second part is as wide as the
    vocabulary.
    """
    spread = n.op("Mul", n.op("FusedMatMul", n.op("Exp", log_q), head), _row_sum(n, slope))
    row = n.op("Unsqueeze", slope, n.integers(1))
    direct = n.op("Squeeze", n.op("MatMul", row, n.op("Gather", head, wanted)), n.integers(1))
    return n.op("Sub", direct, spread)


def _without_last(n: Nodes, x: str) -> tuple[str, str]:
    """(T, K + 1) to (T, K) and (T, 1)."""
    first, last, end, axis = n.integers(0), n.integers(-1), n.integers(2**62), n.integers(1)
    return n.op("Slice", x, first, last, axis), n.op("Slice", x, last, end, axis)


def _row_sum(n: Nodes, x: str) -> str:
    return n.op("ReduceSum", x, n.integers(1))
