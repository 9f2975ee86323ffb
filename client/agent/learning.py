"""The learner as the agent has it: it rests where it may not train, and makes room for whoever needs it alone."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from ...common.lora import LoraAdapter
from ..online.background import BackgroundLearner, Learning, closable
from ..online.online import OnlineConfig, OnlinePair
from ..pair import Pair
from ..runtimes.decoder import Decoder
from ..state.state import State
from .forwarded import ForwardedDecoder
from .refusal import Full


class SwitchedDecoder(ForwardedDecoder):
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


@dataclass(frozen=True)
class Permitted:
    """A learner that works only where it may.

    It is asked again behind each step; a training that is broken off goes on from there when it may again.
    """

    learner: Learning
    may_train: Callable[[], bool]

    @property
    def due(self) -> bool:
        """Whether there is work that may be done; where there is none, nobody is asked, which may read sensors."""
        return self.learner.due and self.may_train()

    def steps(self) -> Iterator[None]:
        """As the learner's, as far as they may go."""
        with closing(closable(self.learner.steps())) as steps:
            for _ in steps:
                yield
                if not self.may_train():
                    return


class LearningPair(OnlinePair):
    """An ``OnlinePair`` that trains in the background where it may.

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
        self._may_train = may_train
        super().__init__(pair, state, initial, config, on_notice)

    def wake(self) -> None:
        """Says that training may go on."""
        if self._background is not None:
            self._background.wake()

    def _wake(self) -> None:
        if self.config.background is not None:
            self._background = BackgroundLearner(Permitted(self._learner, self._may_train), self.config.background)


class Teaching:
    """The texts that teach, any number at once; and whoever has to be alone with the learner, as a purge."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._texts = dict[object, Callable[[], None]]()
        self._dismissed = 0

    @contextlib.contextmanager
    def joined(self, end: Callable[[], None]) -> Iterator[bool]:
        """For a text: whether it may teach, which it does not wait for.

        Args:
          end: has it end soon; called from any thread.
        """
        with self._changed:
            joins, text = not self._dismissed, object()
            if joins:
                self._texts[text] = end
        try:
            yield joins
        finally:
            with self._changed:
                self._texts.pop(text, None)
                self._changed.notify_all()

    @contextlib.contextmanager
    def dismissed(self, timeout_s: float) -> Iterator[None]:
        """Ends the texts that teach; none joins as long as the context lasts.

        Raises:
          Full: one has not ended within ``timeout_s``.
        """
        with self._changed:
            self._dismissed += 1
        try:
            with self._changed:
                for end in self._texts.values():
                    end()
                if not self._changed.wait_for(lambda: not self._texts, timeout_s):
                    raise Full(f"a text that teaches has not ended within {timeout_s:.0f} s; try again")
            yield
        finally:
            with self._changed:
                self._dismissed -= 1
