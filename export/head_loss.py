"""The vocabulary part of the train graph: the hybrid loss of judged rows and its gradient by what the head reads.

All that a loss needs of a row of logits is log q of the tokens it names; all that its gradient needs besides is the
head's mean row under q. So one ``Scan`` over chunks of rows finds both, the losses follow on arrays without a
vocabulary (``divergences.py``), and a second ``Scan`` brings their slopes back through the named rows of the head.
There are never more than ``CHUNK_VALUES`` logits, or values of named rows, at once. ``common/losses.py`` is the same
loss in float64.
"""

from dataclasses import dataclass

from onnx import TensorProto

from ..common.losses import FLOOR, PADDING_LOG
from .divergences import Outcomes, Settings, weighted
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
    uniforms: str
    divergences: str
    beta: str
    eta: str

    @property
    def settings(self) -> Settings:
        return Settings(**{name: getattr(self, name) for name in Settings.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """kl, nll, overlap: (C,). gradient: (C, R, hidden) of each client's kl + nll."""

    kl: str
    nll: str
    overlap: str
    gradient: str


def head_loss(n: Nodes, hidden: str, head: str, judged: Judged, vocab_size: int) -> HeadLoss:
    """Adds the loss.

    Args:
      hidden: float32 (C, R, hidden) normed rows.
      head: float32 (vocab, hidden).
    """
    labels, kl_weight, nll_weight = (
        n.op("Unsqueeze", name, n.integers(-1)) for name in (judged.labels, judged.kl_weight, judged.nll_weight)
    )
    wanted = n.op("Concat", judged.teacher_ids, labels, axis=-1)
    chunks = _Chunks(n, wanted, n.integers(max(1, CHUNK_VALUES // vocab_size)))
    log_wanted, mean = chunks.each(_look_up(head), hidden, wanted)
    log_listed, log_label = _without_last(n, log_wanted)
    divergence, by_listed, overlap = _divergence(n, judged, log_listed)
    slope = n.op("Concat", n.op("Mul", by_listed, kl_weight), n.op("Neg", nll_weight), axis=-1)
    return HeadLoss(
        kl=_by_client(n, n.op("Mul", divergence, kl_weight)),
        nll=_by_client(n, n.op("Neg", n.op("Mul", log_label, nll_weight))),
        overlap=_by_client(n, n.op("Mul", overlap, kl_weight)),
        gradient=_through_head(n, head, wanted, slope, mean),
    )


class _Chunks:
    """Cuts (C, R, features) into (chunks, rows, features); what is missing at the end is zeros.

    most: int64 (1,), the most rows of a chunk.
    """

    def __init__(self, n: Nodes, like: str, most: str) -> None:
        self._n, one = n, n.integers(1)
        self._leading = n.op("Shape", like, start=0, end=2)
        self._count = n.op("ReduceProd", self._leading, keepdims=1)
        chunks = self._divided(n.op("Max", self._count, one), most)
        rows = self._divided(n.op("Max", self._count, one), chunks)
        missing = n.op("Sub", n.op("Mul", chunks, rows), self._count)
        self._pads = n.joined([n.integers(0, 0), missing, n.integers(0)], axis=0)
        self._sizes = n.joined([chunks, rows, n.integers(-1)], axis=0)

    def each(self, body: Nodes, *inputs: str) -> list[str]:
        """Runs ``body`` on one chunk (T, features) of every input after the other: its outputs, (C, R, features)."""
        graph = body.graph("chunk")
        cut = [self._cut(x) for x in inputs]
        found = self._n.ops("Scan", *cut, outputs=len(graph.output), body=graph, num_scan_inputs=len(cut))
        return [self._joined(x) for x in found]

    def _cut(self, x: str) -> str:
        n = self._n
        return n.op("Reshape", n.op("Pad", n.op("Flatten", x, axis=2), self._pads), self._sizes)

    def _joined(self, x: str) -> str:
        n = self._n
        rows = n.op("Slice", n.op("Flatten", x, axis=2), n.integers(0), self._count, n.integers(0))
        return n.op("Reshape", rows, n.joined([self._leading, n.integers(-1)], axis=0))

    def _divided(self, x: str, by: str) -> str:
        """x / by, rounded up."""
        n = self._n
        return n.op("Div", n.op("Sub", n.op("Add", x, by), n.integers(1)), by)


def _look_up(head: str) -> Nodes:
    """T rows and W tokens each to their log q (T, W), and the head's mean row under q (T, hidden)."""
    n = Nodes("logits/")
    hidden = n.input("logits/hidden", TensorProto.FLOAT, ["T", "H"])
    wanted = n.input("logits/wanted", TensorProto.INT64, ["T", "W"])
    log_q = n.op("LogSoftmax", n.op("FusedMatMul", hidden, head, transB=1), axis=-1)
    n.output(n.op("GatherElements", log_q, wanted, axis=1), "logits/log_wanted", ["T", "W"])
    n.output(n.op("FusedMatMul", n.op("Exp", log_q), head), "logits/mean", ["T", "H"])
    return n


def _divergence(n: Nodes, judged: Judged, log_listed: str) -> tuple[str, str, str]:
    """(C, R, 1) divergences, their gradients (C, R, K) by ``log_listed``, and (C, R, 1) overlaps."""
    one, floor, probs = n.number(1), n.number(FLOOR), judged.teacher_probs
    listed = n.op("Where", n.op("Greater", probs, n.number(0)), log_listed, n.number(PADDING_LOG))
    q = n.op("Exp", listed)
    left, p_left = (n.op("Sub", one, _row_sum(n, x)) for x in (q, probs))
    tail = n.op("Max", left, floor)
    p_row = n.op("Concat", probs, n.op("Max", p_left, floor), axis=-1)
    rows = Outcomes(n, p_row, n.op("Concat", listed, n.op("Log", tail), axis=-1), judged.settings)
    loss = weighted(rows)
    by_listed, by_tail = _without_last(n, loss.slope)
    # log of the tail = log(1 - sum of q), constant where it is floored.
    by_tail = n.op("Where", n.op("Greater", left, floor), n.op("Div", by_tail, tail), n.number(0))
    return loss.value, n.op("Sub", by_listed, n.op("Mul", by_tail, q)), rows.overlap


def _through_head(n: Nodes, head: str, wanted: str, slope: str, mean: str) -> str:
    """(C, R, hidden): gradient of a function of log q[wanted] whose gradient there is ``slope``.

    By the logits it is slope at ``wanted`` less q times the slopes' sum, so here it is the named rows of the head less
    their mean under q, ``mean``.
    """
    values = n.op("Mul", n.op("Shape", wanted, start=2, end=3), n.op("Shape", head, start=1, end=2))
    most = n.op("Max", n.op("Div", n.integers(CHUNK_VALUES), values), n.integers(1))
    (direct,) = _Chunks(n, wanted, most).each(_named_rows(head), slope, wanted)
    return n.op("Sub", direct, n.op("Mul", mean, _row_sum(n, slope)))


def _named_rows(head: str) -> Nodes:
    """Slopes (T, W) of T rows with W tokens each to the sums (T, hidden) of the head's rows times their slopes."""
    n = Nodes("named/")
    slope = n.input("named/slope", TensorProto.FLOAT, ["T", "W"])
    wanted = n.input("named/wanted", TensorProto.INT64, ["T", "W"])
    product = n.op("MatMul", n.op("Unsqueeze", slope, n.integers(1)), n.op("Gather", head, wanted))
    n.output(n.op("Squeeze", product, n.integers(1)), "named/sum", ["T", "H"])
    return n


def _by_client(n: Nodes, rows: str) -> str:
    """(C, R, 1) to the sums (C,)."""
    return n.op("ReduceSum", rows, n.integers(1, 2), keepdims=0)


def _without_last(n: Nodes, x: str) -> tuple[str, str]:
    """(C, R, K + 1) to (C, R, K) and (C, R, 1)."""
    first, last, end, axis = n.integers(0), n.integers(-1), n.integers(2**62), n.integers(-1)
    return n.op("Slice", x, first, last, axis), n.op("Slice", x, last, end, axis)


def _row_sum(n: Nodes, x: str) -> str:
    return n.op("ReduceSum", x, n.integers(-1))
