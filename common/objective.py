"""What a training step lowers: which divergence from the teacher, and how much of the n-gram likelihood. No arithmetic.

The losses themselves are in ``common/losses.py``.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .losses import DIVERGENCES

_SAMPLED = "tvd++sampled"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The hybrid loss (ALGORITHMS §3): a divergence where there is a teacher + λ x n-gram NLL."""

    divergence: str = "forward-kl"
    """One of ``losses.DIVERGENCES``; the default taught most where they were compared (docs/learning.md)."""
    ngram_weight: float = 0.2
    """λ."""
    dynamic: bool = False
    """Whether an n-gram's λ is ``ngram_weight`` x p(t) of its target token, so that unlikely ones teach less. The
    published dynamic λ (OmniDraft) is p(t) alone: ``ngram_weight`` 1."""
    beta: float = 0.5
    """Of the JSD: near 0 as forward KL, near 1 as reverse KL."""
    eta: float = 3.0
    """Of LK: how fast accepted rows turn from KL to TVD."""
    samples: int = 8
    """Tokens that tvd++sampled draws in each row."""
    warmup_steps: int = 0
    """Steps on forward KL before the divergence: from a bad start TVD has almost no gradient."""

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise ConfigError(f"divergence is {self.divergence!r}, expected one of {', '.join(DIVERGENCES)}")
        for name in ("ngram_weight", "eta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a finite number >= 0")
        if not 0 < self.beta < 1:
            raise ConfigError(f"beta is {self.beta}, expected between 0 and 1")
        for name, least in (("samples", 1), ("warmup_steps", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")

    def at(self, step: int) -> "Objective":
        """The objective of one step, counted from 0."""
        return replace(self, divergence="forward-kl") if step < self.warmup_steps else self

    @property
    def weights(self) -> NDArray[np.float32]:
        """(7,) of the ``DIVERGENCES``, as the train graph reads them."""
        return np.array([name == self.divergence for name in DIVERGENCES], dtype=np.float32)

    def uniforms(self, rows: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
        """float32 (\\*rows, draws) for the tokens to draw; ``rng`` is left alone by losses that draw none."""
        if self.divergence != _SAMPLED:
            return np.zeros((*rows, 1), np.float32)
        return rng.random((*rows, self.samples), dtype=np.float32)
