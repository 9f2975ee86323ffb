"""Writes the agent's texts: several at once, block by block in turns, each of them a lesson. It knows no wire.

    request -> admission   so many at once, so many wait, the others are refused
            -> contexts    one of the pool, over the same models and adapter in force as all others
            -> lane        of the learning pair, for the first target's texts: each is a lesson of its own
            -> turns       one block each, in the order in which they ask

A block is the unit of fairness and of cancelling. Learning goes on beside all of it (``background.py``).
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ...common.errors import ConfigError
from ...common.lora import LoraAdapter
from ...common.metrics import DraftCounters
from ..bundle import Bundle
from ..guarding.personal import Rebased
from ..online.background import BackgroundConfig
from ..online.online import OnlineConfig
from ..pair import Pair
from ..runtimes.decoder import Decoder
from ..spelling.text import ReadText
from ..state.state import State
from .admission import Admission, Call
from .learning import LearningPair, Teaching
from .refusal import Cut, Gone, Overdue
from .served import Served, Targets
from .settings import AgentTable
from .text import Account, Event, Finished, Piece, TextRequest
from .turns import Turns

_BYTES_PER_TOKEN = 64
"""A prompt with more bytes than this for each token that fits is refused before it is tokenised."""
_MOST_PROMPT_BYTES = 1 << 20
"""Of any prompt, however large its program's context is: a tokenizer takes seconds for it."""
_PURGE_S = 30.0

Say = Callable[[str], None]


class Engine:
    """Texts, and the learner that sees those of the first target.

    Args:
      state: open; the caller closes it, after ``close``.
      targets: the first one's texts teach.
      may_learn: whether the learner may train now; from any thread.
      say: told a line that a person should read; nothing of a text.
    """

    def __init__(
        self,
        bundle: Bundle,
        state: State,
        targets: Targets,
        settings: AgentTable,
        may_learn: Callable[[], bool],
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bundle, self.targets, self.turns = bundle, targets, Turns(settings.workers)
        self.admission = Admission(settings.texts, settings.waiting)
        self._state, self._settings, self._may_learn, self._say, self._clock = state, settings, may_learn, say, clock
        self._teaching, self._lock = Teaching(), threading.Lock()
        self._changing = threading.Lock()
        """Held by who changes what the learner goes on from: one release or purge at a time."""
        with targets.first.lend() as first:
            self._pair = first.pair
        self._learning = self._opened()
        self._counted = dict[str, DraftCounters]()
        """Of texts that the learner did not see, by target."""
        self._last_text = clock()

    # --- texts ------------------------------------------------------------------------------------------------

    def write(self, request: TextRequest, call: Call, remote: Decoder | None = None) -> Iterator[Event]:
        """Writes one text; closing the iterator ends it.

        Args:
          remote: the target, where a program runs it.

        Raises:
          UserError: the request cannot be done.
          Refusal: not now.
        """
        began = self._clock()
        target = self.targets.named(request.target, remote is not None)
        account = Account(target.pair.target_codec, request.options, request.blocks)
        if remote is not None:
            account.give_up = call.cancel
        with self.admission.admit(call):
            try:
                request = replace(request, prompt=self._read(request.prompt, target, remote))
                with self._written(target, request, account, remote) as (pieces, learned):
                    yield from self._events(pieces, account, call, began, learned)
            finally:
                self._last_text = self._clock()

    def _read(self, prompt: str, target: Served, remote: Decoder | None) -> ReadText:
        """Tokenised before the first turn, for which others wait; too long a prompt costs nothing."""
        limit = remote.limit if remote is not None else self._limit(target)
        size, most = len(prompt.encode()), min(limit * _BYTES_PER_TOKEN, _MOST_PROMPT_BYTES)
        if size > most:
            raise ConfigError(f"prompt has {size} bytes, expected at most {most} for a context of {limit} tokens")
        return target.pair.target_codec.read(prompt)

    def _limit(self, target: Served) -> int:
        return target.pair.target.limit

    @contextlib.contextmanager
    def _written(
        self, target: Served, request: TextRequest, account: Account, remote: Decoder | None
    ) -> Iterator[tuple[Iterator[str], bool]]:
        """The pieces of a text, each made when it is asked for, and whether they teach."""
        wanted = self._settings.learn if request.learn is None else request.learn
        teaches = wanted and target is self.targets.first and request.options.draft_tokens > 0
        with contextlib.ExitStack() as stack:
            context = stack.enter_context(target.lend())
            stack.enter_context(context.target.using(remote))
            if teaches and stack.enter_context(self._teaching.joined(account.cut)):
                pieces = self._learning.stream(request.prompt, request.options, context.pair, account.observe)
                learned = True
            else:
                stack.callback(self._count, target, account)
                pieces, learned = self._begun(context.pair, request, account), False
            try:
                yield pieces, learned
            finally:
                with self.turns.take():
                    pieces.close()  # type: ignore[attr-defined]

    def _begun(self, pair: Pair, request: TextRequest, account: Account) -> Iterator[str]:
        """Begins when it is first asked for a piece, which reads the prompt."""
        yield from pair.drafted.stream(request.prompt, request.options, account)

    def _count(self, target: Served, account: Account) -> None:
        with self._lock:
            self._counted[target.name] = self._counted.get(target.name, DraftCounters()) + account.counters

    def _events(
        self, pieces: Iterator[str], account: Account, call: Call, began: float, learned: bool
    ) -> Iterator[Event]:
        first_s, until = 0.0, began + self._settings.text_limit_s
        while True:
            self._check(call, account, until)
            with self.turns.take():
                piece = next(pieces, None)
            yield from account.taken()
            if piece is None:
                break
            first_s = first_s or self._clock() - began
            yield Piece(piece)
        first_s = first_s or self._clock() - began
        yield Finished(reason=account.reason, counters=account.counters, first_piece_s=first_s, learned=learned)

    def _check(self, call: Call, account: Account, until: float) -> None:
        if account.is_cut:
            raise Cut("the text was ended by a purge")
        if not call.is_active():
            raise Gone("nobody waits for this text any more")
        if self._clock() > until:
            raise Overdue(f"the text took longer than text_limit_s = {self._settings.text_limit_s:g}")

    @property
    def idle_s(self) -> float:
        """Seconds since the newest text ended; 0 while one is written."""
        return 0.0 if self.admission.active else self._clock() - self._last_text

    # --- learning ---------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Says that the learner may train."""
        self._learning.wake()

    def take_release(self, release: LoraAdapter) -> Rebased | None:
        """See ``OnlinePair.take_release``.

        Raises:
          ModelError: the release is of another drafter.
        """
        with self._changing:
            return self._learning.take_release(release)

    @property
    def on_trial(self) -> bool:
        """See ``OnlinePair.on_trial``."""
        return self._learning.on_trial

    def purge(self, everything: bool) -> int:
        """Deletes the lessons, or all that was learned; ends the texts that teach. Bytes that are free now.

        Raises:
          Full: one of them does not end.
        """
        with self._changing, self._teaching.dismissed(_PURGE_S):
            before = self._state.size_bytes
            self._learning.close()
            try:
                self._state.purge(lessons_only=not everything)
            finally:
                self._learning = self._opened()
            return max(0, before - self._state.size_bytes)

    def status(self) -> dict[str, Any]:
        """Of the learning pair."""
        return self._learning.status()

    def counters(self, target: Served) -> DraftCounters:
        """Of its texts: those the learner saw since the state began, all others since this engine did."""
        with self._lock:
            others = self._counted.get(target.name, DraftCounters())
        return others + (self._learning.counters if target is self.targets.first else DraftCounters())

    def close(self) -> None:
        """Ends learning and writes what is not written yet."""
        self._learning.close()

    def _opened(self) -> LearningPair:
        config = OnlineConfig(background=BackgroundConfig(budget=self._settings.budget))
        return LearningPair(self._pair, self._state, self.bundle.adapter(), config, self._say, self._may_learn)
