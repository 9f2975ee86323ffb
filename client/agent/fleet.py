"""Trains for the fleet, one piece of work at a time, each once: who asks again gets the same answer. It knows no wire.

Work goes on when its asker has gone, and ends at once when it may not go on: opted out, not eligible, purged, stopped.
It has models of its own (``polite.py``), so the texts of the device's user are drafted by what is in force there.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import FleetdraftError
from ..state.state import State
from .refusal import Draining, Full, NotNow, OtherWork

_ANSWERS = "agent/answers/"
_CONSENT = "agent/participates"
_KEPT = 2
"""Answers that are kept for those who ask again; each has the size of an adapter."""
_LOWEST = 19
"""Niceness."""
_DIGEST = 32
"""Bytes of the digest of what was asked, before an answer."""
_END_S = 15.0
"""Longest wait for the end of a step."""
_SWITCHED_OFF = "participation was switched off"
_OFF = "participation is off; opt in with: fleetdraft agent participate DIR in"
"""Also told to the server, which learns no path of the device."""


class Stopped(FleetdraftError):
    """Training ends here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked.

    id: who asks twice uses it twice. content: what tells this work from other work, for an id that is used wrongly.
    run: does it; is given what to ask before each step, which raises ``Stopped``, and what to tell of the progress.
    """

    id: str
    content: bytes
    run: Callable[[Callable[[], None], Callable[[int, int], None]], bytes]


class Job:
    """One piece of work under way or done."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.progress = (0, 0)
        """(done, total)"""
        self.answer: bytes | None = None
        self.error: BaseException | None = None
        self.stop = ""
        """Why it has to stop, if it has."""
        self._changed = threading.Condition()

    @property
    def ended(self) -> bool:
        return self.answer is not None or self.error is not None

    def check(self) -> None:
        """Returns if it may go on.

        Raises:
          Stopped: it may not.
        """
        if self.stop:
            raise Stopped(f"training was stopped: {self.stop}")

    def tell(self, done: int, total: int) -> None:
        """Notes how far it is."""
        with self._changed:
            self.progress = (done, total)
            self._changed.notify_all()

    def end(self, answer: bytes | None, error: BaseException | None) -> None:
        """Notes how it ended."""
        with self._changed:
            self.answer, self.error = answer, error
            self._changed.notify_all()

    def wait(self, known: tuple[int, int], timeout_s: float) -> bool:
        """Waits for progress beyond ``known`` or the end; whether there was any."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended or self.progress != known, timeout_s)


class FleetTraining:
    """Does work for the fleet where the user has opted in and the policy lets it.

    Args:
      state: keeps the consent and the newest answers.
      refusals: why the policy does not let it now; cheap.
      folder: the device's, for the command that opts in.
    """

    def __init__(
        self, state: State, refusals: Callable[[], tuple[str, ...]], say: Callable[[str], None], folder: Path
    ) -> None:
        self._state, self._refusals, self._say, self._folder = state, refusals, say, folder
        self._lock = threading.RLock()
        self._job: Job | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self.participates = state.get(_CONSENT) is not None

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why nothing is trained for the fleet now, for programs of the device; empty where it may be."""
        off = _OFF.replace("DIR", str(self._folder))
        return (*(() if self.participates else (off,)), *self._refusals())

    @property
    def training(self) -> bool:
        """Whether work is under way."""
        with self._lock:
            return self._job is not None and not self._job.ended

    def check_consent(self) -> None:
        """Returns if the user has opted in.

        Raises:
          NotNow: not so.
        """
        if not self.participates:
            raise NotNow(_OFF)

    def participate(self, wants: bool) -> bool:
        """Notes the user's consent, or that it is withdrawn: work ends then, and answers that nobody fetched go."""
        with self._lock:
            if wants:
                self._state.put(_CONSENT, b"1")
            else:
                with self._state.transaction():
                    self._state.delete(_CONSENT)
                    self._state.put_all(_ANSWERS, {})
                self.stop(_SWITCHED_OFF, timeout_s=0)  # under the lock: behind the deletion no answer is kept
                self._job = self._job if self.training else None
            self.participates = wants
        if not wants:
            self.stop(_SWITCHED_OFF)
        return wants

    def ask(self, work: Work) -> Job:
        """The job that does ``work``, begun now, under way, or done before.

        Raises:
          NotNow: not opted in, or not eligible.
          Full: other work is under way.
          OtherWork: the id is that of another request.
          Draining: the agent stops.
        """
        refusals = self._refusals()  # reads sensors, which no lock has to wait for
        with self._lock:
            if self._closed:
                raise Draining("the agent is stopping and trains nothing")
            self.check_consent()
            if (known := self._known(work)) is not None:
                return known
            if refusals:
                raise NotNow("not eligible now: " + "; ".join(refusals))
            if self._job is not None and not self._job.ended:
                raise Full("the agent is training for another request; try again when that is done")
            self._job = Job(work)
            self._thread = threading.Thread(target=self._run, args=(self._job,), name="fleetdraft fleet", daemon=True)
            self._thread.start()
            return self._job

    def check(self) -> None:
        """Stops the work if the policy does not let it go on."""
        if self.training and (refusals := self._refusals()):
            self.stop("; ".join(refusals), timeout_s=0)

    def stop(self, why: str, timeout_s: float = _END_S) -> None:
        """Ends the work under way and waits for its end."""
        with self._lock:
            job, thread = self._job, self._thread
            if job is None or job.ended:
                return
            job.stop = job.stop or why
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def forget(self) -> None:
        """Stops, and knows nothing of consent and answers, as the state does after a purge of everything."""
        self.stop("everything was purged")
        with self._lock:
            self._job, self.participates = None, False

    def close(self, timeout_s: float = _END_S) -> None:
        """Ends the work under way, for whose end it waits; nothing is begun from now on."""
        with self._lock:
            self._closed = True
        self.stop("the agent is stopping", timeout_s)

    # --- inside -----------------------------------------------------------------------------------------------

    def _known(self, work: Work) -> Job | None:
        """The job of work that was asked for before and is under way, or done and kept."""
        if self._job is not None and self._job.work.id == work.id and self._job.error is None:
            _check_same(work, self._job.work.content)
            return self._job
        stored = self._state.get(_name(work.id))
        if stored is None:
            return None
        _check_same(work, stored[:_DIGEST])
        job = Job(work)
        job.end(stored[_DIGEST:], None)
        return job

    def _run(self, job: Job) -> None:
        _lower()
        try:
            answer = job.work.run(lambda: self._check(job), job.tell)
            self._keep(job, answer)
        except FleetdraftError as error:
            self._say(f"training for the fleet ended: {error}")
            job.end(None, error.with_traceback(None))  # whose frames hold the models
        except BaseException as error:
            job.end(None, error)
            raise

    def _check(self, job: Job) -> None:
        """Asked by the work before each step."""
        self.check()
        job.check()

    def _keep(self, job: Job, answer: bytes) -> None:
        """Before it is given to anybody, and only with consent until then; older answers go."""
        with self._lock:
            with self._state.transaction():
                job.check()
                older = sorted(
                    (b for b in self._state.blobs() if b.name.startswith(_ANSWERS)), key=lambda b: b.written_s
                )
                for blob in older[: max(0, len(older) - _KEPT + 1)]:
                    self._state.delete(blob.name)
                self._state.put(_name(job.work.id), job.work.content + answer)
            job.end(answer, None)


def _name(work_id: str) -> str:
    return _ANSWERS + hashlib.sha256(work_id.encode()).hexdigest()


def _check_same(work: Work, content: bytes) -> None:
    if content != work.content:
        raise OtherWork(f"id {work.id[:80]!r} is of another request; each request needs an id of its own")


def _lower() -> None:
    """Gives this thread the lowest priority, where there is one of threads."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
