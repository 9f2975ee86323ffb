"""Where a learner is: a point of training, and the blobs that keep it over a restart. It trains nothing.

Lessons are not in it; they are many and change one by one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...common.errors import ModelError
from ...common.lora import LoraAdapter, LoraLayout
from ...common.messages import TrainCounters
from .trainer import AdamW, AdamWConfig

#: Names of the blobs.
ADAPTER, OPTIMIZER, LEARNER = "adapter", "optimizer", "learner"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of training: nothing in it ever changes."""

    adapter: LoraAdapter
    optimizer: AdamW
    generators: Mapping[str, Any]
    """States of the generators by name, as NumPy gives them."""
    fresh: int = 0
    """Number of the first lesson since the last training began."""
    left: int = 0
    """Steps left of a training that has begun."""
    first: int = 0
    """Number of the first lesson which that training may still use."""
    losses: tuple[float, ...] = ()
    """Of the newest steps."""
    done: TrainCounters = field(default_factory=TrainCounters)

    def to_blobs(self, next_lesson: int) -> dict[str, bytes]:
        """Everything but the lessons; ``next_lesson`` is the number that the next one gets."""
        names = ("generators", "fresh", "left", "first", "losses")
        values = {name: getattr(self, name) for name in names}
        learner = {"schema": _SCHEMA, "next_lesson": next_lesson, "done": asdict(self.done), **values}
        return {
            ADAPTER: self.adapter.to_bytes(),
            OPTIMIZER: self.optimizer.to_bytes(),
            LEARNER: json.dumps(learner, separators=(",", ":")).encode(),
        }

    @classmethod
    def from_blobs(cls, blobs: Mapping[str, bytes], layout: LoraLayout, config: AdamWConfig) -> "tuple[Point, int]":
        """What ``to_blobs`` gave: the point and the number of the next lesson.

        Raises:
          ModelError: a blob is missing, damaged, of another version or for another adapter layout.
        """
        missing = {ADAPTER, OPTIMIZER, LEARNER} - set(blobs)
        if missing:
            raise ModelError(f"the learner's state has no {', '.join(sorted(missing))}; start without it")
        try:
            value = json.loads(blobs[LEARNER])
            if value["schema"] != _SCHEMA:
                raise ModelError(f"the learner's state is of version {value['schema']}, expected {_SCHEMA}")
            point = cls(
                adapter=layout.read(blobs[ADAPTER]),
                optimizer=AdamW.from_bytes(config, blobs[OPTIMIZER]),
                generators={str(name): dict(state) for name, state in value["generators"].items()},
                fresh=int(value["fresh"]),
                left=int(value["left"]),
                first=int(value["first"]),
                losses=tuple(map(float, value["losses"])),
                done=TrainCounters(**value["done"]),
            )
            return point, int(value["next_lesson"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"the learner's state is damaged: {error!r}; start without it") from error
