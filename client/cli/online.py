"""What generate and adapt do with a state: open it, take a release, say what happened. It decodes nothing itself."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import typer

from ...common.lora import LoraAdapter
from ...common.metrics import DraftCounters
from ...common.progress import progress
from ..bundle import Bundle
from ..decoding.options import Options
from ..guarding.personal import Rebased
from ..online.course import Course
from ..online.fleet_adapter import plain
from ..online.online import OnlineConfig, OnlinePair
from ..pair import Pair
from ..prompts import Prompt
from ..state.state import State


class Stderr:
    """Lines on stderr; while a text is shown they wait for its end."""

    def __init__(self) -> None:
        self._waiting: list[str] | None = None

    def say(self, line: str) -> None:
        """One line for the user."""
        if self._waiting is None:
            print(f"fleetdraft: {line}", file=sys.stderr)
        else:
            self._waiting.append(line)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Nothing is said inside."""
        self._waiting = []
        try:
            yield
        finally:
            waiting, self._waiting = self._waiting, None
            for line in waiting:
                self.say(line)


@contextmanager
def learning_pair(
    directory: Path,
    bundle: Bundle,
    pair: Pair,
    release: LoraAdapter | None,
    config: OnlineConfig,
    stderr: Stderr,
) -> Iterator[tuple[OnlinePair, State]]:
    """A pair that goes on from the state in ``directory``, with a release in force if one is given.

    Raises:
      FingerprintError, UserError: the state is another drafter's, in use, or cannot be used.
    """
    layout = bundle.manifest.layout.fingerprint
    with (
        State.open(directory, base=bundle.base, layout=layout) as state,
        OnlinePair(pair, state, bundle.adapter(), config, stderr.say) as online,
    ):
        if release is not None and (rebased := online.take_release(release)) is not None:
            stderr.say(_release_taken(rebased, online.on_trial))
        yield online, state


def _release_taken(rebased: Rebased, on_trial: bool) -> str:
    where = "on trial beside the last good adapter" if on_trial else "in force"
    if rebased.choice == "carry" and plain(rebased.adapters.personal).changes_nothing:
        return f"a release is {where}; on this device nothing was learned yet"
    return f"a release is {where}; {rebased.line}"


def adapt_on(
    online: OnlinePair, state: State, prompts: Sequence[Prompt], passes: int, options: Options, stderr: Stderr
) -> DraftCounters:
    """Generates the stream from where it was left, each text a lesson, and counts; training that fails ends it.

    Raises:
      typer.Exit: training failed; what was learned before is in the state.
    """
    stream, total = list(prompts) * passes, DraftCounters()
    course = Course(state, online.pair.name, prompts, passes, options.seed)
    if first := course.done:
        where = f"at prompt {first + 1}" if first < len(stream) else "after the last prompt"
        stderr.say(f"going on {where} of {len(stream)}")
    with progress("adapting", len(stream) - first) as advance:
        for index in range(first, len(stream)):
            with _noted(online, course, index + 1):
                total += online.run(stream[index].text, replace(options, seed=options.seed + index)).counters
            _check(online)
            advance(f"acceptance {total.draft_acceptance_rate:.3f}")
    online.finish()
    _check(online)
    course.end()
    return total


@contextmanager
def _noted(online: OnlinePair, course: Course, done: int) -> Iterator[None]:
    """Notes a prompt as done once its text is a lesson, even where the training that follows is interrupted."""
    before = max(online.learner.lessons, default=-1)
    try:
        yield
    except KeyboardInterrupt:
        if max(online.learner.lessons, default=-1) > before:
            course.note(done)
        raise
    course.note(done)


def _check(online: OnlinePair) -> None:
    """Ends the command where training failed, which the pair has told."""
    if online.failure is not None:
        raise typer.Exit(1)
