"""What a training step minimises: the weights of the hybrid loss (ALGORITHMS §3)."""

import math
from dataclasses import dataclass

from ..common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Divergence on taught rows + ``ngram_weight`` x n-gram NLL."""

    ngram_weight: float = 0.2
    forward_mix: float = 0.0
    """1 is forward KL(p‖q), 0 reverse KL(q‖p), linear between."""

    def __post_init__(self) -> None:
        if not 0 <= self.ngram_weight < math.inf:
            raise ConfigError(f"ngram_weight is {self.ngram_weight}, expected a finite number >= 0")
        if not 0 <= self.forward_mix <= 1:
            raise ConfigError(f"forward_mix is {self.forward_mix}, expected 0 to 1")

    def at(self, step: int) -> "Objective":
        """What the step of this number, from 0, minimises."""
        return self
