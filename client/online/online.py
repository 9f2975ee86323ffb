"""A pair that learns from what it writes and keeps what it learned: learner, guard, background and state joined.

    text -> blocks -> Outcome -> guard      which adapter is in force
                              -> learner    lesson -> replay -> training, in the background or between texts
                              -> pace       how long drafts are; its head learns from the same outcomes
    end of a text, training step, rollback, release -> keeper -> state

Two adapters are in force at once (``personal.py``): the fleet's, which a release brings, and the device's own, which is
what is trained and which never leaves.

Threads: one generates; it alone talks to guard, pace and n-grams. The one that learns in the background trains, writes
the learner's checkpoint, and leaves what it made where the other takes it between two blocks.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from ...common.errors import ConfigError, FleetdraftError, TrainingError
from ...common.lora import LoraAdapter
from ...common.metrics import DraftCounters
from ..decoding.continuation import Generation
from ..decoding.generation import Generator
from ..decoding.options import Options
from ..decoding.steps import DrafterSide
from ..guarding.diagnosis import AcceptanceAlarm
from ..guarding.guard import Guard, GuardConfig
from ..guarding.personal import PersonalAdapter, Rebased, StepBeside
from ..learning.learner import LearnerConfig, OnlineLearner
from ..learning.replay import ReplayChange
from ..pacing.controllers import Controllers
from ..pacing.outcome import Outcome
from ..pacing.pace import Pace
from ..pacing.trying_pace import TryingPace
from ..pair import Pair
from ..spelling.ngrams import NgramCache
from ..state.decision import Decision
from ..state.journal import Journal
from ..state.state import State
from .background import BackgroundConfig, BackgroundLearner
from .fleet_adapter import FleetAdapter, InForce, plain
from .keeper import Keeper, PairParts
from .notices import Notices

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """How a pair learns while it writes.

    background: learning beside generation, with the schedule ``idle``; None trains between texts, as the schedule says.

    Raises:
      ConfigError: learning in the background with another schedule.
    """

    learning: LearnerConfig = field(default_factory=lambda: LearnerConfig(schedule="idle"))
    guard: GuardConfig = field(default_factory=GuardConfig)
    background: BackgroundConfig | None = field(default_factory=BackgroundConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.background is not None and self.learning.schedule != "idle":
            raise ConfigError(
                f"schedule is {self.learning.schedule!r}, expected 'idle' where learning goes on in the background"
            )

    @property
    def trains_head(self) -> bool:
        """Whether the acceptance head is trained between blocks; else the learner trains it, by its schedule."""
        return self.learning.schedule in ("prompts", "idle")


class OnlinePair:
    """One pair with its learner. One text at a time; training may go on beside it.

    Guarantees:
      - Each text that ended and the last training step are in the state, however this ends.
      - An adapter that does harm is rolled back (``guard.py``), with the release that came since the last good one.
        Texts are exact whatever the learner does.
      - A part of the state that cannot be used is begun anew, with a notice; a learner then goes on from the guard's
        last good adapter, if that is there. A disk that cannot be written is one notice, and stops nothing.

    Args:
      pair: its controllers and n-grams go on from the state.
      state: open; the caller closes it, after ``close``. To purge it, close this first.
      initial: the adapter that changes nothing. It is the shared one as long as there is no release.
      on_notice: told a line that the user should see, between two texts, on the thread that generates.
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
        self._state, self._notices = state, Notices(state, on_notice)
        self._keeper = Keeper(state, pair.name, pair.family)
        self._keeping = threading.Lock()
        """Held from a checkpoint's making to its writing, so that no older one is written after it."""
        shared = self._or_anew("shared", lambda: self._keeper.shared(initial.layout), None)
        self._fleet = FleetAdapter(pair, shared or initial, lambda: self._learner.lessons)
        self._counters, self._journal = self._keeper.counters(), Journal(self._keeper.decisions())
        self._judges = False
        """Whether there is a guard that will ask."""
        self._made = deque[LoraAdapter](maxlen=1)
        """What the learner made, until the guard hears of it, between two blocks."""
        self._refused = self._keeper.refused()
        """Digests of releases that did harm here."""
        self._alarm = AcceptanceAlarm(pair.paths, 0.0, self._notices.add, self._rates)
        self._paces: dict[str, TryingPace] = {}
        self._texts, self._unkept, self._closed = 0, False, False
        self._failure: FleetdraftError | None = None
        self._failed_after = 0
        """Training steps when it failed; more of them say that it is over."""
        self._controllers = self._restored_controllers()
        self._restore_ngrams()
        own = PersonalAdapter.initial(initial.layout, initial.layout.rank, self.config.seed)
        self._learner = self._made_learner(plain(own))
        known = self._restore_learner()
        self._guard = self._made_guard()
        self._fleet.put(self._guard.newest)
        self._restore_guard(known)
        self._generator = self._made_generator()
        self._background: BackgroundLearner | None = None
        self._wake()
        self._tell()

    # --- texts ------------------------------------------------------------------------------------------------

    def run(self, prompt: str, options: Options) -> Generation:
        """As ``Generator.run``, and learns from the text. If training fails, ``failure`` says why."""
        with self._text(prompt, options):
            return self._generator.run(prompt, options, self)

    def stream(self, prompt: str, options: Options) -> Iterator[str]:
        """As ``Generator.stream``, and learns from the text, as far as it was read."""
        with self._text(prompt, options):
            yield from self._generator.stream(prompt, options, self)

    @contextlib.contextmanager
    def _text(self, prompt: str, options: Options) -> Iterator[None]:
        """What surrounds a text: it is counted, becomes a lesson, and what it changed is written."""
        self._check_open()
        number, blocks, read = self._texts + 1, self._counters.blocks, False
        self._alarm.temperature = options.sampling.temperature
        with self._background.generating() if self._background else contextlib.nullcontext():
            self._texts = number
            self._take_made()
            self._learner.begin(self.pair.target_codec.prompt_tokens(prompt))
            try:
                yield
                read = True
            except GeneratorExit:
                read = True
                raise
            finally:
                if self._counters.blocks > blocks and not self._closed:
                    # Broken off within a block, or by another text, it may be no whole lesson.
                    self._end_text(read and number == self._texts)

    def _end_text(self, teaches: bool) -> None:
        """Counters and lesson of a text are written as one, before anything is trained on it."""
        self._counters += DraftCounters(prompts=1)
        self._unkept = True
        if teaches:
            self._train(self._learner.end)
        if self._unkept:
            self._keep()
        self._tell()
        self._resume()

    def _replayed(self, change: ReplayChange) -> None:
        """What the learner calls when lessons came or went; one comes when a text ends."""
        if change.added:
            self._keep(lessons=change)
        else:
            self._keeper.keep(lessons=change)

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``; called by the generator."""
        self._counters += outcome.counters
        self._learner.observe(outcome)
        self._guard.observe(outcome)
        self._alarm.observe(outcome)
        self._take_made()

    def _take_made(self) -> None:
        """Tells the guard of what the learner made: on the thread that generates, between two blocks."""
        with contextlib.suppress(IndexError):
            made = self._fleet.beside(self._made.pop())
            if not made.same(self._guard.newest):
                self._guard.changed(made)

    def _learnt(self, made: LoraAdapter) -> None:
        """What the learner calls, on the thread that trains: the judge's work is done there, the guard's is not."""
        if self._judges:
            for adapters in (self._fleet.beside(made), self._guard.good):
                self._fleet.judge(adapters)
        self._made.append(made)

    # --- training ---------------------------------------------------------------------------------------------

    @property
    def failure(self) -> FleetdraftError | None:
        """Why the newest training failed, if it did; it is tried again after as many texts as ever."""
        if self._background is not None and self._background.failure is not None:
            return self._background.failure
        return self._failure if self._learner.training.steps <= self._failed_after else None

    def finish(self) -> None:
        """Trains on what came since the last training, now; what the guard thinks of it shows when texts go on."""
        self._check_open()
        self._rest()
        self._tell()
        self._failure = None
        self._train(self._learner.finish)
        self._take_made()
        self._keep()
        self._wake()
        self._tell()

    def _train(self, train: Callable[[], None]) -> None:
        try:
            train()
        except TrainingError as error:
            self._failed(error)

    def _failed(self, error: FleetdraftError) -> None:
        self._failure, self._failed_after = error, self._learner.training.steps

    def _rest(self) -> None:
        if self._background is not None:
            self._background.close()
            self._resume()

    def _resume(self) -> None:
        """Learning in the background that paused goes on when it is due again."""
        if self._background is not None and (failure := self._background.failure) is not None:
            self._failed(failure)
            self._background.resume()

    def _wake(self) -> None:
        if self.config.background is not None:
            self._background = BackgroundLearner(self._learner, self.config.background)

    # --- adapters ---------------------------------------------------------------------------------------------

    @property
    def in_force(self) -> LoraAdapter:
        """Shared and personal adapter as one, of the newest that the guard knows."""
        return self._guard.newest.both

    def as_adapter(self) -> tuple[LoraAdapter, float]:
        """What is in force in the layout of a release, and what that lacks; see ``FleetAdapter.cut``."""
        return self._fleet.cut(self._guard.newest.own)

    def take_release(self, release: LoraAdapter) -> Rebased | None:
        """Puts a new shared adapter in force; the personal one is re-based (``personal.rebase``). Between two texts.

        The guard watches both as one: if they do harm, the release before comes back with the last good adapter, and
        this one is refused from then on.

        Returns:
          What became of the personal adapter; None if the release is in force already, or refused, which is told.

        Raises:
          ModelError: the release is of another drafter.
        """
        self._check_open()
        if release.digest == self._fleet.shared.digest or self._is_refused(release):
            return None
        own = self._guard.good.own if self._guard.doubts else self._learner.adapter
        own, rebased = self._fleet.take(release, own, self.config.seed)
        self._learner.rollback(own)  # a step under way, beside the old release, comes to nothing
        self._made.clear()
        why = f"{rebased.choice}: {rebased.why}"
        self._journal.add(Decision(what="re-based on a release", why=why, at_block=self._counters.blocks))
        self._guard.supersede(self._fleet.beside(own))
        self._keep(learner=True, shared=self._fleet.shared)
        self._tell()
        return rebased if self._fleet.shared is release else None

    def _is_refused(self, release: LoraAdapter) -> bool:
        if release.digest not in self._refused:
            return False
        self._notices.add(f"release {release.digest[:12]} did harm here and is not taken again; purge the state to try")
        self._tell()
        return True

    def _rolled_back(self, good: InForce) -> None:
        """What the guard calls: the learner goes on from the good adapter, beside what was shared then; all as one."""
        why, shared = self._guard.decisions[-1].why, self._fleet.shared
        refused = good.shared.digest != shared.digest
        if refused:
            self._refused.append(shared.digest)
            what = f"release {shared.digest[:12]} refused"
            self._journal.add(Decision(what=what, why=why, at_block=self._counters.blocks))
            self._notices.add(f"{what}: {why}; the one before is in force again")
        else:
            self._notices.add(f"the newest adapter is rolled back: {why}")
        self._fleet.shared = good.shared
        self._learner.rollback(good.own)
        self._made.clear()
        self._keep(learner=True, shared=good.shared if refused else None)

    # --- status and end ---------------------------------------------------------------------------------------

    @property
    def counters(self) -> DraftCounters:
        """Of all texts on this target that the state knows."""
        return self._counters

    @property
    def learner(self) -> OnlineLearner:
        """What learns; its adapter is the personal one."""
        return self._learner

    def status(self) -> dict[str, Any]:
        """What is going on, for people and for JSON; nothing of a text."""
        return {
            "target": self.pair.name,
            "draft_acceptance_rate": self._counters.draft_acceptance_rate,
            "mean_acceptance_length": self._counters.mean_acceptance_length,
            "counters": self._counters.to_json(),
            "training_steps": self._learner.training.steps,
            "lessons": len(self._learner.lessons),
            "personal": self._guard.newest.own.digest,
            "release": None if self._fleet.shared.changes_nothing else self._fleet.shared.digest,
            "guard": self._guard.status(),
            "decisions": [asdict(decision) for decision in self._journal.newest],
            "failure": str(self.failure or ""),
            "notices": list(self._state.notices),
        }

    def close(self) -> None:
        """Ends learning with the running step, and writes what is not written yet. A second call does nothing.

        Raises:
          BaseException: the defect that ended learning in the background.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._rest()
        finally:
            self._take_made()
            self._keep()
            self._tell()

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("the learning pair is closed; open another one")

    def __enter__(self) -> "OnlinePair":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- parts, as far as they came before --------------------------------------------------------------------

    def _made_learner(self, personal: LoraAdapter) -> OnlineLearner:
        return OnlineLearner(
            step=StepBeside(self.pair.train_step(), lambda: self._fleet.shared),
            writer=self.pair.lesson_writer(self.config.learning),
            adapter=personal,
            config=self.config.learning,
            seed=self.config.seed,
            on_change=self._learnt,
            on_step=self._keep_learner,
            on_replay=self._replayed,
            head=None if self.config.trains_head else self._controllers,
        )

    def _restore_learner(self) -> bool:
        """Whether there was a checkpoint; the lessons, which are written apart from it, are there in any case."""
        blobs, lessons = self._keeper.learner(), self._keeper.lessons()

        def restore() -> bool:
            self._learner.restore(blobs, lessons)
            return True

        if bool(blobs) and self._or_anew("learner", restore, False):
            return True
        self._learner.restore(self._learner.checkpoint(), lessons)
        return False

    def _made_guard(self) -> Guard[InForce]:
        """A guard of all that is in force, which has seen nothing yet."""
        return Guard(
            self.config.guard,
            self._fleet.beside(self._learner.adapter),
            put=self._fleet.put,
            on_rollback=self._rolled_back,
            judge=self._fleet.judge,
            unusable=self._fleet.unusable,
        )

    def _restore_guard(self, learner_known: bool) -> None:
        """A learner that was lost goes on from the last good adapter; one that went on without the guard is heard."""
        parts, layout = self._keeper.guard(), self._learner.adapter.layout

        def restore() -> bool:
            self._guard.restore(parts, lambda data: InForce.read(layout, data))
            return True

        if bool(parts) and self._or_anew("guard", restore, False):
            self._journal.know(self._guard.decisions)
            if not learner_known:
                self._learner.rollback(self._guard.good.own)
        self._judges = True
        self._made.append(self._learner.adapter)
        self._take_made()

    def _restored_controllers(self) -> Controllers:
        size, seed = self.pair.drafter.model.hidden_size, self.config.seed
        controllers = Controllers(size, seed=seed, trains_head=self.config.trains_head)
        if (data := self._keeper.head()) is not None:
            self._or_anew("head", lambda: controllers.restore_bytes(data), None)
        return controllers

    def _restore_ngrams(self) -> None:
        paths, data = self.pair.paths, self._keeper.ngrams()
        if isinstance(paths, NgramCache) and data is not None:
            self._or_anew("ngrams", lambda: paths.restore_bytes(data), None)

    def _or_anew(self, what: str, restore: Callable[[], T], otherwise: T) -> T:
        """What ``restore`` gives; ``otherwise``, and a notice, where a part of the state cannot be used."""
        try:
            return restore()
        except FleetdraftError as error:
            self._keeper.forget(what, str(error))
            return otherwise

    def _made_generator(self) -> Generator:
        pair = self.pair
        side = DrafterSide(decoder=pair.drafter.decoder, spelling=pair.spelling, paths=pair.paths)
        return Generator(pair.target, pair.target_codec, side, paces=self._pace)

    def _pace(self, name: str) -> Pace:
        """One for all texts: what the guard may have drafted is counted over all of them."""
        if name not in self._paces:
            undecided = lambda: self._guard.on_trial or self._guard.suspects  # noqa: E731
            self._paces[name] = TryingPace(self._controllers(name), undecided)
        return self._paces[name]

    def _rates(self) -> tuple[float, float] | None:
        """Acceptance of the newest adapter and of the last good one, where both were seen."""
        return self._guard.rates

    # --- writing and telling ----------------------------------------------------------------------------------

    def _keep_learner(self) -> None:
        """Writes the learner's checkpoint; from any thread."""
        with self._keeping:
            self._keeper.keep(learner=self._learner.checkpoint())

    def _keep(
        self, learner: bool = False, shared: LoraAdapter | None = None, lessons: ReplayChange | None = None
    ) -> None:
        """Writes what a text changed; with it what else has to change at once."""
        self._journal.take([*self._guard.decisions, *self._controllers.decisions])
        paths = self.pair.paths
        parts = PairParts(
            counters=self._counters,
            guard=self._guard.checkpoint(InForce.to_bytes),
            head=self._controllers.to_bytes(),
            ngrams=paths.to_bytes() if isinstance(paths, NgramCache) else None,
            decisions=self._journal.unwritten,
        )
        # The lock is of the learner's checkpoint alone: lessons come while the memory of lessons is locked.
        with self._keeping if learner else contextlib.nullcontext():
            checkpoint, refused = self._learner.checkpoint() if learner else None, self._refused
            if self._keeper.keep(learner=checkpoint, pair=parts, shared=shared, refused=refused, lessons=lessons):
                self._journal.written()
        self._unkept = False

    def _tell(self) -> None:
        """Tells what went wrong, each thing once."""
        if self._notices.is_new(self.failure):
            self._keep_learner()  # the state has steps that are taken back
        self._notices.cannot_write(self._keeper.failure)
        self._notices.tell()
