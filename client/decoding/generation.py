"""Text from a prompt: a target that decodes alone, or that checks what a drafter proposes. It knows no model files."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from ..pacing.controllers import Controllers
from ..pacing.outcome import Outcome
from ..pacing.pace import Pace
from ..runtimes.decoder import Decoder
from ..spelling.text import TextCodec
from .continuation import Continuation, Generation
from .lease import Lease
from .options import Options
from .steps import DrafterSide, Steps


class Witness(Protocol):
    """Sees what the target decided; the online learner is one."""

    def observe(self, outcome: Outcome) -> None:
        """Called after every target call, with what of it became part of the text; arrays are valid till then."""


class Generator:
    """Generates with one target, with or without a drafter. One text at a time.

    Args:
      target: its context is the text's.
      codec: the target's tokenizer.
      drafter: None for the target alone.
      lease: shared with other generators on the same target.
      clock: seconds, of the blocks' costs.
      paces: by the name that ``Options.controller`` gives; each goes on from text to text.
    """

    def __init__(
        self,
        target: Decoder,
        codec: TextCodec,
        drafter: DrafterSide | None = None,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.perf_counter,
        paces: Callable[[str], Pace] | None = None,
    ) -> None:
        self._target, self._codec, self._drafter = target, codec, drafter
        self._lease, self._clock, self._paces = lease or Lease(), clock, paces or Controllers()

    @property
    def alone(self) -> "Generator":
        """The same target without the drafter."""
        return Generator(self._target, self._codec, None, self._lease)

    def run(self, prompt: str, options: Options, witness: Witness | None = None) -> Generation:
        """Generates to the end and returns the whole text.

        Raises:
          ContextLimitError: the prompt alone fills the target's context.
        """
        text = self._begin(prompt, options)
        return text.finished("".join(self._pieces(text, options, witness)))

    def stream(self, prompt: str, options: Options, witness: Witness | None = None) -> Iterator[str]:
        """Yields text pieces as they are decided; no piece splits a character or shows part of a stop string.

        Raises:
          ContextLimitError: (at once) the prompt alone fills the target's context.
          ConfigError: (from the iterator) another text was begun here; a second stream needs a pair of its own.
        """
        return self._pieces(self._begin(prompt, options), options, witness)

    def _begin(self, prompt: str, options: Options) -> Continuation:
        with self._lease.use():
            text = Continuation(self._target, self._codec, prompt, options)
            self._lease.take(text)
        return text

    def _pieces(self, text: Continuation, options: Options, witness: Witness | None) -> Iterator[str]:
        drafter = self._drafter if options.draft_tokens else None
        steps = Steps(self._target, self._codec.vocabulary.eos, text, options, self._clock)
        outcomes = steps.alone() if drafter is None else steps.drafted(drafter, self._paces(options.controller))
        while text.open:
            with self._lease.use():
                self._lease.check(text)
                outcome = next(outcomes)
                piece, count = text.emit(outcome.tokens)
                if drafter is not None:
                    drafter.paths.observe(outcome.tokens[:count])
                if witness is not None and count:
                    witness.observe(outcome.first(count))
            if piece:
                yield piece
        if rest := text.close():
            yield rest
