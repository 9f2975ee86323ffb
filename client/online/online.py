"""A pair that learns from what it writes and keeps what it learned: learner, guard, background and state joined.

    text -> blocks -> Outcome -> lesson     the text's own; at its end -> replay -> training, in the background or then
                              -> guard      which adapter is in force
                              -> pace       how long drafts are; its head learns from the same outcomes
    end of a text, training step, rollback, release -> keeper -> state

Two adapters are in force at once (``personal.py``): the fleet's, which a release brings, and the device's own, which is
what is trained and which never leaves.

Texts at once: each on a lane of its own (``lane.py`` says what is a lane's, a text's, and of all), each in a thread of
its own. A lesson joins the replay when its text ends, whole and at one moment, so the replay is what it would be if the
texts had been written one after the other in the order of their ends. The guard watches the blocks of all texts, for
all are drafted by the same adapter; but a trial goes by turns on *one* text, the first that drafts while it runs, until
that ends: two adapters can be told apart on the same text only, and among several texts each adapter might get its own.
A block that was begun by an adapter that has been replaced meanwhile, on another lane, tells the guard nothing.

Threads: those that write texts talk to guard, counters and state one at a time, behind the lock of the pair. The one
that learns in the background trains, writes the learner's checkpoint, and leaves what it made where one of the others
takes it between two blocks; it never waits for that lock.
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
from ..decoding.options import Options
from ..guarding.diagnosis import AcceptanceAlarm
from ..guarding.guard import Guard, GuardConfig
from ..guarding.personal import PersonalAdapter, Rebased, StepBeside
from ..learning.learner import LearnerConfig, OnlineLearner
from ..learning.lesson_writer import Writing
from ..learning.replay import ReplayChange
from ..pacing.controllers import Controllers
from ..pacing.outcome import Outcome
from ..pair import Pair
from ..spelling.ngrams import NgramCache
from ..state.decision import Decision
from ..state.journal import Journal
from ..state.state import State
from .background import BackgroundConfig, BackgroundLearner
from .fleet_adapter import FleetAdapter, InForce, plain
from .keeper import Keeper, PairParts
from .lane import Lane
from .notices import Notices
from .recording import Recording

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
    """One pair with its learner. One text at a time on each lane; training may go on beside them.

    Guarantees:
      - Each text that ended and the last training step are in the state, however this ends.
      - An adapter that does harm is rolled back (``guard.py``), with the release that came since the last good one.
        Texts are exact whatever the learner does.
      - A part of the state that cannot be used is begun anew, with a notice; a learner then goes on from the guard's
        last good adapter, if that is there. A disk that cannot be written is one notice, and stops nothing.

    Args:
      pair: of the first lane; its controllers and n-grams go on from the state.
      state: open; the caller closes it, after ``close``. To purge it, close this first.
      initial: the adapter that changes nothing. It is the shared one as long as there is no release.
      on_notice: told a line that the user should see, when a text ends, on the thread that wrote it.
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
        self._lock = threading.RLock()
        """Of all that several texts share; never waited for by who trains."""
        self._tried_on: Lane | None = None
        """Whose text the guard's trial goes by."""
        self._watching = True
        """Whether the guard hears of anything; not while a release is weighed."""
        self._unkept, self._closed = False, False
        self._failure: FleetdraftError | None = None
        self._failed_after = 0
        """Training steps when it failed; more of them say that it is over."""
        self._first = Lane(pair, pair, self._restored_controllers(), self._undecided)
        self._restore_ngrams()
        self._lanes = {id(pair): self._first}
        self._writer = pair.lesson_writer(self.config.learning)
        own = PersonalAdapter.initial(initial.layout, initial.layout.rank, self.config.seed)
        self._learner = self._made_learner(plain(own))
        known = self._restore_learner()
        self._guard = self._made_guard()
        self._fleet.put(self._guard.newest)
        self._restore_guard(known)
        self._background: BackgroundLearner | None = None
        self._wake()
        self._tell()

    # --- texts ------------------------------------------------------------------------------------------------

    def run(self, prompt: str, options: Options) -> Generation:
        """As ``Generator.run``, and learns from the text. If training fails, ``failure`` says why."""
        with self._text(self._first, prompt, options) as text:
            return self._first.generator.run(prompt, options, text)

    def stream(
        self, prompt: str, options: Options, pair: Pair | None = None, seen: Callable[[Outcome], None] = lambda _: None
    ) -> Iterator[str]:
        """As ``Generator.stream``, and learns from the text, as far as it was read.

        Args:
          pair: like this one, with contexts of its own: the text goes on beside those of other pairs, in a thread of
            its own or in turns. The lane that is made for it is kept.
          seen: told each block that became part of the text.
        """
        lane = self._first if pair is None else self._lane(pair)
        with self._text(lane, prompt, options, seen) as text:
            yield from lane.generator.stream(prompt, options, text)

    def _lane(self, pair: Pair) -> Lane:
        with self._lock:
            if id(pair) not in self._lanes:
                controllers = Controllers(pair.drafter.model.hidden_size, seed=self.config.seed)
                if self._first.head is not None:
                    controllers.restore_bytes(self._first.head)
                self._lanes[id(pair)] = Lane(pair, self.pair, controllers, self._undecided)
            return self._lanes[id(pair)]

    @contextlib.contextmanager
    def _text(
        self, lane: Lane, prompt: str, options: Options, seen: Callable[[Outcome], None] = lambda _: None
    ) -> Iterator[Recording]:
        """What surrounds a text: it is counted, becomes a lesson, and what it changed is written."""
        self._check_open()

        def observed(text: Recording, outcome: Outcome) -> None:
            self._observed(text, outcome)
            seen(outcome)

        learning, temperature = self.config.learning, options.sampling.temperature
        tokens = self.pair.target_codec.prompt_tokens(prompt)
        text = Recording(lane, self._writer, tokens, learning.max_lesson_tokens, temperature, observed)
        read = False
        with self._background.generating() if self._background else contextlib.nullcontext():
            with self._lock:
                lane.newest = text
                self._take_made()
            try:
                yield text
                read = True
            except (GeneratorExit, FleetdraftError):  # left between two blocks; or the target failed, in the next one
                read = True
                raise
            finally:
                with self._lock:
                    if text.writing is not None and not self._closed:
                        # Interrupted anywhere, or by another text, it may be no whole lesson.
                        self._end_text(text, text.writing if read and lane.newest is text else None)

    def _end_text(self, text: Recording, lesson: Writing | None) -> None:
        """Counters and lesson of a text are written as one, before anything is trained on it."""
        self._counters += DraftCounters(prompts=1)
        self._unkept = True
        text.lane.keep()
        if self._tried_on is text.lane:
            self._tried_on = None
        if lesson is not None:
            self._train(lambda: self._learner.take(lesson))
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

    def _observed(self, text: Recording, outcome: Outcome) -> None:
        """A block of any text; called by its generator."""
        with self._lock:
            self._counters += outcome.counters
            if self._tells(text.lane, outcome):
                self._guard.observe(outcome)
            self._alarm.temperature = text.temperature
            self._alarm.observe(outcome)
            self._take_made()

    def _tells(self, lane: Lane, outcome: Outcome) -> bool:
        """Whether a block is for the guard: not what a replaced adapter drafted, and in a trial one text's alone."""
        if not outcome.cost.draft_tokens:
            return True  # it is counted, no more
        if lane.stale or not self._watching:
            return False
        if not self._guard.on_trial:
            return True
        self._tried_on = self._tried_on or lane
        return self._tried_on is lane

    def _undecided(self, lane: Lane) -> bool:
        """Whether the guard needs drafts of that lane."""
        with self._lock:
            tried = self._guard.on_trial and self._tried_on in (None, lane)
            return tried or self._guard.suspects

    def _take_made(self) -> None:
        """Tells the guard of what the learner made: on a thread that generates, between two blocks."""
        if not self._watching:
            return
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
        with self._lock:
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
    def newest(self) -> LoraAdapter:
        """Shared and personal adapter as one, the newest ones; while they are on trial the last good ones draft too."""
        return self._guard.newest.both

    @property
    def on_trial(self) -> bool:
        """Whether the newest adapters draft in turns with the last good ones until the guard chooses."""
        return self._guard.on_trial

    def as_adapter(self) -> tuple[LoraAdapter, float]:
        """The newest in the layout of a release, and what that lacks; see ``FleetAdapter.cut``."""
        return self._fleet.cut(self._guard.newest.own)

    def take_release(self, release: LoraAdapter) -> Rebased | None:
        """Takes a new shared adapter, in force or on trial; the personal one is re-based (``personal.rebase``).

        One call at a time.

        The guard watches both as one: if they do harm, the release before comes back with the last good adapter, and
        this one is refused from then on. Texts go on meanwhile and have the new adapters from a block on; while the
        release is weighed, which takes some training steps, the guard hears nothing of them.

        Returns:
          What became of the personal adapter; None if the release is in force already, or refused, which is told.

        Raises:
          ModelError: the release is of another drafter.
        """
        self._check_open()
        with self._lock:
            if release.digest == self._fleet.shared.digest or self._is_refused(release):
                return None
            self._watching = False
        try:
            own, rebased = self._fleet.take(release, self._weighed(), self.config.seed)
            with self._lock:
                self._put_in_force(own, rebased)
        finally:
            self._watching = True
        return rebased if self._fleet.shared is release else None

    def _weighed(self) -> InForce:
        """What a release is weighed against: the newest, or the last good ones where the newest is doubted."""
        return self._guard.good if self._guard.doubts else self._fleet.beside(self._learner.adapter)

    def _put_in_force(self, own: LoraAdapter, rebased: Rebased) -> None:
        """A release that was weighed, with the own adapter beside it; all as one."""
        self._learner.rollback(own)  # a step under way, beside the old release, comes to nothing
        self._made.clear()
        decision = Decision(what="re-based on a release", why=rebased.line, at_block=self._counters.blocks)
        self._journal.add(decision)
        made, good = self._fleet.beside(own), self._guard.good
        self._guard.supersede(good if made.same(good) else made)
        if self._guard.on_trial:
            why = "too little is known here to judge it: it drafts in turns with the last good adapter"
            self._journal.add(Decision(what="release on trial", why=why, at_block=self._counters.blocks))
        self._keep(learner=True, shared=self._fleet.shared)
        self._tell()

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
        """What is going on, for people and for JSON; nothing of a text. Any thread may ask."""
        with self._lock:
            return self._status()

    def _status(self) -> dict[str, Any]:
        return {
            "target": self.pair.name,
            "draft_acceptance_rate": self._counters.draft_acceptance_rate,
            "mean_acceptance_length": self._counters.mean_acceptance_length,
            "counters": self._counters.to_json(),
            "alone_tokens_per_s": next(filter(None, (lane.alone_tokens_per_s for lane in self._lanes.values())), None),
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
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._rest()
        finally:
            with self._lock:
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
            writer=self._writer,
            adapter=personal,
            config=self.config.learning,
            seed=self.config.seed,
            on_change=self._learnt,
            on_step=self._keep_learner,
            on_replay=self._replayed,
            head=None if self.config.trains_head else self._first.controllers,
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
        self._journal.take([*self._guard.decisions, *(d for lane in self._lanes.values() for d in lane.decisions)])
        paths = self.pair.paths
        parts = PairParts(
            counters=self._counters,
            guard=self._guard.checkpoint(InForce.to_bytes),
            head=self._first.head,
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
