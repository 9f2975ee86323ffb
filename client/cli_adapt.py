"""The parts of ``fleetdraft adapt``: what its options mean, learning with and without a state, the figures."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import typer

from ..common.bundle import check_outside
from ..common.errors import ConfigError
from ..common.files import check_file, check_replaceable
from ..common.lora import ABOUT, LoraAdapter
from ..common.metrics import DraftCounters
from ..common.progress import progress
from .adaptation import adapt_online
from .cli_online import Stderr, adapt_on, learning_pair
from .cli_opened import Opened
from .learner import LearnerConfig
from .objective import Objective
from .online import OnlineConfig
from .options import Options
from .prompts import Prompt
from .schedule import SCHEDULES, Schedule
from .teacher import Projection


@dataclass(frozen=True, kw_only=True)
class Learned:
    """counters: of this run. steps, losses: of all runs. lost: the share of what is in force that ``adapter`` lacks."""

    adapter: LoraAdapter
    counters: DraftCounters
    steps: int
    losses: list[float]
    lost: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)


def check_outputs(out: Path | None, state: Path | None, bundle: Path, json_file: Path | None) -> None:
    """Returns if all that is asked for can be written.

    Raises:
      UserError: it cannot, or nothing learned would be kept.
    """
    if out is None and state is None:
        raise ConfigError("neither --out nor --state is given, expected at least one: nothing learned would be kept")
    if out is not None:
        check_replaceable(out, ABOUT)
        check_outside(out, bundle)
    check_file(json_file)


def checked_schedule(name: str, background: bool, state: Path | None) -> Schedule:
    """The learner's schedule.

    Raises:
      ConfigError: options that do not go together.
    """
    between = [known for known in SCHEDULES if known != "idle"]
    if name not in between:
        raise ConfigError(f"--schedule is {name!r}, expected one of {', '.join(between)}")
    if background and name != LearnerConfig().schedule:
        raise ConfigError(f"--schedule {name} and --background are both given, expected one of them")
    if state is None and (background or name != LearnerConfig().schedule):
        raise ConfigError(f"{'--background' if background else f'--schedule {name}'} is given without --state DIR")
    return "idle" if background else cast(Schedule, name)


def objective_of(
    projection: str, divergence: str | None, ngram_weight: float | None, dynamic: bool = False
) -> Objective:
    """That of the projection, but for what is given.

    Raises:
      ConfigError: a value out of range, or ``dynamic`` where nothing is left of the likelihood.
    """
    own = LearnerConfig(projection=cast(Projection, projection)).minimised
    chosen = replace(
        own,
        divergence=own.divergence if divergence is None else divergence,
        ngram_weight=own.ngram_weight if ngram_weight is None else ngram_weight,
        dynamic=dynamic,
    )
    if dynamic and not chosen.ngram_weight:
        raise ConfigError("--dynamic-lambda is given with an --ngram-weight of 0; 1 is the published one")
    return chosen


def adapt_without_state(opened: Opened, stream: list[Prompt], options: Options, learning: LearnerConfig) -> Learned:
    """Learns from the stream; only the adapter outlives it."""
    learner, total = opened.pair.learner(opened.adapter, learning, options.seed), DraftCounters()
    with progress("adapting", len(stream)) as advance:

        def one_more(counters: DraftCounters) -> None:
            nonlocal total
            total += counters
            advance(f"acceptance {total.draft_acceptance_rate:.3f}")

        counters = adapt_online(opened.pair, learner, stream, options, one_more)
    return Learned(adapter=learner.adapter, counters=counters, steps=learner.training.steps, losses=learner.losses)


def adapt_with_state(
    state: Path,
    opened: Opened,
    release: LoraAdapter | None,
    stream: list[Prompt],
    passes: int,
    options: Options,
    config: OnlineConfig,
) -> Learned:
    """Learns from the stream, from where the state is.

    Raises:
      typer.Exit: interrupted, or training failed; what was learned is in the state.
    """
    stderr = Stderr()
    try:
        with learning_pair(state, opened.bundle, opened.pair, release, config, stderr) as (online, held):
            counters = adapt_on(online, held, stream, passes, options, stderr)
            adapter, lost = online.as_adapter()
            return Learned(
                adapter=adapter,
                counters=counters,
                steps=online.learner.training.steps,
                losses=online.learner.losses,
                lost=lost,
                status=online.status(),
            )
    except KeyboardInterrupt:
        stderr.say(f"interrupted; what was learned is in {state}, and the same command goes on from there")
        raise typer.Exit(130) from None


def adaptation_json(out: Path | None, learned: Learned) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {
        "schema": 1,
        "adapter": None if out is None else str(out),
        "digest": learned.adapter.digest,
        "prompts": learned.counters.prompts,
        "draft_acceptance_rate": learned.counters.draft_acceptance_rate,
        "mean_acceptance_length": learned.counters.mean_acceptance_length,
        "training_steps": learned.steps,
        "losses": learned.losses,
    } | ({"lost": learned.lost, "status": learned.status} if learned.status else {})


def print_adapted(out: Path | None, state: Path | None, learned: Learned) -> None:
    """What was written where, and with what success."""
    counters = learned.counters
    wrote = f"wrote {out}" if out is not None else f"{state} holds what was learned"
    compare = "compare 'fleetdraft eval' with and without --adapter" if out is not None else "see 'fleetdraft state'"
    print(
        f"{wrote} after {counters.prompts} prompts and {learned.steps} training steps; acceptance while learning "
        f"{counters.draft_acceptance_rate:.3f}; {compare}"
    )
    if out is not None and learned.lost:
        print(
            f"{out} is the best adapter of rank {learned.adapter.layout.rank} for release and own adapter together; it "
            f"lacks {learned.lost:.3f} of the change (Frobenius norm), which {state} has whole"
        )
