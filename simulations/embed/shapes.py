"""The shapes: the four models in one table, with what each reads and in which stages it is trained.

It does not know how a model is built from its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from ...export.align.model import Shape
from ...export.align.schedule import Schedule
from .corpus import Role
from .vocabularies import VocabularyName

ModelName = Literal["spm", "bpe3", "bpe1", "drafter"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a training run: the number of layers while it lasts, and its schedule."""

    layers: int
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One model to train: its shape, its tokenizer, what it reads, and its stages, shallow to deep.

    Guarantees:
      - The last stage has all of the shape's layers, and no stage has fewer than the one before it.
    """

    shape: Shape
    vocabulary: VocabularyName
    role: Role
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        layers = [stage.layers for stage in self.stages]
        if layers != sorted(layers) or layers[-1:] != [self.shape.num_hidden_layers]:
            raise ValueError(f"stages have {layers} layers, must rise to {self.shape.num_hidden_layers}")

    def shortened(self, steps: int) -> Plan:
        """Returns the plan with about this many steps in all, in the same proportions."""
        total = sum(stage.schedule.steps for stage in self.stages)
        stages = tuple(
            replace(stage, schedule=replace(stage.schedule, steps=max(1, round(stage.schedule.steps * steps / total))))
            for stage in self.stages
        )
        return replace(self, stages=stages)


TARGET = Shape(
    hidden_size=128,
    num_hidden_layers=22,
    intermediate_size=384,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)
"""Deep and narrow: a step costs much for its few weights, as a large target's step does beside its drafter's."""

DRAFTER = Shape(
    hidden_size=128,
    num_hidden_layers=2,
    intermediate_size=384,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
)


def _target_stages(shallow_steps: int, deep_steps: int) -> tuple[Stage, ...]:
    return (
        Stage(layers=4, schedule=Schedule(steps=shallow_steps, peak_rate=4e-3, floor=0.4)),
        Stage(layers=22, schedule=Schedule(steps=deep_steps, peak_rate=2e-3, floor=0.02, warmup_steps=50)),
    )


DRAFTER_STAGES = (Stage(layers=2, schedule=Schedule(steps=4000, peak_rate=4e-3, floor=0.02)),)

MODELS: Mapping[ModelName, Plan] = MappingProxyType(
    {
        "spm": Plan(shape=TARGET, vocabulary="spm", role="target", stages=_target_stages(3200, 900)),
        "bpe3": Plan(shape=TARGET, vocabulary="bpe3", role="target", stages=_target_stages(3200, 900)),
        "bpe1": Plan(shape=TARGET, vocabulary="bpe1", role="target", stages=_target_stages(2400, 600)),
        "drafter": Plan(shape=DRAFTER, vocabulary="spm", role="drafter", stages=DRAFTER_STAGES),
    }
)
"""The drafter has the vocabulary of the target `spm`; its pairs with the two others are cross-vocabulary."""
