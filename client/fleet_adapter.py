"""The fleet's adapter on one pair, with the device's own beside it: in force, judged, re-based, cut. It learns nothing.

Own adapters are ``LoraAdapter`` here, because learner and guard hold them as such; they never leave the device.
"""

import contextlib
from collections.abc import Callable, Mapping
from math import inf, isfinite

import numpy as np

from ..common.lora import LoraAdapter
from .lesson import Lesson
from .objective import Objective
from .pair import Pair
from .personal import PersonalAdapter, Rebased, TwoAdapters, rebase

_JUDGED_LESSONS = 12
"""The newest lessons, on which adapters are compared."""
_JUDGED_BY = Objective(divergence="tvd", ngram_weight=0.0)


class FleetAdapter:
    """Holds the shared adapter.

    Args:
      pair: where adapters are put in force.
      shared: the first one; ``LoraLayout.initial`` where there is no release.
      lessons: the device's own, by number.
    """

    def __init__(self, pair: Pair, shared: LoraAdapter, lessons: Callable[[], Mapping[int, Lesson]]) -> None:
        self.shared = shared
        self._pair, self._lessons = pair, lessons

    def both(self, own: LoraAdapter) -> LoraAdapter:
        """Shared and own as one; the own alone where the shared one changes nothing."""
        return own if self.shared.changes_nothing else self._with(own).in_force

    def put(self, own: LoraAdapter) -> None:
        """Puts both in force, from the next block on."""
        self._pair.adapt(self.both(own))

    def judge(self, own: LoraAdapter) -> list[float]:
        """Of both on the newest lessons, one each: the share of drafts that they would lose there."""
        return self._losses(self.both(own))

    def cut(self, own: LoraAdapter) -> tuple[LoraAdapter, float]:
        """(both in the layout of a release, the share of them that this lacks).

        Either adapter where the other changes nothing, else the best approximation of both (``LoraAdapter.cut``).
        """
        if self.shared.changes_nothing or own.changes_nothing:
            return (own if self.shared.changes_nothing else self.shared), 0.0
        return self.both(own).cut(self.shared.layout)

    def take(self, release: LoraAdapter, own: LoraAdapter, seed: int) -> tuple[LoraAdapter, Rebased]:
        """Holds a release from now on; (the own adapter beside it, how that was chosen).

        Raises:
          ModelError: the release is of another drafter.
        """
        rebased = rebase(self._with(own), release, self._losses, seed)
        self.shared = release
        return plain(rebased.adapters.personal), rebased

    def _with(self, own: LoraAdapter) -> TwoAdapters:
        return TwoAdapters(shared=self.shared, personal=PersonalAdapter(layout=own.layout, arrays=own.arrays))

    def _losses(self, in_force: LoraAdapter) -> list[float]:
        newest = list(self._lessons().values())[-_JUDGED_LESSONS:]
        with contextlib.closing(self._pair.train_step()) as step:
            found = [step(in_force.arrays, [each], _JUDGED_BY, np.random.default_rng(0)).loss for each in newest]
        return [loss if isfinite(loss) else inf for loss in found]


def plain(personal: PersonalAdapter) -> LoraAdapter:
    """A personal adapter as learner and guard hold it."""
    return LoraAdapter(layout=personal.layout, arrays=personal.arrays)
