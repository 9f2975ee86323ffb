"""What a drafter gains on given prompts: the target alone and with the drafter, interleaved, in one run."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from ..common.lora import LoraAdapter
from ..common.metrics import DraftCounters
from .decoding.continuation import Generation
from .decoding.options import Options
from .pair import Pair
from .prompts import Prompt
from .runtimes.decoder import Decoder

Name = TypeVar("Name", bound=Hashable)

TIE_TOLERANCE = 1e-3
"""Two logits closer than this are an argmax tie: batched and single-token kernels may order them differently."""


@dataclass(frozen=True, kw_only=True)
class GreedyCheck:
    """How often greedy text with the drafter equals the target's own. Adds field by field."""

    identical: int = 0
    ties: int = 0
    different: int = 0

    def __add__(self, other: "GreedyCheck") -> "GreedyCheck":
        return GreedyCheck(
            identical=self.identical + other.identical,
            ties=self.ties + other.ties,
            different=self.different + other.different,
        )

    def __str__(self) -> str:
        return f"{self.identical}/{self.identical + self.ties + self.different} (ties {self.ties})"


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """Figures of one adapter on the measured prompts."""

    counters: DraftCounters = field(default_factory=DraftCounters)
    greedy: GreedyCheck = field(default_factory=GreedyCheck)

    def __add__(self, other: "Drafted") -> "Drafted":
        return Drafted(counters=self.counters + other.counters, greedy=self.greedy + other.greedy)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The target alone beside each adapter, on the same prompts. Adds over prompts."""

    alone: DraftCounters
    drafted: Mapping[str, Drafted]

    def __add__(self, other: "Measurement") -> "Measurement":
        names = self.drafted.keys()
        return Measurement(
            alone=self.alone + other.alone, drafted={n: self.drafted[n] + other.drafted[n] for n in names}
        )

    def speedup(self, name: str) -> float:
        """Tokens per second with the drafter over the target alone, both prefills included."""
        return self.drafted[name].counters.tokens_per_s / self.alone.tokens_per_s


def measure(
    pair: Pair,
    prompts: Sequence[Prompt],
    options: Options,
    adapters: Mapping[str, LoraAdapter],
    progress: Callable[[], None] = lambda: None,
) -> Measurement:
    """Generates every prompt with the target alone and with each adapter, in turns, after an uncounted warm-up.

    Args:
      pair: the target and its drafter.
      prompts: at least one.
      options: shared by all runs; the seed too.
      adapters: what to compare, by name.
      progress: called after each prompt.
    """
    total = None
    for turn, prompt in enumerate(prompts):
        if turn == 0:
            _measure_one(pair, prompt.text, options, adapters, turn)  # warms caches up; not counted
        one = _measure_one(pair, prompt.text, options, adapters, turn)
        total = one if total is None else total + one
        progress()
    if total is None:
        raise ValueError("measure needs at least one prompt")
    return total


def _measure_one(
    pair: Pair, prompt: str, options: Options, adapters: Mapping[str, LoraAdapter], turn: int
) -> Measurement:
    """One prompt by the target alone and with each adapter; who begins changes from turn to turn."""
    runs: dict[str | None, Callable[[], Generation]] = {None: partial(pair.alone.run, prompt, options)}
    runs |= {name: partial(_adapted, pair, adapter, prompt, options) for name, adapter in adapters.items()}
    done = in_turns(turn, runs)
    tokens, greedy = pair.target_codec.prompt_tokens(prompt), options.sampling.greedy
    drafted = {
        name: Drafted(
            counters=done[name].counters,
            greedy=compare_greedy(pair.target, tokens, done[None], done[name]) if greedy else GreedyCheck(),
        )
        for name in adapters
    }
    return Measurement(alone=done[None].counters, drafted=drafted)


def _adapted(pair: Pair, adapter: LoraAdapter, prompt: str, options: Options) -> Generation:
    pair.adapt(adapter)
    return pair.drafted.run(prompt, options)


def in_turns(turn: int, runs: Mapping[Name, Callable[[], Generation]]) -> dict[Name, Generation]:
    """Runs each once, one after the other; who begins changes from turn to turn, so that nobody is always the first."""
    names = list(runs)
    return {(name := names[(turn + index) % len(names)]): runs[name]() for index in range(len(names))}


def compare_greedy(target: Decoder, prompt: Sequence[int], alone: Generation, drafted: Generation) -> GreedyCheck:
    """Compares two greedy texts; a first difference between tied logits is a tie, not an error of the law."""
    pairs = zip(alone.token_ids, drafted.token_ids, strict=False)
    split = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if split is None:
        same = len(alone.token_ids) == len(drafted.token_ids)
        return GreedyCheck(identical=int(same), different=int(not same))
    target.rewind(0)
    row = target.score([*prompt, *alone.token_ids[:split]], 1)[0]
    gap = abs(float(row[alone.token_ids[split]]) - float(row[drafted.token_ids[split]]))
    return GreedyCheck(ties=int(gap < TIE_TOLERANCE), different=int(gap >= TIE_TOLERANCE))
