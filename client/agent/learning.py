"""The learner as the agent has it: it sees one text at a time, rests where it may not train, and says what it sees."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ...common.lora import LoraAdapter
from ..online.background import BackgroundLearner, Learning
from ..online.online import OnlineConfig, OnlinePair
from ..pacing.outcome import Outcome
from ..pair import Pair
from ..runtimes.decoder import Decoder, Hidden, Logits
from ..state.state import State
from .refusal import Full


class SwitchedDecoder:
    """A target that is another one from text to text: the agent's own, or one that a program runs.

    Args:
      native: where there is no other; None where the agent has no weights of it.
    """

    def __init__(self, native: Decoder | None, vocab_size: int) -> None:
        self.native, self._vocab_size, self._now = native, vocab_size, native

    @contextlib.contextmanager
    def using(self, decoder: Decoder | None) -> Iterator[None]:
        """Is ``decoder`` as long as the context lasts, or the native one."""
        self._now = decoder or self.native
        try:
            yield
        finally:
            self._now = self.native

    @property
    def _decoder(self) -> Decoder:
        if self._now is None:
            raise ValueError("no target is switched on")
        return self._now

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def limit(self) -> int:
        return self._decoder.limit

    @property
    def length(self) -> int:
        return self._decoder.length

    @property
    def stale(self) -> bool:
        return self._decoder.stale

    @property
    def hidden(self) -> Hidden:
        return self._decoder.hidden

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        """See ``Decoder.score``."""
        return self._decoder.score(tokens, kept)

    def rewind(self, length: int) -> None:
        """See ``Decoder.rewind``."""
        self._decoder.rewind(length)


@dataclass(frozen=True)
class Permitted:
    """A learner that works only where it may.

    It is asked again behind each step; a training that is broken off goes on from there when it may again.
    """

    learner: Learning
    may_train: Callable[[], bool]

    @property
    def due(self) -> bool:
        """Whether there is work that may be done."""
        return self.may_train() and self.learner.due

    def steps(self) -> Iterator[None]:
        """As the learner's, as far as they may go."""
        with closing(_closable(self.learner.steps())) as steps:
            for _ in steps:
                yield
                if not self.may_train():
                    return


def _closable(steps: Iterator[None]) -> Generator[None, None, None]:
    """The same steps; to close it is to close them, where they can be."""
    yield from steps


class LearningPair(OnlinePair):
    """An ``OnlinePair`` that says what it sees, and trains in the background where it may.

    Args:
      may_train: asked before and between training steps, from any thread; cheap.
    """

    def __init__(
        self,
        pair: Pair,
        state: State,
        initial: LoraAdapter,
        config: OnlineConfig,
        on_notice: Callable[[str], None],
        may_train: Callable[[], bool],
    ) -> None:
        self.seen: Callable[[Outcome], None] = lambda _: None
        """Told what becomes part of a text; set by whoever writes one."""
        self._may_train = may_train
        super().__init__(pair, state, initial, config, on_notice)

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``."""
        super().observe(outcome)
        self.seen(outcome)

    def wake(self) -> None:
        """Says that training may go on."""
        if self._background is not None:
            self._background.wake()

    def _wake(self) -> None:
        if self.config.background is not None:
            self._background = BackgroundLearner(Permitted(self._learner, self._may_train), self.config.background)


class Seat:
    """The one place of a text that teaches, and of whoever changes the learner between two texts."""

    def __init__(self) -> None:
        self._free, self._taken, self._asked = threading.Condition(), False, 0

    @contextlib.contextmanager
    def if_free(self) -> Iterator[bool]:
        """For a text: whether it has the seat, which it does not wait for."""
        with self._free:
            has = not self._taken and not self._asked
            self._taken = self._taken or has
        try:
            yield has
        finally:
            if has:
                self._leave()

    @contextlib.contextmanager
    def mine(self, timeout_s: float) -> Iterator[None]:
        """Waits for the seat; no text begins on it meanwhile.

        Raises:
          Full: it is not free within ``timeout_s``.
        """
        until = time.monotonic() + timeout_s
        with self._free:
            self._asked += 1
            try:
                if not self._free.wait_for(lambda: not self._taken, until - time.monotonic()):
                    raise Full(f"the text that teaches has not ended within {timeout_s:.0f} s; try again")
                self._taken = True
            finally:
                self._asked -= 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._free:
            self._taken = False
            self._free.notify_all()
