"""How to generate one text: the user's settings, checked when they are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...common.errors import ConfigError
from ..pacing.controllers import checked_controller
from ..prompts import is_text
from .processors import LogitsProcessor, RepetitionPenalty
from .sampling import Sampling

MAX_DRAFT_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of one text.

    sampling: how the target samples. max_new_tokens: longest text in target tokens.
    stop: the text ends before the first of these strings; the tokens that complete it count as emitted.
    processors: applied to the target's logits in order, after the repetition penalty.
    draft_tokens: drafter tokens per block, 0 for no drafting.
    controller: how many of these a block drafts (``controllers.py``). ``fixed`` is all; the others go by the clock: at
      temperature 0 the text stays the same; above, its law does, but not the text of a seed.
    seed: of every random choice.

    Raises:
      ConfigError: a value out of range.
    """

    sampling: Sampling = Sampling(temperature=0)
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    processors: tuple[LogitsProcessor, ...] = ()
    draft_tokens: int = 4
    controller: str = "fixed"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected a number >= 0")
        if not 0 <= self.draft_tokens <= MAX_DRAFT_TOKENS:
            raise ConfigError(f"draft_tokens is {self.draft_tokens}, expected 0 (no drafting) to {MAX_DRAFT_TOKENS}")
        checked_controller(self.controller)
        _check_stop(self.stop)

    @cached_property
    def logits_processors(self) -> tuple[LogitsProcessor, ...]:
        """All processors in their order."""
        penalty = self.sampling.repetition_penalty
        return self.processors if penalty == 1 else (RepetitionPenalty(penalty), *self.processors)


def _check_stop(stop: Sequence[str]) -> None:
    if isinstance(stop, str):
        raise ConfigError(f"stop is the string {stop!r}, expected a tuple of strings")
    for text in stop:
        if not isinstance(text, str) or not text or not is_text(text):
            raise ConfigError(f"a stop string is {text!r}, expected text that is not empty")
