"""One method on one target and task at one temperature: what was counted, prompt by prompt, and the figures of it.

It opens nothing and holds no text: a prompt is known by a digest.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.metrics import RATIOS, DraftCounters
from ..measurement import GreedyCheck
from .bootstrap import LEAST, Interval, Sums, interval, resampled
from .fields import count, number, text
from .law_check import LawCheck
from .method import Method
from .positions import Positions
from .sizes import Sizes

SCHEMA = 2


def prompt_digest(text: str) -> str:
    """By which two evaluations know the same prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class PromptCounts:
    """One prompt by the target alone and drafted; counters are sums over repeats.

    prompt: its digest.
    """

    prompt: str
    alone: DraftCounters
    drafted: DraftCounters

    @property
    def sums(self) -> tuple[float, ...]:
        """What it adds to the sums that ``FIGURES`` are made of, in the order of ``_SUMMED``."""
        return (*(getattr(self.drafted, name) for name in _SUMMED), self.alone.tokens, self.alone.seconds)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PromptCounts":
        return cls(
            prompt=text(value["prompt"]),
            alone=_counters(value["alone"]),
            drafted=_counters(value["drafted"]),
        )


def _counters(value: Mapping[str, Any]) -> DraftCounters:
    found = DraftCounters(
        **{name: number(each) if name == "seconds" else count(each) for name, each in value.items()}  # type: ignore[arg-type]
    )
    if found.contradiction:
        raise ValueError(found.contradiction)
    return found


_SUMMED = ("accepted", "drafted", "target_calls", "tokens", "seconds")
"""Counters of the drafted texts that are summed; behind them stand tokens and seconds of the target alone."""

Figure = Callable[[Sums], NDArray[np.float64]]
"""From (…, 7) sums to (…) figures."""


def _counted(figure: str) -> Figure:
    """One of ``RATIOS``."""
    over, under = (_SUMMED.index(name) for name in RATIOS[figure])
    return lambda sums: _ratio(sums[..., over], sums[..., under])


def _speedup(sums: Sums) -> NDArray[np.float64]:
    return _ratio(sums[..., 3] * sums[..., 6], sums[..., 4] * sums[..., 5])


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where there is nothing to divide by, as in ``DraftCounters``."""
    return np.divide(over, under, out=np.zeros(np.shape(over)), where=np.asarray(under) > 0)


FIGURES: Mapping[str, Figure] = {
    "draft_acceptance_rate": _counted("draft_acceptance_rate"),
    "mean_acceptance_length": _counted("mean_acceptance_length"),
    "speedup": _speedup,
}
"""Figures that have an interval, by their name in the file."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one target and task at one temperature.

    greedy: of the texts at temperature 0. law: of those above, None where there were none.
    prompts: in the order in which they were measured.
    """

    target: str
    task: str
    temperature: float
    method: Method
    prompts: tuple[PromptCounts, ...]
    positions: Positions
    sizes: Sizes
    greedy: GreedyCheck = field(default_factory=GreedyCheck)
    law: LawCheck | None = None
    seed: int = 0

    @cached_property
    def drafted(self) -> DraftCounters:
        """Of all prompts, with the drafter."""
        return sum((prompt.drafted for prompt in self.prompts), DraftCounters())

    @cached_property
    def alone(self) -> DraftCounters:
        """Of all prompts, by the target alone."""
        return sum((prompt.alone for prompt in self.prompts), DraftCounters())

    @cached_property
    def by_prompt(self) -> Mapping[str, Sums]:
        """(7,) ``PromptCounts.sums`` by prompt: the same one given twice tells no more of other prompts than once."""
        found: dict[str, Sums] = {}
        for prompt in self.prompts:
            found[prompt.prompt] = found.get(prompt.prompt, 0.0) + np.array(prompt.sums, dtype=np.float64)
        return found

    @cached_property
    def sums(self) -> Sums:
        """(different prompts, 7) ``by_prompt``."""
        return np.array(list(self.by_prompt.values()))

    def figure(self, name: str) -> float:
        """One of ``FIGURES`` over all prompts."""
        return float(FIGURES[name](self.sums.sum(axis=0)))

    @cached_property
    def intervals(self) -> Mapping[str, Interval | None]:
        """Of each of ``FIGURES``, over different prompts; None of too few."""
        if len(self.sums) < LEAST:
            return dict.fromkeys(FIGURES)
        resamples = resampled(self.sums, self.seed)
        return {name: interval(figure(resamples)) for name, figure in FIGURES.items()}

    @cached_property
    def speedup_quartiles(self) -> tuple[float, float, float]:
        """Of the prompts' own speed-ups: how unlike prompts are, whatever their number."""
        low, middle, high = np.quantile(FIGURES["speedup"](self.sums), [0.25, 0.5, 0.75])
        return float(low), float(middle), float(high)

    @property
    def gamma(self) -> float:
        """Calls of the drafter per block; the draft length, where a draft token takes one call."""
        return self.drafted.drafter_calls / self.drafted.blocks if self.drafted.blocks else 0.0

    @property
    def mbsu(self) -> float | None:
        """Memory-bound speed-up tau / (1 + c gamma): the speed-up if reading weights were all that takes time."""
        ratio = self.sizes.cost_ratio
        return None if ratio is None else self.figure("mean_acceptance_length") / (1 + ratio * self.gamma)

    @property
    def exactness(self) -> str:
        """What was found of the text, in words."""
        if self.temperature == 0:
            return str(self.greedy)
        return f"p = {self.law.p_value:.2g} of {self.law.tokens} tokens" if self.law else "not tested"

    def to_json(self) -> dict[str, Any]:
        """Raw counts and, for readers, the figures made of them."""
        at_zero = self.temperature == 0
        intervals = {f"{name}_interval": bounds and list(bounds) for name, bounds in self.intervals.items()}
        return {
            "target": self.target,
            "task": self.task,
            "temperature": self.temperature,
            "method": self.method.to_json(),
            "prompts": len(self.by_prompt),
            "tokens": self.drafted.tokens,
            **{name: self.figure(name) for name in FIGURES},
            **intervals,
            "speedup_quartiles": list(self.speedup_quartiles),
            "mbsu": self.mbsu,
            "gamma": self.gamma,
            "cost_ratio": self.sizes.cost_ratio,
            "tokens_per_s": self.drafted.tokens_per_s,
            "baseline_tokens_per_s": self.alone.tokens_per_s,
            "per_step_judged": list(self.positions.judged),
            "per_step_accepted": list(self.positions.accepted),
            "greedy_identical": self.greedy.identical if at_zero else None,
            "greedy_ties": self.greedy.ties if at_zero else None,
            "greedy_different": self.greedy.different if at_zero else None,
            "law": asdict(self.law) if self.law else None,
            "memory": self.sizes.to_json(),
            "seed": self.seed,
            "counters": self.drafted.to_json(),
            "per_prompt": [asdict(prompt) for prompt in self.prompts],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Row":
        """Reads the raw counts; the figures are made of them again.

        Raises:
          DAMAGED: (``fields.py``) a field is missing or of another kind.
          ConfigError: a method that is none.
        """
        greedy = {name: count(value[f"greedy_{name}"] or 0) for name in ("identical", "ties", "different")}
        law = value["law"]
        return cls(
            target=text(value["target"]),
            task=text(value["task"]),
            temperature=number(value["temperature"], most=sys.float_info.max),
            method=Method.from_json(value["method"]),
            prompts=tuple(map(PromptCounts.from_json, value["per_prompt"])),
            positions=Positions(
                judged=tuple(map(count, value["per_step_judged"])),
                accepted=tuple(map(count, value["per_step_accepted"])),
            ),
            sizes=Sizes.from_json(value["memory"]),
            greedy=GreedyCheck(**greedy),
            law=LawCheck(tokens=count(law["tokens"]), p_value=number(law["p_value"], most=1)) if law else None,
            seed=count(value["seed"], below=math.inf),
        )
