"""Learning in a thread of its own while texts are generated, within a budget. It knows no models, lessons or files.

While texts are generated, a training step that took s seconds of a core is followed by a rest of s (1 - b) / b, so that
training has at most the share b of one core; as generation goes on beside it, it loses less than that. On an idle
device there are no rests. The thread also asks for the lowest scheduling priority, which costs generation less still
where both want the same core. Training runs on one intra-op thread, which is the thread that calls: priority and count
of seconds apply to it.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from ...common.errors import ConfigError, FleetdraftError

CLOSE_S = 20.0
"""Longest wait for the running step when learning ends."""
_END = object()
_LOWEST = 19
"""Niceness, of Linux's -20 to 19."""

Wait = Callable[[threading.Condition, float | None], object]
"""Waits on a condition that is held, at most so many seconds; may return early."""


class Learning(Protocol):
    """What is done in the background; ``OnlineLearner`` is one. Texts may go on in other threads meanwhile."""

    @property
    def due(self) -> bool:
        """Whether there is work; cheap."""

    def steps(self) -> Iterator[None]:
        """Does the work, yields after each step; gives its memory back when it ends or is closed."""


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig:
    """How much of the time learning may take.

    Raises:
      ConfigError: a value out of range.
    """

    budget: float = 0.1
    """Share of one core's time, above 0 to 1, while texts are generated."""
    idle_after_s: float = 1.0
    """Seconds without a text until the device counts as idle: texts that follow each other are one work."""

    def __post_init__(self) -> None:
        if not 0 <= self.idle_after_s < math.inf:
            raise ConfigError(f"idle_after_s is {self.idle_after_s}, expected a finite number >= 0")
        if not 0 < self.budget <= 1:
            raise ConfigError(f"budget is {self.budget}, expected above 0, at most 1")

    def rest_s(self, step_s: float) -> float:
        """Seconds to rest after a step of ``step_s``, so that steps take ``budget`` of the time."""
        return step_s * (1 - self.budget) / self.budget


class BackgroundLearner:
    """Does a learner's work in a thread, from the making to ``close``.

    Guarantees:
      - Nothing is polled: the thread sleeps until a text begins or ends, or ``wake``.
      - An expected failure (``FleetdraftError``, as a training that diverges) is kept in ``failure``, and learning
        pauses until ``resume``; generation goes on. Anything else is a defect: it ends the thread, and ``generating``
        or ``close`` raises it.

    Args:
      learner: its steps run in the thread, one after the other.
      clock: seconds, of a clock that is not set. cpu: seconds of a core that the calling thread had.
      wait: as ``threading.Condition.wait``.
    """

    def __init__(
        self,
        learner: Learning,
        config: BackgroundConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        wait: Wait = threading.Condition.wait,
    ) -> None:
        self.priority = "not asked for yet"
        """Whether the thread has a low priority, in words."""
        self.failure: FleetdraftError | None = None
        """Why learning pauses, if it does."""
        self.steps_done, self.seconds = 0, 0.0
        """Training steps, and the seconds of a core spent on them."""
        self._learner, self._config = learner, config or BackgroundConfig()
        self._clock, self._cpu, self._wait = clock, cpu, wait
        self._changed = threading.Condition()
        self._texts, self._last_text, self._closing = 0, -math.inf, False
        self._until = -math.inf
        """When the rest for the steps so far is over."""
        self._defect: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fleetdraft learning", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """Marks the generation of a text, during which learning keeps to its budget.

        Raises:
          BaseException: the defect that ended learning, in the thread where it happened.
        """
        self._raise_defect()
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def wake(self) -> None:
        """Says that there may be work, as after a lesson that no text brought."""
        with self._changed:
            self._changed.notify_all()

    def resume(self) -> None:
        """Learns again after a failure."""
        with self._changed:
            self.failure = None
            self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Ends learning: the running step is the last, however much work there is. A second call does no harm.

        Returns:
          Whether the thread has ended within ``timeout_s``; if not, it ends with its step, and with the process anyway.

        Raises:
          BaseException: the defect that ended it before.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        self._raise_defect()
        return not self._thread.is_alive()

    def __enter__(self) -> "BackgroundLearner":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _count(self, texts: int) -> None:
        with self._changed:
            self._texts, self._last_text = self._texts + texts, self._clock()
            self._changed.notify_all()

    def _raise_defect(self) -> None:
        """Raises a defect once."""
        defect, self._defect = self._defect, None
        if defect is not None:
            raise defect

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.priority = _lowered()
        try:
            while self._await_work():
                try:
                    self._work()
                except FleetdraftError as error:
                    self.failure = error
        except BaseException as defect:
            self._defect = defect

    def _await_work(self) -> bool:
        """Sleeps until there is work, which it says, or nothing more to do."""
        with self._changed:
            while not self._closing:
                if self.failure is None and self._learner.due:
                    return True
                self._wait(self._changed, None)
        return False

    def _work(self) -> None:
        """What is due, step by step; left where it is when closing."""
        if not self._rested():
            return
        with closing(closable(self._learner.steps())) as steps:
            while self._stepped(steps):
                self.steps_done += 1
                # The rest behind the last step comes before the next work: what was learned is put in force at once.
                if self._learner.due and not self._rested():
                    return

    def _stepped(self, steps: Iterator[None]) -> bool:
        """Whether there was one more step; its time is noted, and that of the end.

        On a busy device a step of low priority waits more than it works; what it waits costs nobody anything.
        """
        began = self._cpu()
        try:
            return next(steps, _END) is not _END
        finally:
            worked = self._cpu() - began
            self.seconds += worked
            self._until = max(self._until, self._clock()) + self._config.rest_s(worked)

    def _rested(self) -> bool:
        """Rests for the steps so far, unless the device is idle; whether to go on."""
        with self._changed:
            while not self._closing and (left := min(self._until, self._idle_at()) - self._clock()) > 0:
                self._wait(self._changed, left)
            self._until = self._clock()
            return not self._closing

    def _idle_at(self) -> float:
        """When the device counts as idle, if no text begins until then."""
        return math.inf if self._texts else self._last_text + self._config.idle_after_s


def closable(steps: Iterator[None]) -> Generator[None, None, None]:
    """The same steps; to close it is to close them, where they can be."""
    yield from steps


def _lowered() -> str:
    """Gives this thread the lowest priority; says whether it has it.

    Elsewhere than on Linux a thread's number means something else to ``setpriority``, if there is one.
    """
    if sys.platform != "linux":
        return f"as any other thread: {sys.platform} has no priority of a single thread that Python can set"
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
    except OSError as error:
        return f"as any other thread: {error.strerror}"
    return f"low (niceness {_LOWEST})"
