"""The online learner: watches what the target decides, and improves the drafter's adapter by what it saw.

It sees one adapter, a step that gives gradients by it, and somebody who puts an improved one in force: what else is in
force beside it, a shared adapter for example, it does not know.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError, ModelError, TrainingError
from ...common.lora import LoraAdapter
from ...common.messages import TrainCounters, l2_norm
from ...common.objective import Objective
from ...common.shape import PROJECTIONS as ADAPTED
from ..decoding.emission import emissions
from ..pacing.outcome import Outcome
from .learner_state import Point
from .lesson import Lesson
from .lesson_writer import POSITIONS, LessonWriter, Positions, Writing
from .replay import Replay, ReplayChange, ReplayConfig
from .schedule import PLANS, SCHEDULES, Schedule
from .teacher import PROJECTIONS, Projection
from .trainer import AdamW, AdamWConfig, Gradient


class Step(Protocol):
    """Gives gradients; holds memory between calls until it is closed."""

    def __call__(
        self,
        adapter: Mapping[str, NDArray[np.float32]],
        lessons: Sequence[Lesson],
        objective: Objective,
        rng: np.random.Generator,
    ) -> Gradient:
        """The gradient of one batch by the adapter; ``rng`` is of losses that draw."""

    def close(self) -> None:
        """Gives memory back; a later call takes it again."""


class HeadTrainer(Protocol):
    """An acceptance head that can be trained on what it has seen."""

    def train(self) -> None:
        """One training; the head in force is the better one afterwards, or as it was."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """When, what and how to learn.

    Raises:
      ConfigError: a value out of range.
    """

    schedule: Schedule = "prompts"
    """When (``schedule.py``)."""
    every_prompts: int = 4
    """Texts until training is due."""
    steps: int = 4
    """Training steps each time."""
    batch_size: int = 8
    single_pass: bool = False
    """Each lesson is trained on once, in the order in which they came, and forgotten: as many steps as they fill."""
    replay_capacity: int = ReplayConfig().capacity
    replay_max_bytes: int = ReplayConfig().max_bytes
    replay_ttl_s: float = ReplayConfig().ttl_s
    max_lesson_tokens: int = 192
    objective: Objective | None = None
    """None is ``Objective()``, the default hybrid; with ``projection`` "law" the forward KL alone."""
    optimizer: AdamWConfig = AdamWConfig()
    projection: Projection = "prefix"
    """How the target's distribution is seen in drafter tokens (``teacher.py``)."""
    teacher_width: int = 16
    """Drafter tokens listed of it, K: bytes grow with it, a step's time hardly (``lesson.py`` says what is lost)."""
    positions: Positions = "all"
    rejected: bool = True
    """Whether what was rejected is listed (``lesson_writer.py``)."""
    factors: tuple[str, ...] = ("A", "B")
    """LoRA factors that may change; FFA-LoRA trains ``B`` alone."""
    projections: tuple[str, ...] = tuple(ADAPTED)
    """Projections of the drafter whose LoRA may change."""

    def __post_init__(self) -> None:
        for name in ("every_prompts", "steps", "batch_size", "max_lesson_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 8 <= self.teacher_width <= 64:
            raise ConfigError(f"teacher_width is {self.teacher_width}, expected 8 to 64")
        for name, known in (("schedule", SCHEDULES), ("projection", PROJECTIONS), ("positions", POSITIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if not self.factors or not set(self.factors) <= {"A", "B"}:
            raise ConfigError(f"factors is {self.factors}, expected A, B or both")
        if not self.projections or not set(self.projections) <= set(ADAPTED):
            raise ConfigError(f"projections is {self.projections}, expected some of {', '.join(ADAPTED)}")
        _ = self.replay

    @property
    def replay(self) -> ReplayConfig:
        """The bounds of the memory."""
        return ReplayConfig(capacity=self.replay_capacity, max_bytes=self.replay_max_bytes, ttl_s=self.replay_ttl_s)

    @property
    def minimised(self) -> Objective:
        """The objective, or what ``projection`` makes of none."""
        return self.objective or (_OF_THE_LAW if self.projection == "law" else Objective())


#: ``teacher.py``'s identity holds for the forward KL, and leaves nothing for the likelihood to say.
_OF_THE_LAW = Objective(divergence="forward-kl", ngram_weight=0.0)
#: The newest steps whose losses are remembered: enough to see a run's course, bounded where prompts never end.
LOSSES_KEPT = 4096


class OnlineLearner:
    """A witness of generation that trains between texts, or in the background.

    The caller marks texts with ``begin`` and ``end``. Nothing is trained while a text is generated unless a thread runs
    ``steps``; one thread trains at a time, whatever the others do.
    """

    def __init__(
        self,
        *,
        step: Step,
        writer: LessonWriter,
        adapter: LoraAdapter,
        config: LearnerConfig,
        seed: int,
        on_change: Callable[[LoraAdapter], None],
        on_step: Callable[[], None] = lambda: None,
        on_replay: Callable[[ReplayChange], None] = lambda _: None,
        head: HeadTrainer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Starts from ``adapter``, which is in force.

        Args:
          on_change: puts an improved adapter in force.
          on_step: called after each optimiser step, on the thread that trains; may ask for a checkpoint.
          on_replay: told which lessons came and went, for a store that mirrors them.
          head: trained as the schedule says.
          clock: seconds since 1970, for the age of lessons.
        """
        self.adapter = adapter
        """The one in force."""
        self._step, self._writer, self._config, self._head, self._clock = step, writer, config, head, clock
        self._on_change, self._on_step = on_change, on_step
        self._replay = Replay(config.replay, np.random.default_rng(seed), on_replay)
        self._rng = np.random.default_rng([seed, 1])
        self._point = Point(adapter=adapter, optimizer=AdamW(config.optimizer), generators=self._generators())
        self._lock, self._training = threading.RLock(), threading.Lock()
        self._prompt: Sequence[int] = ()
        self._writing: Writing | None = None
        """The lesson of the text, once there is something of it."""

    @property
    def losses(self) -> list[float]:
        """Of the newest ``LOSSES_KEPT`` steps."""
        return list(self._point.losses)

    @property
    def training(self) -> TrainCounters:
        """What was trained so far."""
        return self._point.done

    @property
    def lessons(self) -> dict[int, Lesson]:
        """Those held, by number, oldest first."""
        return self._replay.lessons

    @property
    def pending(self) -> int:
        """Lessons that came since the last training began."""
        return self._replay.next_number - self._point.fresh

    @property
    def due(self) -> bool:
        """Whether there is work for ``steps``: enough new texts, or a training that was left."""
        return self._point.left > 0 or self.pending >= self._config.every_prompts

    # --- texts ------------------------------------------------------------------------------------------------

    def begin(self, prompt: Sequence[int]) -> None:
        """Marks the beginning of a text; ``prompt`` in target tokens."""
        self._prompt, self._writing = prompt, None

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``."""
        if self._writing is None:
            self._writing = self._writer.begin(self._prompt, self._config.max_lesson_tokens)
        self._writing.add(emissions(outcome), outcome.rows)

    def end(self) -> None:
        """Stores the text's lesson, and trains what the schedule says."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self.take(writing)

    def take(self, writing: Writing) -> None:
        """As ``end``, of a text that was recorded elsewhere, as one of several at once; one call at a time."""
        now = self._clock()
        self._replay.add(writing.lesson(now), now)
        plan = PLANS[self._config.schedule]
        if plan.after_texts and self.due:
            self.train()
        elif plan.head_between and self._head is not None:
            self._head.train()

    # --- training ---------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains once, whether due or not, as ``steps`` says.

        Raises:
          TrainingError: a loss or gradient is not finite.
        """
        for _ in self.steps():
            pass

    def finish(self) -> None:
        """Trains on what came since the last training and nothing else, with its share of the configured steps.

        Raises:
          ConfigError: another thread is training.
          TrainingError: a loss or gradient is not finite.
        """
        if self._point.left:
            self.train()
        if self.pending:
            share = math.ceil(self._config.steps * self.pending / self._config.every_prompts)
            for _ in self._steps(share, self._point.fresh):
                pass

    def steps(self) -> Iterator[None]:
        """Trains once, yields after each optimiser step, and puts the result in force at the end.

        If a step fails, all steps since this call are as if they had not been: the adapter in force stays, and so do
        optimiser, losses and counters. Lessons stay too, and training is due again after as many texts as ever.
        Who closes it early keeps the steps done, which are put in force; the rest stays due, and done by the next call
        the result is as without the break.

        Raises:
          ConfigError: another thread is training, or another iterator is open.
          TrainingError: a loss or gradient is not finite.
        """
        return self._steps(self._config.steps, 0)

    def _steps(self, count: int, first: int) -> Iterator[None]:
        if not self._training.acquire(blocking=False):
            raise ConfigError("training is already under way; finish or close the other iterator first")
        start = self._begin_training(count, first)
        point = start
        try:
            while point.left:
                after = self._advanced(point)
                if not self._went_on(point, after):
                    return  # rolled back while the step ran
                before, point = point, after
                if point.done is not before.done:  # else there is no lesson left
                    self._on_step()
                    yield
            self._put_in_force(point)
        except GeneratorExit:
            self._put_in_force(point)
            raise
        except BaseException:
            self._went_on(point, replace(start, left=0, generators=self._generators()))
            raise
        finally:
            # Until the next time the device has the memory of a step for other things; opening is quick.
            self._step.close()
            self._training.release()
        if point is not start and PLANS[self._config.schedule].head_with_lora and self._head is not None:
            self._head.train()

    def _begin_training(self, count: int, first: int) -> Point:
        """Where training starts: the rest of one that was left, or a new one."""
        with self._lock:
            point = self._point
            if not point.left:
                if self._config.single_pass:
                    count = math.ceil(len(self._replay) / self._config.batch_size)
                fresh = self._replay.next_number
                point = replace(point, fresh=fresh, left=count if len(self._replay) else 0, first=first)
                self._point = point
            return point

    def _advanced(self, point: Point) -> Point:
        """One step on."""
        first, batch = self._batch(point)
        if not batch:
            return replace(point, left=0)
        objective = self._config.minimised.at(point.done.steps)
        gradient = self._step(point.adapter.arrays, batch, objective, self._rng)
        _check_finite(gradient)
        optimizer = point.optimizer.copy()
        return replace(
            point,
            adapter=optimizer.update(point.adapter, self._allowed(gradient)),
            optimizer=optimizer,
            generators=self._generators(),
            left=point.left - 1,
            first=first,
            losses=(*point.losses, gradient.loss)[-LOSSES_KEPT:],
            done=point.done + TrainCounters(steps=1, positions=gradient.rows, loss=gradient.loss * gradient.rows),
        )

    def _batch(self, point: Point) -> tuple[int, list[Lesson]]:
        """What the next step trains on, and the first lesson that the step after it may use."""
        size = self._config.batch_size
        if not self._config.single_pass:
            return point.first, self._replay.sample(size, self._clock(), point.first)
        taken = self._replay.oldest(size, point.first)
        return max(taken, default=-1) + 1, list(taken.values())

    def _went_on(self, before: Point, after: Point) -> bool:
        """Goes to ``after`` unless something else happened since ``before``."""
        with self._lock:
            if self._point is not before:
                return False
            self._point = after
            return True

    def _put_in_force(self, point: Point) -> None:
        with self._lock:
            if self._point is point and point.adapter is not self.adapter:
                self._on_change(point.adapter)
                self.adapter = point.adapter
        if self._config.single_pass:
            self._replay.drop([number for number in self._replay.lessons if number < point.first])

    def rollback(self, adapter: LoraAdapter) -> None:
        """Puts ``adapter`` in force and goes on from it with a fresh optimiser; a training under way comes to nothing.

        Lessons and counters stay.
        """
        with self._lock:
            self._point = replace(self._point, adapter=adapter, optimizer=AdamW(self._config.optimizer), left=0)
            self._on_change(adapter)
            self.adapter = adapter

    # --- state ------------------------------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, bytes]:
        """The newest point of training, within a training too, as blobs by name; everything but the lessons.

        A learner that restores it with the same lessons goes on as this one does, bit for bit.
        """
        return self._point.to_blobs(self._replay.next_number)

    def restore(self, blobs: Mapping[str, bytes], lessons: Mapping[int, Lesson]) -> None:
        """Goes on from a checkpoint and puts its adapter in force.

        Args:
          blobs: of ``checkpoint``.
          lessons: by number; one that came after the checkpoint is new.

        Raises:
          ModelError: the blobs are no checkpoint of this kind; nothing has changed.
        """
        point, next_lesson = Point.from_blobs(blobs, self.adapter.layout, self._config.optimizer)
        width = self._config.teacher_width
        held = {number: lesson.widened(width) for number, lesson in lessons.items()}
        rng = np.random.default_rng(0)
        try:
            rng.bit_generator.state = dict(point.generators["loss"])
            self._replay.restore(held, next_lesson, point.generators["replay"], self._clock())
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"the learner's state is damaged: {error!r}; start without it") from error
        with self._lock:
            self._rng, self._point = rng, point
            self._on_change(point.adapter)
            self.adapter = point.adapter

    def _generators(self) -> dict[str, Any]:
        return {"replay": self._replay.rng_state, "loss": dict(self._rng.bit_generator.state)}

    def _allowed(self, gradient: Gradient) -> dict[str, NDArray[np.float32]]:
        return {name: value for name, value in gradient.arrays.items() if self._may_change(name)}

    def _may_change(self, name: str) -> bool:
        *_, projection, factor = name.split(".")
        return factor in self._config.factors and projection in self._config.projections


def _check_finite(gradient: Gradient) -> None:
    if not (math.isfinite(gradient.loss) and math.isfinite(l2_norm(gradient.arrays))):
        raise TrainingError("training diverged: the loss or its gradient is not finite; try a lower learning rate")
