"""The ways to set the length of a draft, by name in one table. It knows no models; ``pair.py`` holds one."""

from collections.abc import Callable, Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...common.errors import ConfigError, ModelError
from ..state.decision import Decision
from .ewma_pace import EwmaPace
from .head_learner import HeadConfig, HeadLearner
from .head_pace import CostAware, Head, HeadPace, Threshold
from .logistic_head import LogisticHead
from .measured_pace import MeasuredPace
from .pace import FixedPace, Pace
from .stop_loss import StopLoss

_THRESHOLD = 0.7
"""The paper's for GSM8K and code."""
_MISMATCH_WEIGHT = 6.0
"""Of refused proposals, for ``threshold``: the paper's."""
_HEADS: Mapping[str, type[LogisticHead] | type[HeadLearner]] = {
    "head": LogisticHead,
    "single": LogisticHead,
    "threshold": HeadLearner,
}
"""Heads and their kind: ours, of proposals without a limit and of one drafter token, and the paper's."""
_HEADS_OF: Mapping[str, tuple[str, ...]] = {"head": ("head", "single"), "threshold": ("threshold",)}
"""By the name of a pace."""


class Controllers:
    """Gives the pace of a name. Each is made when it is first asked for and goes on learning from text to text.

    Args:
      hidden_size: of the drafter's states; 0 where it gives none, which a head cannot do with.
      seed: of the first weights of the head of ``threshold``, and of what it is shown.
      trains_head: whether heads are trained between blocks; else whoever calls ``train`` does.
    """

    def __init__(self, hidden_size: int = 0, seed: int = 0, trains_head: bool = True) -> None:
        self._hidden_size, self._seed = hidden_size, seed
        self.trains_head = trains_head
        """May be set until the first pace with a head is asked for."""
        self._paces, self._heads = dict[str, Pace](), dict[str, Head]()

    def __call__(self, name: str) -> Pace:
        """The pace of that name.

        Raises:
          ConfigError: there is none, or the drafter gives no states for a head.
        """
        if name not in self._paces:
            self._paces[name] = CONTROLLERS[checked_controller(name)](self)
        return self._paces[name]

    def train(self) -> None:
        """Trains the heads whose paces were asked for; nothing where there are none. For a learner's schedule."""
        for name in self._paces.keys() & _HEADS_OF.keys():
            for head in _HEADS_OF[name]:
                self._heads[head].train()

    def _head_of(self, name: str) -> Head:
        if name not in self._heads:
            careful = HeadConfig(mismatch_weight=_MISMATCH_WEIGHT)
            self._heads[name] = (
                HeadLearner(self._hidden_size, careful, self._seed)
                if _HEADS[name] is HeadLearner
                else LogisticHead(self._hidden_size)
            )
        return self._heads[name]

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """When and why drafting was switched off and on, by all that were used, oldest first for each."""
        return tuple(decision for loss in self._losses for decision in loss.decisions)

    @property
    def alone_tokens_per_s(self) -> float | None:
        """Of the target without a drafter, as one of them measured it lately; None where none did."""
        return next((loss.alone_tokens_per_s for loss in self._losses if loss.alone_tokens_per_s), None)

    @property
    def _losses(self) -> list[StopLoss]:
        return [pace for pace in self._paces.values() if isinstance(pace, StopLoss)]

    def cost_aware(self) -> Pace:
        """``head``."""
        return StopLoss(HeadPace(self._head_of("head"), CostAware(), self.trains_head, self._head_of("single")))

    def threshold(self) -> Pace:
        """``threshold``, with the paper's head and its weight."""
        return StopLoss(HeadPace(self._head_of("threshold"), Threshold(_THRESHOLD), self.trains_head))

    # --- state ------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes | None:
        """The heads, whichever were asked for or given; None where none was. What blocks cost is measured anew."""
        if not self._heads:
            return None
        return save({name: np.frombuffer(head.to_bytes(), np.uint8) for name, head in self._heads.items()})

    def restore_bytes(self, data: bytes) -> None:
        """Goes on with the heads of ``to_bytes``; before a pace with a head is first asked for.

        Raises:
          ModelError: it is no such state, or torn; nothing has changed.
          FingerprintError: of a drafter with another hidden size; nothing has changed.
        """
        try:
            held = {name: array.tobytes() for name, array in load(data).items()}
        except SafetensorError as error:
            raise ModelError(
                f"not acceptance heads, or torn ({error}); delete them, and new ones are learned"
            ) from error
        if unknown := held.keys() - _HEADS:
            raise ModelError(f"an acceptance head of {min(unknown)!r}, expected {' or '.join(sorted(_HEADS))}")
        self._heads |= {name: _HEADS[name].from_bytes(head, self._hidden_size) for name, head in held.items()}


CONTROLLERS: Mapping[str, Callable[[Controllers], Pace]] = {
    "fixed": lambda _: FixedPace(),
    "ewma": lambda _: StopLoss(EwmaPace()),
    "measured": lambda _: StopLoss(MeasuredPace()),
    "threshold": Controllers.threshold,
    "head": Controllers.cost_aware,
}


def checked_controller(name: str) -> str:
    """``name``, if there is one.

    Raises:
      ConfigError: there is none.
    """
    if name not in CONTROLLERS:
        raise ConfigError(f"controller is {name!r}, expected one of {', '.join(CONTROLLERS)}")
    return name
