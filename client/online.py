"""A pair that learns from what it writes and keeps what it learned: learner, guard, background and state joined.

    text -> blocks -> Outcome -> guard      which adapter is in force
                              -> learner    lesson -> replay -> training, in the background or between texts
                              -> pace       how long drafts are; its head learns from the same outcomes
    end of a text, training step -> keeper -> state

Two adapters are in force at once (``personal.py``): the fleet's, which a release brings, and the device's own, which is
what is trained and which never leaves.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..common.errors import FleetdraftError
from ..common.lora import LoraAdapter
from ..common.metrics import DraftCounters
from .background import BackgroundConfig, BackgroundLearner
from .continuation import Generation
from .controllers import Controllers
from .decision import Decision
from .diagnosis import AcceptanceAlarm
from .generation import Generator
from .guard import Guard, GuardConfig
from .head_learner import HeadLearner
from .keeper import Keeper, adapter_bytes, adapter_of
from .learner import LearnerConfig, OnlineLearner
from .ngrams import NgramCache
from .objective import Objective
from .options import Options
from .outcome import Outcome
from .pace import Pace
from .pair import Pair
from .personal import PersonalAdapter, Rebased, StepBeside, TwoAdapters, rebase
from .state import State
from .steps import DrafterSide
from .trying_pace import TryingPace

T = TypeVar("T")

_JUDGED_LESSONS = 12
"""The newest lessons, on which adapters are compared."""
_JUDGED_BY = Objective(divergence="tvd", ngram_weight=0.0)


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """How a pair learns while it writes.

    background: learning beside generation, which needs the schedule ``idle``; None trains between texts.
    """

    learning: LearnerConfig = field(default_factory=lambda: LearnerConfig(schedule="idle"))
    guard: GuardConfig = field(default_factory=GuardConfig)
    background: BackgroundConfig | None = field(default_factory=BackgroundConfig)
    seed: int = 0


class OnlinePair:
    """One pair with its learner. One text at a time; training may go on beside it.

    Guarantees:
      - What was learned by the last training step, and each text that ended, is in the state, however this ends.
      - An adapter that does harm is rolled back (``guard.py``). Texts are exact whatever the learner does.

    Args:
      pair: its controllers and n-grams go on from the state.
      state: open; the caller closes it, after ``close``.
      initial: the adapter that changes nothing. It is the shared one as long as there is no release.
      on_notice: told a line that the user should see.
    """

    def __init__(
        self,
        pair: Pair,
        state: State,
        initial: LoraAdapter,
        config: OnlineConfig | None = None,
        on_notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.pair, self.config = pair, config or OnlineConfig()
        self._state, self._on_notice, self._told = state, on_notice, 0
        self._keeper = Keeper(state, pair.name, pair.family)
        self._shared = self._or_anew("shared", lambda: self._keeper.shared(initial.layout) or initial) or initial
        self._counters, self._failure = self._keeper.counters(), ""
        self._decisions, self._written = list[Decision](), list[Decision]()
        """About releases; and of all, those that the state knows."""
        self._newest: LoraAdapter | None = None
        """What the learner made, until the guard hears of it, between two blocks."""
        self._alarm: AcceptanceAlarm | None = None
        personal = PersonalAdapter.initial(initial.layout, initial.layout.rank, self.config.seed)
        self._learner = self._made_learner(LoraAdapter(layout=personal.layout, arrays=personal.arrays))
        self._guard = self._made_guard()
        self._restore_guard()
        self._controllers = self._made_controllers()
        self._restore_ngrams()
        self._generator = self._made_generator()
        self.pair.adapt(self.in_force)
        config_of_thread = self.config.background
        self._background = BackgroundLearner(self._learner, config_of_thread) if config_of_thread else None
        self._tell()

    # --- texts ------------------------------------------------------------------------------------------------

    def run(self, prompt: str, options: Options) -> Generation:
        """As ``Generator.run``, and learns from the text.

        Raises:
          TrainingError: training between texts diverged; the text and what was learned before are in the state.
        """
        with self._text(prompt, options):
            return self._generator.run(prompt, options, self)

    def stream(self, prompt: str, options: Options) -> Iterator[str]:
        """As ``Generator.stream``, and learns from the text, as far as it was read."""
        with self._text(prompt, options):
            yield from self._generator.stream(prompt, options, self)

    @contextlib.contextmanager
    def _text(self, prompt: str, options: Options) -> Iterator[None]:
        """What surrounds a text: it is counted, becomes a lesson, and what it changed is written."""
        if self._alarm is None:
            self._alarm = AcceptanceAlarm(self.pair.paths, options.sampling.temperature, self._on_notice)
        self._take_newest()
        self._learner.begin(self.pair.target_codec.prompt_tokens(prompt))
        with self._background.generating() if self._background else contextlib.nullcontext():
            try:
                yield
            finally:
                self._counters += DraftCounters(prompts=1)
                self._keep_text()
                self._learner.end()
                self._tell()

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``; called by the generator."""
        self._counters += outcome.counters
        self._learner.observe(outcome)
        self._guard.observe(outcome)
        if self._alarm is not None:
            self._alarm.observe(outcome)
        self._take_newest()

    def _take_newest(self) -> None:
        """Tells the guard of what the learner made: on the thread that generates, between two blocks."""
        newest, self._newest = self._newest, None
        if newest is not None and newest is not self._guard.newest:
            self._guard.changed(newest)

    # --- releases, status, end --------------------------------------------------------------------------------

    @property
    def counters(self) -> DraftCounters:
        """Of all texts on this target that the state knows."""
        return self._counters

    @property
    def learner(self) -> OnlineLearner:
        """What learns; its adapter is the personal one."""
        return self._learner

    @property
    def in_force(self) -> LoraAdapter:
        """Shared and personal adapter as one."""
        return self._both(self._guard.newest)

    def take_release(self, release: LoraAdapter) -> Rebased:
        """Puts a new shared adapter in force; the personal one is re-based (``personal.rebase``). Between two texts.

        Raises:
          ModelError: the release is of another drafter.
        """
        two = TwoAdapters(shared=self._shared, personal=_personal(self._learner.adapter))
        rebased = rebase(two, release, self._losses, self.config.seed)
        self._shared = release
        self._keeper.keep_shared(release)
        personal = rebased.adapters.personal
        self._learner.rollback(LoraAdapter(layout=personal.layout, arrays=personal.arrays))
        self._keep_learner()
        self._guard = self._made_guard()
        self._newest = None
        self.pair.adapt(self.in_force)
        why = f"{rebased.choice}: {rebased.why}"
        self._decisions.append(Decision(what="re-based", why=why, at_block=self._counters.blocks))
        self._keep_text()
        return rebased

    def status(self) -> dict[str, Any]:
        """What is going on, for people and for JSON; nothing of a text."""
        background = self._background
        return {
            "target": self.pair.name,
            "draft_acceptance_rate": self._counters.draft_acceptance_rate,
            "mean_acceptance_length": self._counters.mean_acceptance_length,
            "counters": self._counters.to_json(),
            "training_steps": self._learner.training.steps,
            "lessons": len(self._learner.lessons),
            "guard": self._guard.status(),
            "decisions": [asdict(decision) for decision in self._all_decisions()],
            "learning": str(background.failure or "") if background else "",
            "notices": list(self._state.notices),
        }

    def finish(self) -> None:
        """Trains on what came since the last training, now; what the guard thinks of it shows when texts go on."""
        self._rest()
        try:
            self._learner.finish()
        finally:
            self._wake()

    def close(self) -> None:
        """Ends learning with the running step, and writes everything."""
        self._rest()
        self._take_newest()
        self._keep_learner()
        self._keep_text()
        self._tell()

    def _rest(self) -> None:
        if self._background is not None:
            self._background.close()

    def _wake(self) -> None:
        if self.config.background is not None:
            self._background = BackgroundLearner(self._learner, self.config.background)

    # --- parts ------------------------------------------------------------------------------------------------

    def _made_learner(self, personal: LoraAdapter) -> OnlineLearner:
        """The learner of the personal adapter, as far as it came before."""
        learner = OnlineLearner(
            step=StepBeside(self.pair.train_step(), lambda: self._shared),
            writer=self.pair.lesson_writer(self.config.learning),
            adapter=personal,
            config=self.config.learning,
            seed=self.config.seed,
            on_change=self._note_newest,
            on_step=self._keep_learner,
            on_replay=self._keeper.keep_lessons,
            head=None if self._head_trains_itself else _HeadOf(lambda: self._controllers),
        )
        if blobs := self._keeper.learner():
            self._or_anew("learner", lambda: learner.restore(blobs, self._keeper.lessons()))
        return learner

    def _made_guard(self) -> Guard[LoraAdapter]:
        """A guard of personal adapters, which has seen nothing yet."""
        return Guard(
            self.config.guard,
            self._learner.adapter,
            put=lambda personal: self.pair.adapt(self._both(personal)),
            on_rollback=self._learner.rollback,
            judge=lambda personal: self._losses(self._both(personal)),
        )

    def _restore_guard(self) -> None:
        if parts := self._keeper.guard():
            layout = self._learner.adapter.layout
            self._or_anew("guard", lambda: self._guard.restore(parts, lambda data: adapter_of(data, layout)))
        # The learner may have gone on since the guard was written.
        if self._guard.newest.digest != self._learner.adapter.digest:
            self._newest = self._learner.adapter

    def _made_controllers(self) -> Controllers:
        controllers = Controllers(
            self.pair.drafter.model.hidden_size, seed=self.config.seed, trains_head=self._head_trains_itself
        )
        data = self._keeper.head()
        if data is not None:
            size = self.pair.drafter.model.hidden_size
            head = self._or_anew("head", lambda: HeadLearner.from_bytes(data, size))
            if head is not None:
                controllers.head = head
        return controllers

    def _restore_ngrams(self) -> None:
        paths, data = self.pair.paths, self._keeper.ngrams()
        if isinstance(paths, NgramCache) and data is not None:
            self._or_anew("ngrams", lambda: paths.restore_bytes(data))

    def _made_generator(self) -> Generator:
        pair = self.pair
        side = DrafterSide(decoder=pair.drafter.decoder, spelling=pair.spelling, paths=pair.paths)
        return Generator(pair.target, pair.target_codec, side, paces=self._pace)

    def _pace(self, name: str) -> Pace:
        return TryingPace(self._controllers(name), self._is_undecided)

    def _is_undecided(self) -> bool:
        return self._guard.on_trial or self._guard.suspects

    @property
    def _head_trains_itself(self) -> bool:
        return self.config.learning.schedule in ("prompts", "idle")

    # --- adapters ---------------------------------------------------------------------------------------------

    def _note_newest(self, personal: LoraAdapter) -> None:
        self._newest = personal

    def _both(self, personal: LoraAdapter) -> LoraAdapter:
        """Shared and personal as one; the personal alone where the shared one changes nothing."""
        if self._shared.changes_nothing:
            return personal
        return TwoAdapters(shared=self._shared, personal=_personal(personal)).in_force

    def _losses(self, in_force: LoraAdapter) -> list[float]:
        """Of an adapter on the newest lessons, one each: the share of drafts that it would lose there."""
        newest = list(self._learner.lessons.values())[-_JUDGED_LESSONS:]
        step = self.pair.train_step()
        try:
            return [step(in_force.arrays, [lesson], _JUDGED_BY, np.random.default_rng(0)).loss for lesson in newest]
        finally:
            step.close()

    # --- writing ----------------------------------------------------------------------------------------------

    def _keep_learner(self) -> None:
        self._keeper.keep_learner(self._learner.checkpoint())

    def _keep_text(self) -> None:
        """Writes all that a text changes but its lesson."""
        decisions, paths, head = self._all_decisions(), self.pair.paths, self._controllers.head_in_use
        self._keeper.keep_text(
            self._counters,
            self._guard.checkpoint(adapter_bytes),
            None if head is None else head.to_bytes(),
            paths.to_bytes() if isinstance(paths, NgramCache) else None,
            [decision for decision in decisions if decision not in self._written],
        )
        self._written = decisions

    def _all_decisions(self) -> list[Decision]:
        """The newest of guard, controllers and releases, by block."""
        every = [*self._guard.decisions, *self._controllers.decisions, *self._decisions]
        return sorted(every, key=lambda decision: decision.at_block)

    def _tell(self) -> None:
        """Tells what went wrong with the state, each thing once."""
        for notice in self._state.notices[self._told :]:
            self._on_notice(notice)
        self._told = len(self._state.notices)
        if self._keeper.failure and self._keeper.failure != self._failure:
            self._on_notice(f"{self._keeper.failure}; what is learned now may be lost")
        self._failure = self._keeper.failure

    def _or_anew(self, what: str, restore: Callable[[], T]) -> T | None:
        """What ``restore`` gives; None, and a notice, where a part of the state cannot be used."""
        try:
            return restore()
        except FleetdraftError as error:
            self._keeper.forget(what, str(error))
            return None


class _HeadOf:
    """Trains the acceptance head that is in use, where one is."""

    def __init__(self, controllers: Callable[[], Controllers]) -> None:
        self._controllers = controllers

    def train(self) -> None:
        head = self._controllers().head_in_use
        if head is not None:
            head.train()


def _personal(adapter: LoraAdapter) -> PersonalAdapter:
    return PersonalAdapter(layout=adapter.layout, arrays=adapter.arrays)
