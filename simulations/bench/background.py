"""What learning in the background costs generation, at several budgets, in turns with no learning. It knows no peer.

There is always something to learn, as no user would have it, and the steps are so small that the adapter in force, and
so acceptance, stays as it is: what is measured is the time of training alone, with watching, the writing of lessons and
putting adapters in force. Run it as ``python -m fleetdraft.simulations.bench.background``.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from ...client.decoding.options import Options
from ...client.decoding.sampling import Sampling
from ...client.learning.learner import LearnerConfig, OnlineLearner
from ...client.learning.trainer import AdamWConfig
from ...client.online.background import BackgroundConfig, BackgroundLearner
from ...client.pair import Pair
from ...client.prompts import Prompt
from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError
from ...common.files import check_file
from ...common.progress import progress
from .arguments import (
    AdapterOption,
    BundleOption,
    DraftTokensOption,
    JsonOption,
    PromptsOption,
    TargetOption,
    TokensOption,
)
from .setting import open_setting, read_some
from .table import Row, figures, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.background"
ALONE = "no learning"
#: A step at a time, never between texts, and too small to change what is drafted.
LEARNING = LearnerConfig(schedule="idle", every_prompts=1 << 30, steps=1, optimizer=AdamWConfig(learning_rate=1e-12))
_BUDGETS = (BackgroundConfig().budget, 0.25, 0.5, 1.0)
_HEADINGS = ("learning", "tokens/s", "of no\nlearning", "from", "to", "steps", "of a\ncore")


@dataclass(frozen=True, kw_only=True)
class BackgroundRow(Row):
    """Tokens per second, the median over all turns; peer: no learning, in the same run.

    share: of tokens per second without learning, the median over the rounds; lowest, highest: of the rounds. steps: of
    training, in all turns. busy: seconds of a core that training had, as a share of the time; a step that
    outlasts its turn counts whole.
    """

    budget: float
    share: float
    lowest: float
    highest: float
    steps: int
    busy: float
    turns: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Turn:
    """All prompts once by one contestant; in ``seconds`` training had ``busy_s`` of a core."""

    tokens: int
    seconds: float
    steps: int = 0
    busy_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class TurnClock:
    """A clock that runs during a contestant's turns only, so that a rest cut by a turn's end goes on in the next."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        since = self._since
        return self._before + (0.0 if since is None else time.perf_counter() - since)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A turn."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._before, self._since = self(), None


class Endless:
    """Work without end for as long as it is let: one training of a learner after the other."""

    def __init__(self, learner: OnlineLearner) -> None:
        self._learner, self._running, self._let = learner, threading.Lock(), False

    @property
    def due(self) -> bool:
        return self._let

    def steps(self) -> Iterator[None]:
        while self._trained():
            yield

    def _trained(self) -> bool:
        with self._running:
            if self._let:
                self._learner.train()
                return True
            return False

    @contextmanager
    def let(self) -> Iterator[None]:
        """Lets it work; returns once the running step has ended, so that nobody else's turn pays for it."""
        self._let = True
        try:
            yield
        finally:
            self._let = False
            with self._running:
                pass


class Contestant:
    """Generation with learning at one budget beside it."""

    def __init__(self, learner: OnlineLearner, budget: float) -> None:
        self.budget, self._learner = budget, learner
        self._clock, self._work = TurnClock(), Endless(learner)
        self._background = BackgroundLearner(self._work, BackgroundConfig(budget=budget), self._clock)

    def turn(self, pair: Pair, prompts: Sequence[Prompt], options: Options) -> Turn:
        """All prompts, watched by the learner."""
        background = self._background
        steps, busy = background.steps_done, background.seconds
        with self._work.let(), background.generating(), self._clock.running():
            turn = _generated(pair, prompts, options, self._learner)
        if background.failure is not None:
            raise background.failure
        return replace(turn, steps=background.steps_done - steps, busy_s=background.seconds - busy)

    def close(self) -> None:
        self._background.close()


def _generated(pair: Pair, prompts: Sequence[Prompt], options: Options, learner: OnlineLearner | None) -> Turn:
    began, tokens = time.perf_counter(), 0
    for prompt in prompts:
        if learner is not None:
            learner.begin(pair.target_codec.prompt_tokens(prompt.text))
        tokens += pair.drafted.run(prompt.text, options, learner).counters.tokens
        if learner is not None:
            learner.end()
    return Turn(tokens=tokens, seconds=time.perf_counter() - began)


def rounds(
    contestants: Mapping[str, Callable[[Options], Turn]], options: Options, count: int, done: Callable[[], None]
) -> dict[str, list[Turn]]:
    """Lets each contestant have a turn in each round, in an order drawn anew; a first round does not count.

    Args:
      options: the seed is advanced by one for each round.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for number in range(count + 1):
        order = np.random.default_rng(number).permutation(list(contestants)).tolist()
        for name in order:
            turn = contestants[name](replace(options, seed=options.seed + number))
            if number:
                turns[name].append(turn)
        done()
    return turns


def background_row(name: str, budget: float, turns: Sequence[Turn], alone: Sequence[Turn]) -> BackgroundRow:
    """Puts a contestant's turns beside those without learning, round by round."""
    shares = [turn.tokens_per_s / other.tokens_per_s for turn, other in zip(turns, alone, strict=True)]
    seconds = sum(turn.seconds for turn in turns)
    return BackgroundRow(
        name=name,
        value=median(turn.tokens_per_s for turn in turns),
        unit="tokens/s",
        peer=ALONE,
        peer_value=median(turn.tokens_per_s for turn in alone),
        budget=budget,
        share=median(shares),
        lowest=min(shares),
        highest=max(shares),
        steps=sum(turn.steps for turn in turns),
        busy=sum(turn.busy_s for turn in turns) / seconds,
        turns=len(turns),
        seconds=seconds,
    )


def _cells(row: BackgroundRow) -> tuple[str, ...]:
    cells = (row.name, f"{row.value:.1f}", f"{row.share:.1%}", f"{row.lowest:.1%}", f"{row.highest:.1%}")
    return (*cells, f"{row.steps:,}", f"{row.busy:.1%}")


def _measured(
    pair: Pair,
    learner: OnlineLearner,
    prompts: Sequence[Prompt],
    options: Options,
    budgets: Sequence[float],
    count: int,
) -> list[BackgroundRow]:
    contestants: dict[str, Callable[[Options], Turn]] = {
        ALONE: lambda options: _generated(pair, prompts, options, None)
    }
    with ExitStack() as stack, progress("learning in the background", count + 1) as advance:
        for budget in budgets:
            contestant = Contestant(learner, budget)
            stack.callback(contestant.close)
            contestants[f"budget {budget:.0%}"] = partial(contestant.turn, pair, prompts)
        turns = rounds(contestants, options, count, lambda: advance(""))
    return [
        background_row(name, budget, turns[name], turns[ALONE])
        for name, budget in zip(contestants, (0.0, *budgets), strict=True)
    ]


def main(
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    prompts: PromptsOption = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Use the first N prompts only.")] = None,
    adapter: AdapterOption = None,
    budget: Annotated[
        list[float] | None,
        typer.Option("--budget", metavar="SHARE", help="Of the time, for learning; may repeat (default: several)."),
    ] = None,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="Of target and drafter.")] = 0.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the target; drafter and training have one.")] = 2,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds of turns that count.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first round.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two prompts, 16 tokens, one round.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures what learning in the background takes from generation, at several budgets.

    In each round each contestant generates all prompts once, in an order drawn anew. A rest that its turn's end cuts
    goes on in its next turn; a step that it cuts counts as far as it ran beside generation.
    """
    if quick:
        count, max_new_tokens, repeats = min(count or 2, 2), min(max_new_tokens, 16), 1
    check_file(json_file)
    budgets = tuple(dict.fromkeys(budget or _BUDGETS))
    for share in budgets:
        BackgroundConfig(budget=share)
    sampling = Sampling(temperature=temperature)
    options = Options(sampling=sampling, max_new_tokens=max_new_tokens, draft_tokens=draft_tokens, seed=seed)
    setting = open_setting(bundle, target, adapter, threads)
    print(setting.models)
    texts = read_some(prompts, setting, count, max_new_tokens)
    learner = setting.pair.learner(setting.adapter, LEARNING, seed)
    _generated(setting.pair, texts, options, learner)  # something to learn from
    rows = _measured(setting.pair, learner, texts, options, budgets, repeats)
    if not learner.training.steps:
        raise ConfigError("no training step ended, expected some; raise --count or --max-new-tokens")
    Console(markup=False, highlight=False).print(figures(_HEADINGS, map(_cells, rows)))
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
