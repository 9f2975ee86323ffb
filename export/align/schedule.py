"""The schedule: every number of one training run that is not the model's shape.

It does not know models or tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps, batch and learning rate of one run.

    Guarantees:
      - The learning rate rises linearly to `peak_rate`, then falls as a cosine to `floor` of it at the last step.
    """

    steps: int
    batch_rows: int = 8
    row_tokens: int = 256
    peak_rate: float = 3e-3
    floor: float = 0.05
    warmup_steps: int = 150
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for field in ("steps", "batch_rows", "row_tokens", "warmup_steps"):
            if (value := getattr(self, field)) < 1:
                raise ConfigError(f"{field} is {value}, expected at least 1")
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"floor is {self.floor}, expected 0 to 1")
        if not 0 < self.peak_rate < 1:
            raise ConfigError(f"peak_rate is {self.peak_rate}, expected a number above 0 and below 1")

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, the first being 0."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)

    @property
    def batch_tokens(self) -> int:
        """The tokens one step learns from."""
        return self.batch_rows * self.row_tokens
