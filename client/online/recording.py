"""One text of a learning pair while it is written: its lesson in the making, apart from those of all others.

It knows no models. Who writes the text tells it block by block; when the text ends, the learner takes the lesson in.
"""

from collections.abc import Callable, Sequence

from ..decoding.emission import emissions
from ..learning.lesson_writer import LessonWriter, Writing
from ..pacing.outcome import Outcome
from .lane import Lane


class Recording:
    """A ``Witness`` of one text.

    Args:
      prompt: target tokens before it. limit: longest lesson in drafter tokens.
      temperature: of the target.
      then: told each block, after the lesson.
    """

    def __init__(
        self,
        lane: Lane,
        writer: LessonWriter,
        prompt: Sequence[int],
        limit: int,
        temperature: float,
        then: Callable[["Recording", Outcome], None],
    ) -> None:
        self.lane, self.temperature = lane, temperature
        self.writing: Writing | None = None
        """Once there is something of it."""
        self._writer, self._prompt, self._limit, self._then = writer, prompt, limit, then

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``."""
        if self.writing is None:
            self.writing = self._writer.begin(self._prompt, self._limit)
        self.writing.add(emissions(outcome), outcome.rows)
        self._then(self, outcome)
