"""A way to draft and to learn, as data; the one place that turns it into settings of the device."""

import re
from dataclasses import dataclass, fields, replace

from ...client.decoding.options import MAX_DRAFT_TOKENS, Options
from ...client.decoding.sampling import Sampling
from ...client.learning.learner import LearnerConfig
from ...client.learning.schedule import PLANS, Schedule
from ...client.learning.teacher import PROJECTIONS, Projection
from ...client.learning.trainer import AdamWConfig
from ...client.pacing.controllers import CONTROLLERS
from ...client.spelling.tokenizer_pair import PathKind, path_kind
from ...common.errors import ConfigError
from ...common.losses import DIVERGENCES
from ...common.objective import Objective

_CHOICES = {
    "divergence": DIVERGENCES,
    "controller": tuple(CONTROLLERS),
    # An idle learner waits for a background thread, which a study has not.
    "schedule": tuple(name for name, plan in PLANS.items() if plan.after_texts),
    "projection": PROJECTIONS,
}
#: Fields that neither generation without learning nor its figures depend on.
_OF_LEARNING = (
    "published", "projection", "divergence", "ngram_weight", "dynamic", "beta", "eta", "samples", "warmup_steps",
    "schedule", "every_prompts", "batch_size", "teacher_width", "rejected", "learning_rate", "weight_decay",
    "replay_capacity",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Method:
    """One ``[[methods]]``.

    published: row names in ``published.toml``; the first that a target has there is set beside this method's figures.
    against: the method that this one is compared with, beside the comparison with no training.
    steps: training steps each time, 0 for no training. every_prompts: prompts between two times.
    draft_tokens: per block, 0 for the study's own number. alpha: of LoRA, 0 for twice the rank.
    """

    name: str
    published: tuple[str, ...] = ()
    against: str = ""
    paths: str = "full"
    draft_tokens: int = 0
    controller: str = "fixed"
    projection: Projection = "prefix"
    divergence: str = Objective().divergence
    ngram_weight: float = Objective().ngram_weight
    dynamic: bool = False
    beta: float = Objective().beta
    eta: float = Objective().eta
    samples: int = Objective().samples
    warmup_steps: int = 0
    schedule: Schedule = "prompts"
    steps: int = LearnerConfig().steps
    every_prompts: int = LearnerConfig().every_prompts
    batch_size: int = LearnerConfig().batch_size
    replay_capacity: int = LearnerConfig().replay_capacity
    teacher_width: int = LearnerConfig().teacher_width
    rejected: bool = LearnerConfig().rejected
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    rank: int = 32
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if not slug(self.name):
            raise ConfigError(f"name is {self.name!r}, expected one with letters or digits")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        if self.steps < 0:
            raise ConfigError(f"steps is {self.steps}, expected 0 (no training) or more")
        if not 0 <= self.draft_tokens <= MAX_DRAFT_TOKENS:
            raise ConfigError(f"draft_tokens is {self.draft_tokens}, expected 0 to {MAX_DRAFT_TOKENS}")
        if not 1 <= self.rank <= 256:
            raise ConfigError(f"rank is {self.rank}, expected 1 to 256")
        if self.alpha < 0:
            raise ConfigError(f"alpha is {self.alpha}, expected a number >= 0")
        path_kind(self.paths)
        learner_config(self)  # checks the other fields

    @property
    def learns(self) -> bool:
        return self.steps > 0

    @property
    def path_kind(self) -> PathKind:
        """Which of the target's tokens may be drafted."""
        return path_kind(self.paths)

    @property
    def lora_alpha(self) -> float:
        return self.alpha or 2.0 * self.rank

    def untrained(self, rank: int) -> "Method":
        """The same drafting without learning; methods that draft alike have the same.

        Args:
          rank: of the adapter that changes nothing.
        """
        blank = {f.name: f.default for f in fields(self) if f.name in _OF_LEARNING}
        length = f"{self.draft_tokens} draft tokens" if self.draft_tokens else ""
        words = ("no training", self.paths, self.controller if self.controller != "fixed" else "", length)
        name = ", ".join(filter(None, words))
        return replace(self, **blank, name=name, against="", steps=0, rank=rank, alpha=0.0)  # type: ignore[arg-type]


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-.")


def learner_config(method: Method) -> LearnerConfig:
    """How the device learns under ``method``.

    Raises:
      ConfigError: a value is out of range.
    """
    objective = Objective(**{f.name: getattr(method, f.name) for f in fields(Objective)})
    return LearnerConfig(
        schedule=method.schedule,
        every_prompts=method.every_prompts,
        steps=max(method.steps, 1),
        batch_size=method.batch_size,
        replay_capacity=method.replay_capacity,
        teacher_width=method.teacher_width,
        rejected=method.rejected,
        objective=objective,
        optimizer=AdamWConfig(learning_rate=method.learning_rate, weight_decay=method.weight_decay),
        projection=method.projection,
    )


def options(method: Method, *, temperature: float, max_new_tokens: int, draft_tokens: int, seed: int) -> Options:
    """How the device generates under ``method``.

    Args:
      draft_tokens: where the method names none.

    Raises:
      ConfigError: a value is out of range.
    """
    return Options(
        sampling=Sampling(temperature=temperature),
        max_new_tokens=max_new_tokens,
        draft_tokens=method.draft_tokens or draft_tokens,
        controller=method.controller,
        seed=seed,
    )
