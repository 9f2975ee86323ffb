"""The fleet's adapter on one pair, with the device's own beside it: in force, judged, re-based, cut. It learns nothing.

Own adapters are ``LoraAdapter`` here, because learner and guard hold them as such; they never leave the device.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite

import numpy as np

from ...common.lora import LoraAdapter, LoraLayout
from ...common.objective import Objective
from ..guarding.personal import PersonalAdapter, Rebased, TwoAdapters, rebase
from ..learning.lesson import Lesson
from ..pair import Pair
from ..runtimes.onnx_decoder import OnnxDecoder

_JUDGED_LESSONS = 12
"""The newest lessons, on which adapters are compared."""
_JUDGED_BY = Objective(divergence="tvd", ngram_weight=0.0)
_REMEMBERED = 4
"""Adapters whose losses are remembered: reference and newest, and what is made meanwhile."""
_PROBE_TOKENS = 16
_LENGTH = 8
"""Bytes of the length before the shared adapter's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InForce:
    """What is in force as a whole: the shared adapter and the own one beside it. Compared by identity."""

    shared: LoraAdapter
    own: LoraAdapter

    @cached_property
    def both(self) -> LoraAdapter:
        """Both as one; the own alone where the shared one changes nothing."""
        return self.own if self.shared.changes_nothing else _two(self.shared, self.own).in_force

    def same(self, other: "InForce") -> bool:
        """Whether both adapters have the same values."""
        return (self.shared.digest, self.own.digest) == (other.shared.digest, other.own.digest)

    def to_bytes(self) -> bytes:
        """For ``read``."""
        shared = self.shared.to_bytes()
        return len(shared).to_bytes(_LENGTH, "big") + shared + self.own.to_bytes()

    @classmethod
    def read(cls, layout: LoraLayout, data: bytes) -> "InForce":
        """What ``to_bytes`` wrote of two adapters of one layout.

        Raises:
          ModelError: damaged, or of another layout.
        """
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
        return cls(shared=layout.read(data[_LENGTH:end]), own=layout.read(data[end:]))


class FleetAdapter:
    """Holds the shared adapter beside which the device learns.

    Args:
      pair: where adapters are put in force.
      shared: the first one; ``LoraLayout.initial`` where there is no release.
      lessons: the device's own, by number.
    """

    def __init__(self, pair: Pair, shared: LoraAdapter, lessons: Callable[[], Mapping[int, Lesson]]) -> None:
        self.shared = shared
        self._pair, self._lessons = pair, lessons
        self._judging = threading.Lock()
        self._losses_of = dict[str, dict[int, float]]()
        """By the digest of what was in force and the lesson's number; the newest last."""

    def beside(self, own: LoraAdapter) -> InForce:
        """The own adapter with the shared one."""
        return InForce(shared=self.shared, own=own)

    def put(self, adapters: InForce) -> None:
        """Puts both in force, from the next block on."""
        self._pair.adapt(adapters.both)

    def judge(self, adapters: InForce) -> list[float]:
        """Of both on the newest lessons, one each: the share of drafts that they would lose there; from any thread.

        A lesson costs one training step, once for each adapter.
        """
        return self._losses(adapters.both)

    def unusable(self, adapters: InForce) -> str:
        """Why they cannot be in force: the drafter's logits are not finite with them. Empty if they can.

        They are in force afterwards; who asks puts others in force, or these. Costs one short reading of the drafter.
        """
        self.put(adapters)
        model = self._pair.drafter.model
        rows = OnnxDecoder(model).score(np.linspace(0, model.vocab_size - 1, _PROBE_TOKENS).astype(int).tolist())
        return "" if np.isfinite(rows).all() else "the drafter's logits are not finite with it"

    def cut(self, own: LoraAdapter) -> tuple[LoraAdapter, float]:
        """(both in the layout of a release, the share of them that this lacks).

        Either adapter where the other changes nothing, else the best approximation of both (``LoraAdapter.cut``).
        """
        if self.shared.changes_nothing or own.changes_nothing:
            return (own if self.shared.changes_nothing else self.shared), 0.0
        return self.beside(own).both.cut(self.shared.layout)

    def take(self, release: LoraAdapter, before: InForce, seed: int) -> tuple[LoraAdapter, Rebased]:
        """Holds a release from now on, instead of what was before; (the own adapter beside it, how that was chosen).

        Raises:
          ModelError: the release is of another drafter.
        """
        rebased = rebase(_two(before.shared, before.own), release, self._losses, seed)
        self.shared = release
        return plain(rebased.adapters.personal), rebased

    def _losses(self, in_force: LoraAdapter) -> list[float]:
        with self._judging:
            newest = dict(list(self._lessons().items())[-_JUDGED_LESSONS:])
            digest = in_force.digest
            known = self._losses_of.pop(digest, {})
            known = {number: known[number] for number in newest if number in known}
            if missing := [number for number in newest if number not in known]:
                with contextlib.closing(self._pair.train_step()) as step:
                    for number in missing:
                        loss = step(in_force.arrays, [newest[number]], _JUDGED_BY, np.random.default_rng(0)).loss
                        known[number] = loss if isfinite(loss) else inf
            self._losses_of = dict([*self._losses_of.items(), (digest, known)][-_REMEMBERED:])
            return [known[number] for number in newest]


def plain(personal: PersonalAdapter) -> LoraAdapter:
    """A personal adapter as learner and guard hold it."""
    return LoraAdapter(layout=personal.layout, arrays=personal.arrays)


def _two(shared: LoraAdapter, own: LoraAdapter) -> TwoAdapters:
    return TwoAdapters(shared=shared, personal=PersonalAdapter(layout=own.layout, arrays=own.arrays))
