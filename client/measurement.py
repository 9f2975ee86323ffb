"""What a drafter gains on given prompts: the target alone and with the drafter, interleaved, in one run."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from ..common.lora import LoraAdapter
from ..common.metrics import DraftCounters
from .decoding.continuation import Generation
from .decoding.options import Options
from .decoding.processors import History, LogitsProcessor, ProcessedRows
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
    """One prompt by the target alone and with each adapter; their order changes from turn to turn."""
    runs: dict[str | None, Callable[[], Generation]] = {None: partial(pair.alone.run, prompt, options)}
    runs |= {name: partial(_adapted, pair, adapter, prompt, options) for name, adapter in adapters.items()}
    done = in_turns((options.seed, turn), runs)
    tokens, greedy = pair.target_codec.prompt_tokens(prompt), options.sampling.greedy
    processors = options.logits_processors
    drafted = {
        name: Drafted(
            counters=done[name].counters,
            greedy=compare_greedy(pair.target, tokens, done[None], done[name], processors) if greedy else GreedyCheck(),
        )
        for name in adapters
    }
    return Measurement(alone=done[None].counters, drafted=drafted)


def _adapted(pair: Pair, adapter: LoraAdapter, prompt: str, options: Options) -> Generation:
    pair.adapt(adapter)
    return pair.drafted.run(prompt, options)


def in_turns(turn: Sequence[int], runs: Mapping[Name, Callable[[], Generation]]) -> dict[Name, Generation]:
    """Runs each once, one after the other.

    Args:
      turn: numbers >= 0, such as a seed and the prompt's place. Each turn has a random order of its own: where the same
        one always runs behind the same other, what that leaves in the processor's caches is its gain or loss.
    """
    names = list(runs)
    order = np.random.default_rng(turn).permutation(len(names))
    return {(name := names[place]): runs[name]() for place in order}


def compare_greedy(
    target: Decoder,
    prompt: Sequence[int],
    alone: Generation,
    drafted: Generation,
    processors: Sequence[LogitsProcessor],
) -> GreedyCheck:
    """Compares two greedy texts; a first difference between tied logits is a tie, not an error of the law.

    Args:
      processors: of both texts; logits are compared as they leave them.
    """
    pairs = zip(alone.token_ids, drafted.token_ids, strict=False)
    split = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if split is None:
        same = len(alone.token_ids) == len(drafted.token_ids)
        return GreedyCheck(identical=int(same), different=int(not same))
    target.rewind(0)
    text = [*prompt, *alone.token_ids[:split]]
    row = ProcessedRows(target.score(text, 1), History(text), processors)[0]
    gap = abs(float(row[alone.token_ids[split]]) - float(row[drafted.token_ids[split]]))
    return GreedyCheck(ties=int(gap < TIE_TOLERANCE), different=int(gap >= TIE_TOLERANCE))
