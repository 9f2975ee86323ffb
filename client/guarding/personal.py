"""Two adapters in force at once: the fleet's shared one, and a personal one that no message holds.

What keeps it on the device is who makes messages, not its type. A federation's update is made by ``participant.py``
alone, which trains a copy of the release of its own; neither it nor what sends for it imports this module, the state or
``online.py``, and none of these imports a message (tests hold both). ``PersonalAdapter`` is no ``LoraAdapter`` and has
no ``minus`` and no ``save``, which catches a slip where the two meet; but ``in_force`` is both as one ``LoraAdapter``,
and the learner trains the personal tensors as one. A file of it is written where the user asks for one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, isclose, isfinite, sqrt
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ModelError
from ...common.lora import Arrays, LoraAdapter, LoraLayout
from ...common.low_rank import LowRank, Truncation
from ..learning.trainer import Gradient

Judge = Callable[[LoraAdapter], Sequence[float]]
"""Losses of an adapter in force on the device's own lessons, one each, of the same lessons every time; or none."""
_DEAD = 1e-5
"""A direction with less than this of what was added up to it is rounding, and is begun anew: it could not learn."""


@dataclass(frozen=True, kw_only=True)
class PersonalAdapter:
    """Tensors named and shaped as a LoRA adapter's, for this device only. Treat the arrays as read-only."""

    layout: LoraLayout
    arrays: Arrays = field(repr=False)

    @classmethod
    def initial(cls, shared: LoraLayout, rank: int, seed: int) -> "PersonalAdapter":
        """The one that changes nothing, of any rank, with the scaling of the shared adapter's layout."""
        layout = replace(shared, rank=rank, alpha=shared.scaling * rank)
        return cls(layout=layout, arrays=layout.initial(seed).arrays)

    def plus(self, delta: Mapping[str, NDArray[np.float32]]) -> "PersonalAdapter":
        """This adapter with ``delta`` added tensor by tensor; names absent from ``delta`` stay."""
        added = {n: v + delta[n] if n in delta else v for n, v in self.arrays.items()}
        return replace(self, arrays=added)


@dataclass(frozen=True, kw_only=True)
class TwoAdapters:
    """Shared and personal, which may differ in rank but not in decoder and scaling.

    Raises:
      ModelError: they differ in either.
    """

    shared: LoraAdapter
    personal: PersonalAdapter

    def __post_init__(self) -> None:
        one, other = self.shared.layout, self.personal.layout
        if one.shape != other.shape:
            raise ModelError(
                "the personal adapter is for a decoder of another shape than the shared one; begin a new one"
            )
        if not isclose(one.scaling, other.scaling):
            raise ModelError(
                f"the personal adapter's scaling is {other.scaling:g}, expected {one.scaling:g}; begin a new one"
            )

    @property
    def in_force(self) -> LoraAdapter:
        """Both as one adapter for the decoder: shared factors first, then personal ones."""
        return self.shared.beside(LoraAdapter(layout=self.personal.layout, arrays=self.personal.arrays))

    def learnt(self, personal: PersonalAdapter) -> "TwoAdapters":
        """With another personal adapter."""
        return replace(self, personal=personal)

    def personal_part(self, stacked: Mapping[str, NDArray[np.float32]]) -> Arrays:
        """The personal factors of arrays in the layout of ``in_force``, or their gradients."""
        rank = self.shared.layout.rank
        return {n: v[rank:] if n.endswith(".A") else v[:, rank:] for n, v in stacked.items()}


class Step(Protocol):
    """A training step: ``TrainStep``, or one that wraps it."""

    def __call__(self, adapter: Mapping[str, NDArray[np.float32]], *args: Any, **kwargs: Any) -> Gradient:
        """Loss and its gradient by every tensor of ``adapter``."""

    def close(self) -> None:
        """Gives memory back."""


class PersonalStep:
    """A training step of the personal adapter while the shared one is in force beside it, frozen."""

    def __init__(self, step: Step, adapters: TwoAdapters) -> None:
        """``step`` is made for the shared adapter's layout; of ``adapters`` only the shared one matters."""
        self._step, self._adapters = step, adapters

    def __call__(self, adapter: Mapping[str, NDArray[np.float32]], *args: Any, **kwargs: Any) -> Gradient:
        """As the step, for the personal tensors: the loss of both, the gradient of the personal one."""
        both = self._adapters.learnt(replace(self._adapters.personal, arrays=dict(adapter)))
        gradient = self._step(both.in_force.arrays, *args, **kwargs)
        return replace(gradient, arrays=self._adapters.personal_part(gradient.arrays))

    def close(self) -> None:
        """See ``Step.close``."""
        self._step.close()


class StepBeside:
    """A training step of a personal adapter beside the shared one that is in force when it runs."""

    def __init__(self, step: Step, shared: Callable[[], LoraAdapter]) -> None:
        self._step, self._shared = step, shared

    def __call__(self, adapter: Mapping[str, NDArray[np.float32]], *args: Any, **kwargs: Any) -> Gradient:
        """See ``PersonalStep``; a shared adapter that changes nothing costs nothing."""
        shared = self._shared()
        if shared.changes_nothing:
            return self._step(adapter, *args, **kwargs)
        rank, scaling = len(adapter["lora.0.q_proj.A"]), shared.layout.scaling
        layout = replace(shared.layout, rank=rank, alpha=scaling * rank)
        both = TwoAdapters(shared=shared, personal=PersonalAdapter(layout=layout, arrays=dict(adapter)))
        return PersonalStep(self._step, both)(adapter, *args, **kwargs)

    def close(self) -> None:
        """See ``Step.close``."""
        self._step.close()


Choice = Literal["carry", "keep", "drop"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
_BECAME: dict[Choice, str] = {
    "carry": "what this device learned stays as it is beside it",
    "keep": "what this device learned makes up for the difference to the last one",
    "drop": "what this device learned is dropped, and learning begins anew beside it",
}


@dataclass(frozen=True, kw_only=True)
class Rebased:
    """What became of the personal adapter when a release arrived.

    losses: mean loss of every choice on the device's lessons; empty where there were none.
    lost: the share of the change that *keep* had to cut off, relative in the Frobenius norm.
    """

    adapters: TwoAdapters
    choice: Choice
    losses: Mapping[Choice, float]
    lost: float

    @property
    def why(self) -> str:
        """The figures in a line."""
        if not self.losses:
            return "untested: there are no lessons to try it on"
        figures = ", ".join(f"{choice} {loss:.4g}" for choice, loss in self.losses.items())
        return f"mean loss on own lessons: {figures}"

    @property
    def line(self) -> str:
        """What became of the personal adapter beside the release, and why, for a person."""
        return f"{_BECAME[self.choice]} ({self.why})"


def rebase(adapters: TwoAdapters, release: LoraAdapter, judge: Judge, seed: int) -> Rebased:
    """Puts a new release in the shared adapter's place and decides what the personal one is beside it.

    | choice | the personal adapter        | right where the release                          |
    |--------|-----------------------------|--------------------------------------------------|
    | carry  | stays as it is              | brings something else                            |
    | keep   | makes up for the difference | is worse here: the device behaves as before      |
    | drop   | begins anew                 | already holds what was personal, or does better  |

    *Keep* is the best approximation of old shared + personal - release in the personal rank (``LowRank.truncated``).
    The smallest mean loss decides, the first in this order where two are equal; a loss that is not finite loses.
    Without lessons it is *carry*.

    Raises:
      ModelError: the release is of another decoder or scaling.
    """
    kept, lost = _kept(adapters, release, seed)
    layout = adapters.personal.layout
    new = {
        "carry": adapters.personal,
        "keep": kept,
        "drop": PersonalAdapter(layout=layout, arrays=layout.initial(seed).arrays),
    }
    candidates = {choice: TwoAdapters(shared=release, personal=new[choice]) for choice in CHOICES}
    found = {choice: judge(candidate.in_force) for choice, candidate in candidates.items()}
    losses = {choice: fsum(values) / len(values) for choice, values in found.items() if values}
    best: Choice = min(losses, key=lambda c: losses[c] if isfinite(losses[c]) else np.inf, default="carry")
    return Rebased(adapters=candidates[best], choice=best, losses=losses, lost=lost)


def _kept(adapters: TwoAdapters, release: LoraAdapter, seed: int) -> tuple[PersonalAdapter, float]:
    """(the personal adapter beside ``release`` that changes least, the share of the change that it lacks)."""
    less = replace(release, arrays={n: -v if n.endswith(".B") else v for n, v in release.arrays.items()})
    personal = adapters.personal.layout
    arrays, cuts = dict(personal.initial(seed).arrays), list[Truncation]()
    for (layer, name), change in adapters.in_force.beside(less).changes.items():
        cut = change.truncated(personal.rank)
        a, b = (arrays[f"lora.{layer}.{name}.{factor}"] for factor in "AB")
        alive = _alive(change, cut.change)
        a[alive], b[:, alive] = (
            cut.change.a[alive],
            cut.change.b[:, alive] * np.float32(change.scaling / personal.scaling),
        )
        cuts.append(cut)
    whole = fsum(cut.whole for cut in cuts)
    lost = sqrt(fsum(cut.lost for cut in cuts) / whole) if whole else 0.0
    return PersonalAdapter(layout=personal, arrays=arrays), lost


def _alive(added_up: LowRank, cut: LowRank) -> NDArray[np.intp]:
    """The directions of ``cut`` that are more than what rounding leaves of those that were added up."""
    largest = (np.linalg.norm(added_up.a, axis=1) * np.linalg.norm(added_up.b, axis=0)).max()
    return np.flatnonzero(np.square(cut.a).sum(axis=1) > _DEAD * largest)
