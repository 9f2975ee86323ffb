"""The divergences of the train graph, one function each, and their weighted sum. It knows no vocabulary and no chunks.

Each is the function of the same name in ``common/losses.py``, as nodes over values float32 (C, R, outcomes). A new one
is a line of ``DIVERGENCES`` there, a function here with its line in ``_LOSSES``, and the same in ``torch_losses.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from onnx import TensorProto

from ..common.losses import DIVERGENCES, FLOOR, SPREAD, TINY
from .nodes import Nodes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Names of what the losses depend on besides p and q: inputs of the graph (``train_graph.py``)."""

    divergences: str
    beta: str
    eta: str
    uniforms: str
    kl_weight: str


@dataclass(frozen=True, kw_only=True)
class Loss:
    """value: (C, R, 1). slope: (C, R, outcomes), by log q."""

    value: str
    slope: str


class Outcomes:
    """Rows to compare, and what several losses make of them.

    p, log_q: (C, R, outcomes). settings: of the losses.
    """

    def __init__(self, n: Nodes, p: str, log_q: str, settings: Settings) -> None:
        self.n, self.p, self.log_q, self.settings = n, p, log_q, settings
        self.q = n.op("Exp", log_q)

    @cached_property
    def ratio(self) -> str:
        """log q − log p, with p floored."""
        return self.n.op("Sub", self.log_q, _log(self.n, self.p, FLOOR))

    @cached_property
    def reward(self) -> str:
        """1 where more of q would lower TVD, else 0."""
        return self.n.op("Cast", self.n.op("Greater", self.p, self.q), to=TensorProto.FLOAT)

    @cached_property
    def overlap(self) -> str:
        """(C, R, 1): Σ min(p, q)."""
        return self.sum(self.n.op("Min", self.p, self.q))

    @cached_property
    def tvd(self) -> Loss:
        return tvd(self)

    @cached_property
    def forward_kl(self) -> Loss:
        return forward_kl(self)

    def sum(self, x: str) -> str:
        """Over the outcomes, (C, R, 1)."""
        return self.n.op("ReduceSum", x, self.n.integers(-1))


def weighted(x: Outcomes) -> Loss:
    """Σ of the ``DIVERGENCES``, each times its weight."""
    n, losses = x.n, [_LOSSES[name](x) for name in DIVERGENCES]
    weights = n.split(x.settings.divergences, [1] * len(losses), axis=0)

    def total(parts: list[str]) -> str:
        return n.op("Sum", *(n.op("Mul", part, weight) for part, weight in zip(parts, weights, strict=True)))

    return Loss(value=total([loss.value for loss in losses]), slope=total([loss.slope for loss in losses]))


def forward_kl(x: Outcomes) -> Loss:
    """KL(p‖q)."""
    n = x.n
    return Loss(value=n.op("Neg", x.sum(n.op("Mul", x.p, x.ratio))), slope=n.op("Neg", x.p))


def reverse_kl(x: Outcomes) -> Loss:
    """KL(q‖p)."""
    n = x.n
    slope = n.op("Mul", x.q, n.op("Add", x.ratio, n.number(1)))
    return Loss(value=x.sum(n.op("Mul", x.q, x.ratio)), slope=slope)


def jsd(x: Outcomes) -> Loss:
    """β KL(p‖m) + (1 − β) KL(q‖m) with m = βp + (1 − β)q."""
    n, beta = x.n, x.settings.beta
    p_share, q_share = n.op("Mul", x.p, beta), n.op("Mul", x.q, n.op("Sub", n.number(1), beta))
    log_m = _log(n, n.op("Add", p_share, q_share), TINY)
    away = n.op("Mul", q_share, n.op("Sub", x.log_q, log_m))
    other = n.op("Mul", p_share, n.op("Sub", _log(n, x.p, TINY), log_m))
    return Loss(value=x.sum(n.op("Add", other, away)), slope=away)


def tvd(x: Outcomes) -> Loss:
    """½ Σ|p − q|."""
    n, half = x.n, x.n.number(0.5)
    excess = n.op("Sub", x.q, x.p)
    slope = n.op("Mul", n.op("Mul", n.op("Sign", excess), x.q), half)
    return Loss(value=n.op("Mul", x.sum(n.op("Abs", excess)), half), slope=slope)


def tvd_plus(x: Outcomes) -> Loss:
    """TVD, with the policy gradient of advantages normalised by the row's own q."""
    n = x.n
    above = n.op("Sub", x.reward, x.sum(n.op("Mul", x.q, x.reward)))
    spread = n.op("Sqrt", x.sum(n.op("Mul", x.q, n.op("Mul", above, above))))
    advantage = n.op("Div", above, n.op("Add", spread, n.number(SPREAD)))
    return Loss(value=x.tvd.value, slope=n.op("Neg", n.op("Mul", x.q, advantage)))


def tvd_plus_sampled(x: Outcomes) -> Loss:
    """TVD, with the policy gradient of tokens drawn from q, normalised over the client's draws."""
    n = x.n
    drawn = _draw(x)
    advantage = _normalised(x, n.op("GatherElements", x.reward, drawn, axis=-1))
    draws = n.op("Cast", n.op("Shape", drawn, start=2, end=3), to=TensorProto.FLOAT)
    zeros = n.op("ConstantOfShape", n.op("Shape", x.q))
    slope = n.op("ScatterElements", zeros, drawn, n.op("Div", n.op("Neg", advantage), draws), axis=-1, reduction="add")
    return Loss(value=x.tvd.value, slope=slope)


def lk(x: Outcomes) -> Loss:
    """λ KL(p‖q) + (1 − λ) TVD with λ = exp(−η Σ min(p, q)), held fixed."""
    n = x.n
    share = n.op("Exp", n.op("Neg", n.op("Mul", x.overlap, x.settings.eta)))

    def mixed(kl: str, distance: str) -> str:
        return n.op("Add", distance, n.op("Mul", share, n.op("Sub", kl, distance)))

    return Loss(value=mixed(x.forward_kl.value, x.tvd.value), slope=mixed(x.forward_kl.slope, x.tvd.slope))


_LOSSES: dict[str, Callable[[Outcomes], Loss]] = {
    "forward-kl": lambda x: x.forward_kl,
    "reverse-kl": reverse_kl,
    "jsd": jsd,
    "tvd": lambda x: x.tvd,
    "tvd++": tvd_plus,
    "tvd++sampled": tvd_plus_sampled,
    "lk": lk,
}


def _draw(x: Outcomes) -> str:
    """int64 (C, R, S): what the uniforms choose by the inverse of q's distribution function."""
    n = x.n
    but_last = n.op("Slice", x.q, n.integers(0), n.integers(-1), n.integers(-1))
    reached = n.op("CumSum", but_last, n.integers(-1))
    columns = n.op("Unsqueeze", reached, n.integers(2)), n.op("Unsqueeze", x.settings.uniforms, n.integers(3))
    passed = n.op("Cast", n.op("LessOrEqual", *columns), to=TensorProto.INT64)
    return n.op("ReduceSum", passed, n.integers(-1), keepdims=0)


def _normalised(x: Outcomes, reward: str) -> str:
    """(C, R, S) less its mean over the client's draws in rows that weigh something, by their spread."""
    n, axes = x.n, x.n.integers(1, 2)
    weighs = n.op("Greater", n.op("Unsqueeze", x.settings.kl_weight, n.integers(-1)), n.number(0))
    counted = n.op("Expand", n.op("Cast", weighs, to=TensorProto.FLOAT), n.op("Shape", reward))
    count = n.op("Max", n.op("ReduceSum", counted, axes), n.number(1))

    def mean(values: str) -> str:
        return n.op("Div", n.op("ReduceSum", n.op("Mul", values, counted), axes), count)

    above = n.op("Sub", reward, mean(reward))
    spread = n.op("Sqrt", mean(n.op("Mul", above, above)))
    return n.op("Div", above, n.op("Add", spread, n.number(SPREAD)))


def _log(n: Nodes, x: str, least: float) -> str:
    return n.op("Log", n.op("Max", x, n.number(least)))
