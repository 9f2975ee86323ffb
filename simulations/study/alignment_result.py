"""What one arm of a study of direct alignment found, as its file holds it. It knows no model and no page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...common.metrics import DraftCounters


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """What a drafter did for one target. tasks: counters on each task's unseen prompts.

    parameters: of the target. step_ms: of a call of it that scores one token, the first decile of some.
    """

    tasks: Mapping[str, DraftCounters]
    parameters: int
    step_ms: float


@dataclass(frozen=True, kw_only=True)
class AlignmentResult:
    """What an arm found.

    targets: by name. parameters, step_ms: of the drafter, as of a target.
    validation: nats per token of held-out text after pre-training, None where no text was held out.
    best_step: of the model that was kept, 0 for the pre-trained one. measures: what decided that, as finetune tells it.
    seconds: by the clock; cpu_seconds: of the process. Both hold what the arm was the first to need.
    """

    key: str
    targets: Mapping[str, TargetFacts]
    parameters: int
    step_ms: float
    validation: float | None = None
    best_step: int = 0
    measures: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AlignmentResult":
        targets = {
            name: TargetFacts(**{**facts, "tasks": {task: DraftCounters(**c) for task, c in facts["tasks"].items()}})
            for name, facts in value["targets"].items()
        }
        return cls(**{**value, "targets": targets, "measures": tuple(value["measures"])})
