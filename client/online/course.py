"""How far a stream of prompts came, in the state, so that the same stream goes on after a kill. It holds no text."""

import contextlib
import hashlib
import json
from collections.abc import Sequence

from ...common.errors import UserError
from ..prompts import Prompt
from ..state.state import State

_PREFIX = "course/"


class Course:
    """The place of one target's newest stream, until ``end``.

    Args:
      state: open.
      target: the target's name.
      prompts, passes, seed: the stream; of another one, the place is not this one's.
    """

    def __init__(self, state: State, target: str, prompts: Sequence[Prompt], passes: int, seed: int) -> None:
        self._state, self._name = state, _PREFIX + target
        self.length = len(prompts) * passes
        stream = json.dumps([[prompt.text for prompt in prompts], passes, seed])
        self._stream = hashlib.sha256(stream.encode()).hexdigest()

    @property
    def done(self) -> int:
        """Prompts behind it, at most ``length``."""
        try:
            found = json.loads(self._state.get(self._name) or b"{}")
            done = int(found["done"]) if found["stream"] == self._stream else 0
        except (ValueError, KeyError, TypeError):
            return 0
        return done if 0 <= done <= self.length else 0

    def note(self, done: int) -> None:
        """So many prompts are behind it; where nothing can be written, they come again after a kill."""
        with contextlib.suppress(UserError):  # the learning pair says so, for its own writes
            self._state.put(self._name, json.dumps({"stream": self._stream, "done": done}).encode())

    def end(self) -> None:
        """All is learned: the same stream would begin anew."""
        with contextlib.suppress(UserError):
            self._state.delete(self._name)
