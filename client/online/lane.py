"""A lane of a learning pair: where one text at a time is written, beside those of the other lanes. It learns nothing.

| what                                                             | whose                                           |
|------------------------------------------------------------------|-------------------------------------------------|
| contexts of target and drafter, with the adapter they began with | the lane's                                      |
| paces: stop-loss, timings, acceptance heads, verdicts that wait  | the lane's, from text to text                   |
| the lesson in the making (``recording.py``)                      | the text's                                      |
| models, adapter in force, draft paths with their n-grams         | all lanes'                                      |
| counters, guard, alarm, replay, learner, state                   | all lanes', behind the lock of the pair         |

A pace is told between a block's draft and its verdict what the verdict will be of, and on a lane nothing comes between
the two: so paces are no lanes' but one's, and so are the heads, which they train. The state keeps the first lane's
heads; another lane begins with what these knew. The n-gram cache, which has no lock, is for lanes that take turns block
by block; a text drafts by what it held when the text began.
"""

from collections.abc import Callable

from ..decoding.generation import Generator
from ..decoding.steps import DrafterSide
from ..pacing.controllers import Controllers
from ..pacing.pace import Pace
from ..pacing.trying_pace import TryingPace
from ..pair import Pair
from ..state.decision import Decision


class Lane:
    """Contexts and paces.

    Args:
      pair: its contexts are the lane's.
      like: gives the spelling and the draft paths, which all lanes share.
      controllers: the lane's own.
      undecided: whether the guard cannot decide without drafts of this lane.
    """

    def __init__(self, pair: Pair, like: Pair, controllers: Controllers, undecided: Callable[["Lane"], bool]) -> None:
        self.pair, self.controllers = pair, controllers
        self.newest: object = None
        """The text that was begun last."""
        self._undecided = undecided
        self._paces = dict[str, TryingPace]()
        side = DrafterSide(decoder=pair.drafter.decoder, spelling=like.spelling, paths=like.paths)
        self.generator = Generator(pair.target, pair.target_codec, side, paces=self.pace)
        self.head: bytes | None = None
        """Of its acceptance heads, as ``keep`` found them."""
        self.decisions: tuple[Decision, ...] = ()
        """Of its stop-losses, likewise."""
        self.alone_tokens_per_s: float | None = None
        """Of its target without a drafter, likewise; None where no controller measured it."""
        self.keep()

    @property
    def stale(self) -> bool:
        """Whether the drafter's context is of an adapter that is no longer in force: so was the block before."""
        return self.pair.drafter.decoder.stale

    def pace(self, name: str) -> Pace:
        """One for all of its texts: what the guard may have drafted is counted over all of them."""
        if name not in self._paces:
            self._paces[name] = TryingPace(self.controllers(name), lambda: self._undecided(self))
        return self._paces[name]

    def keep(self) -> None:
        """Notes what others may read; on the thread that writes the lane's text, between two blocks."""
        self.head, self.decisions = self.controllers.to_bytes(), self.controllers.decisions
        self.alone_tokens_per_s = self.controllers.alone_tokens_per_s
