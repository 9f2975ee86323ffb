"""The ways to set the length of a draft, by name in one table. It knows no models; ``pair.py`` holds one."""

from collections.abc import Callable, Mapping
from functools import cached_property

from ..common.errors import ConfigError
from .decision import Decision
from .ewma_pace import EwmaPace
from .head_learner import HeadConfig, HeadLearner
from .head_pace import CostAware, HeadPace, Threshold
from .measured_pace import MeasuredPace
from .pace import FixedPace, Pace
from .stop_loss import StopLoss

_THRESHOLD, _MISMATCH_WEIGHT = 0.7, 6.0
"""The paper's for GSM8K and code, and its weight of refused proposals."""


class Controllers:
    """Gives the pace of a name. Each is made when it is first asked for and goes on learning from text to text.

    Args:
      hidden_size: of the drafter's states; 0 where it gives none, which the head cannot do with.
      head: how a head learns. seed: of its first weights and what it is shown.
      trains_head: whether the head is trained between blocks; else whoever calls ``head.train()`` does.
    """

    def __init__(
        self, hidden_size: int = 0, head: HeadConfig | None = None, seed: int = 0, trains_head: bool = True
    ) -> None:
        self._hidden_size, self._config, self._seed = hidden_size, head or HeadConfig(), seed
        self.trains_head = trains_head
        """May be set until the head's pace is first asked for."""
        self._paces: dict[str, Pace] = {}

    def __call__(self, name: str) -> Pace:
        """The pace of that name.

        Raises:
          ConfigError: there is none, or the drafter gives no states for a head.
        """
        if name not in self._paces:
            self._paces[name] = CONTROLLERS[checked_controller(name)](self)
        return self._paces[name]

    @cached_property
    def head(self) -> HeadLearner:
        """The head of ``head``; assign another to go on with that one, before it is first used."""
        return HeadLearner(self._hidden_size, self._config, self._seed)

    @property
    def head_in_use(self) -> HeadLearner | None:
        """``head``, if it was asked for or given."""
        return self.__dict__.get("head")

    def train(self) -> None:
        """Trains the head in use; nothing where there is none. For a learner's schedule."""
        if self.head_in_use is not None:
            self.head_in_use.train()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """When and why drafting was switched off and on, by all that were used, oldest first for each."""
        losses = (pace for pace in self._paces.values() if isinstance(pace, StopLoss))
        return tuple(decision for loss in losses for decision in loss.decisions)

    def cost_aware(self) -> Pace:
        """``head``."""
        return StopLoss(HeadPace(self.head, CostAware(), self.trains_head))

    def threshold(self) -> Pace:
        """``threshold``, with a head of its own: it is trained to another weight."""
        config = HeadConfig(mismatch_weight=_MISMATCH_WEIGHT)
        return StopLoss(HeadPace(HeadLearner(self._hidden_size, config, self._seed), Threshold(_THRESHOLD)))


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
