"""One target, opened, on which cells are measured: all methods and the target alone in turns on each prompt.

It keeps nothing and knows no other target.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ...common.lora import LoraAdapter
from ...common.metrics import DraftCounters
from ..bundle import Bundle
from ..decoding.continuation import Generation
from ..decoding.options import Options
from ..measurement import GreedyCheck, compare_greedy, in_turns
from ..pair import Pair
from ..prompts import Prompt, check_lengths
from .law_check import LawCheck, Values, law_values
from .method import Method
from .plan import Evaluation
from .positions import PositionCount, Positions
from .row import PromptCounts, Row, prompt_digest
from .sizes import sizes

Advance = Callable[[str], None]
"""Called after each prompt and repeat, with where it is."""


class Bench:
    """Measures cells of an evaluation on one of its targets."""

    def __init__(self, evaluation: Evaluation, target: str | None) -> None:
        """Opens the target.

        Raises:
          PromptsError: a prompt is too long for it.
        """
        self._asked, self._target = evaluation, target
        self._bundle = Bundle.open(evaluation.bundle)
        self._pair = self._bundle.pair(target, evaluation.threads, runtime=evaluation.runtime)
        for prompts in evaluation.prompts.values():
            check_lengths(prompts, self._pair.target_codec, self._pair.target.limit)

    def cell(self, task: str, temperature: float, advance: Advance) -> list[Row]:
        """A row for each method on one task at one temperature, in the methods' order."""
        asked, prompts = self._asked, self._asked.prompts[task]
        tallies = [_Tally() for _ in asked.methods]
        self._write(self._sides(task), prompts[0], 0, temperature, 0)  # warms caches up; not counted
        for repeat in range(asked.repeats):
            sides = self._sides(task)
            for turn, prompt in enumerate(prompts):
                self._turn(sides, tallies, prompt, turn, temperature, repeat)
                advance(f"{self._pair.name} · {task}")
        held = sizes(self._bundle, self._pair, self._target, asked.runtime)
        return [
            Row(
                target=self._pair.name,
                task=task,
                temperature=temperature,
                method=method,
                prompts=tally.prompts(prompts),
                positions=tally.positions,
                sizes=held,
                greedy=tally.greedy,
                law=LawCheck.of(np.concatenate(tally.values)) if tally.values else None,
                seed=asked.seed,
            )
            for method, tally in zip(asked.methods, tallies, strict=True)
        ]

    def _sides(self, task: str) -> "list[_Side]":
        """All methods, with n-grams and controllers that know nothing yet."""
        return [
            _Side(
                method=method,
                pair=replace(self._pair, paths=self._pair.tokenizers.paths(method.path_kind)),
                adapter=self._bundle.adapter(method.adapter_for(self._pair.name, task)),
            )
            for method in self._asked.methods
        ]

    def _turn(
        self,
        sides: "Sequence[_Side]",
        tallies: "Sequence[_Tally]",
        prompt: Prompt,
        turn: int,
        temperature: float,
        repeat: int,
    ) -> None:
        """One prompt by all sides, added to their tallies."""
        alone, drafted = self._write(sides, prompt, turn, temperature, repeat)
        for side, tally, (text, positions) in zip(sides, tallies, drafted, strict=True):
            tally.add(turn, alone.counters, text.counters, positions)
            if repeat == 0:
                options = self._asked.options(side.method, temperature, turn)
                tally.check(self._pair, prompt, alone, text, options)

    def _write(
        self, sides: "Sequence[_Side]", prompt: Prompt, turn: int, temperature: float, repeat: int
    ) -> tuple[Generation, list[tuple[Generation, Positions]]]:
        """One prompt's text by the target alone, and by each side with the positions of its proposals."""
        asked, seen = self._asked, [PositionCount() for _ in sides]
        options = [asked.options(side.method, temperature, turn) for side in sides]
        runs: dict[int | None, Callable[[], Generation]] = {
            None: partial(self._pair.alone.run, prompt.text, options[0])
        }
        for place, side in enumerate(sides):
            runs[place] = partial(side.run, prompt.text, options[place], seen[place])
        done = in_turns((asked.seed, repeat, turn), runs)
        return done[None], [(done[place], seen[place].positions) for place in range(len(sides))]


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A method at work; its pair shares models and contexts with the other sides', paths and controllers with none."""

    method: Method
    pair: Pair
    adapter: LoraAdapter

    def run(self, prompt: str, options: Options, seen: PositionCount) -> Generation:
        self.pair.adapt(self.adapter)
        return self.pair.drafted.run(prompt, options, seen)


@dataclass(kw_only=True)
class _Tally:
    """What was counted of one method so far. counters: by the prompt's turn, alone and drafted."""

    counters: dict[int, tuple[DraftCounters, DraftCounters]] = field(default_factory=dict)
    positions: Positions = field(default_factory=Positions)
    greedy: GreedyCheck = field(default_factory=GreedyCheck)
    values: list[Values] = field(default_factory=list)

    def add(self, turn: int, alone: DraftCounters, drafted: DraftCounters, positions: Positions) -> None:
        before = self.counters.get(turn, (DraftCounters(), DraftCounters()))
        self.counters[turn] = before[0] + alone, before[1] + drafted
        self.positions += positions

    def check(self, pair: Pair, prompt: Prompt, alone: Generation, drafted: Generation, options: Options) -> None:
        """Adds whether the text is as the target's own: its tokens at temperature 0, above it their law."""
        tokens = pair.target_codec.prompt_tokens(prompt.text)
        if options.sampling.greedy:
            self.greedy += compare_greedy(pair.target, tokens, alone, drafted, options.logits_processors)
        else:
            rng = np.random.default_rng([options.seed, 1])  # the text was drawn with the seed's own stream
            self.values.append(law_values(pair.target, tokens, drafted.token_ids, options, rng))

    def prompts(self, prompts: Sequence[Prompt]) -> tuple[PromptCounts, ...]:
        return tuple(
            PromptCounts(prompt=prompt_digest(prompt.text), alone=alone, drafted=drafted)
            for prompt, (alone, drafted) in zip(prompts, self.counters.values(), strict=True)
        )
