"""The parts of ``fleetdraft adapt``: what its options mean, learning with and without a state, the figures."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import typer

from ...common.bundle import check_outside
from ...common.errors import ConfigError
from ...common.files import check_file, check_replaceable
from ...common.lora import ABOUT, LoraAdapter
from ...common.metrics import DraftCounters
from ...common.objective import Objective
from ...common.progress import progress
from ..decoding.options import Options
from ..guarding.trial import Tally, chance_of_fewer
from ..learning.learner import LearnerConfig
from ..learning.schedule import SCHEDULES, Schedule
from ..learning.teacher import Projection
from ..online.adaptation import adapt_online
from ..online.online import OnlineConfig
from ..prompts import Prompt
from .online import Stderr, adapt_on, learning_pair
from .opened import Opened

_FALL, _SIGNIFICANCE = 3.0, 0.001
"""Acceptance that is divided by more, which chance does so seldom, is harm."""
_NEAR_ZERO, _ENOUGH = 0.05, 200
"""Acceptance of so many drafted tokens that is near zero."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What came of a run.

    counters: of this run; ``first`` of its texts before the first training. steps, losses: of all runs;
    ``steps_before`` of those before. lost: the share of what is in force that ``adapter`` lacks.
    """

    adapter: LoraAdapter
    counters: DraftCounters
    first: DraftCounters = DraftCounters()
    steps: int
    steps_before: int = 0
    losses: list[float]
    lost: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def harm(self) -> str:
        """What a user has to know of an adapter that nothing judged; empty where nothing speaks against it."""
        first, total = (Tally(judged=c.drafted, accepted=c.accepted) for c in (self.first, self.counters))
        later = Tally(judged=total.judged - first.judged, accepted=total.accepted - first.accepted)
        if later.acceptance < first.acceptance / _FALL and chance_of_fewer(later, first) <= _SIGNIFICANCE:
            return (
                f"acceptance fell from {first.acceptance:.3f} in the first {_many(self.first.prompts, 'prompt')} to "
                f"{later.acceptance:.3f}: the adapter does harm; lower --learning-rate, or let --state roll back"
            )
        if total.judged >= _ENOUGH and total.acceptance < _NEAR_ZERO:
            return "hardly anything is accepted: this adapter, or the drafter, does not suit these texts"
        return ""


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
    if out is not None and state is not None:
        _check_apart(out, state)
    check_file(json_file)


def _check_apart(out: Path, state: Path) -> None:
    one, other = out.resolve(), state.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ConfigError(
            f"--out {out} and --state {state} are the same directory or one is in the other, expected two apart: a "
            "state is private, an adapter is replaced as a whole"
        )


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
    """Learns from the stream; only the adapter outlives it.

    Raises:
      typer.Exit: interrupted.
    """
    learner = opened.pair.learner(opened.adapter, learning, options.seed)
    first, total = DraftCounters(), DraftCounters()

    def one_more(counters: DraftCounters) -> None:
        nonlocal first, total
        total += counters
        first = total if total.prompts <= learning.every_prompts else first
        advance(f"acceptance {total.draft_acceptance_rate:.3f}")

    try:
        with progress("adapting", len(stream)) as advance:
            adapt_online(opened.pair, learner, stream, options, one_more)
    except KeyboardInterrupt:
        Stderr().say("interrupted; nothing is written")
        raise typer.Exit(130) from None
    return Learned(
        adapter=learner.adapter, counters=total, first=first, steps=learner.training.steps, losses=learner.losses
    )


def adapt_with_state(
    state: Path,
    out: Path | None,
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
            steps_before = online.learner.training.steps
            counters = adapt_on(online, held, stream, passes, options, stderr)
            adapter, lost = online.as_adapter()
            return Learned(
                adapter=adapter,
                counters=counters,
                steps=online.learner.training.steps,
                steps_before=steps_before,
                losses=online.learner.losses,
                lost=lost,
                status=online.status(),
            )
    except KeyboardInterrupt:
        unwritten = "" if out is None else f"; {out} is not written"
        stderr.say(f"interrupted; what was learned is in {state}, and the same command goes on from there{unwritten}")
        raise typer.Exit(130) from None
    except typer.Exit:
        if out is not None:
            stderr.say(f"{out} is not written")
        raise


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
    counters, steps = learned.counters, learned.steps - learned.steps_before
    in_all = f" ({learned.steps:,} in all)" if learned.steps_before else ""
    run = (
        f"{_many(counters.prompts, 'prompt')} and {_many(steps, 'training step')}{in_all}; acceptance while learning "
        f"{counters.draft_acceptance_rate:.3f}"
    )
    if out is not None:
        print(f"wrote {out} after {run}; compare 'fleetdraft eval' with and without --adapter {out}")
        _print_doubts(out, state, learned)
    if state is not None:
        after = f" after {run}" if out is None else ""
        print(f"{state} holds what was learned{after}; see 'fleetdraft state show {state}'")


def _print_doubts(out: Path, state: Path | None, learned: Learned) -> None:
    """What speaks against the adapter that was written, a line each."""
    if state is None:
        doubts = [f"careful: {learned.harm}"] if learned.harm else []
    else:
        doubts = _doubts_of_guard(out, learned.status["guard"])
    if learned.lost:
        doubts.append(
            f"{out} is the best adapter of rank {learned.adapter.layout.rank} for release and own adapter together; it "
            f"lacks {learned.lost:.3f} of the change (Frobenius norm), which {state} has whole"
        )
    for doubt in doubts:
        print(doubt)


def _doubts_of_guard(out: Path, guard: dict[str, Any]) -> list[str]:
    """What the guard thinks of the newest adapter, where that is not its last good one."""
    newest, good = guard["newest"], guard["good"]
    if newest is None:
        return []
    if guard["trial"] is not None:
        newest, good = guard["trial"]["newest"], guard["trial"]["good"]
    figures = (
        f"{newest['acceptance']:.3f} of {newest['judged']} drafts were accepted, {good['acceptance']:.3f} of "
        f"{good['judged']} of the last good one"
        if newest["judged"]
        else "it drafted nothing since"
    )
    return [
        f"{out} holds the newest adapter, which was not judged yet ({figures}); compare it before you use it, or go on "
        "with more prompts"
    ]


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
