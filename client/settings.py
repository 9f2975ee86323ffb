"""What a person may set about generating and learning, as tables of a settings file. They know no file."""

from dataclasses import dataclass, fields

from ..common.errors import ConfigError
from ..common.objective import Objective
from .decoding.options import Options
from .decoding.sampling import Sampling
from .learning.learner import LearnerConfig
from .learning.trainer import AdamWConfig


@dataclass(frozen=True, kw_only=True)
class GenerationTable:
    """``[generation]``: how clients generate, while they learn and when they are measured."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 48
    draft_tokens: int = 4

    def options(self, seed: int) -> Options:
        sampling = Sampling(**{name.name: getattr(self, name.name) for name in fields(Sampling)})
        return Options(sampling=sampling, max_new_tokens=self.max_new_tokens, draft_tokens=self.draft_tokens, seed=seed)

    def __post_init__(self) -> None:
        self.options(seed=0)  # checks every field


@dataclass(frozen=True, kw_only=True)
class LearningTable:
    """``[learning]``: what a client does with its prompts in a round."""

    prompts_per_round: int = 16
    every_prompts: int = LearnerConfig().every_prompts
    steps: int = LearnerConfig().steps
    batch_size: int = LearnerConfig().batch_size
    replay_capacity: int = LearnerConfig().replay_capacity
    learning_rate: float = AdamWConfig().learning_rate
    weight_decay: float = AdamWConfig().weight_decay
    ngram_weight: float = Objective().ngram_weight
    divergence: str = Objective().divergence

    def __post_init__(self) -> None:
        if self.prompts_per_round < 1:
            raise ConfigError(f"prompts_per_round is {self.prompts_per_round}, expected at least 1")
        self.config()  # checks the other fields

    def config(self) -> LearnerConfig:
        return LearnerConfig(
            every_prompts=self.every_prompts,
            steps=self.steps,
            batch_size=self.batch_size,
            replay_capacity=self.replay_capacity,
            objective=Objective(ngram_weight=self.ngram_weight, divergence=self.divergence),
            optimizer=AdamWConfig(learning_rate=self.learning_rate, weight_decay=self.weight_decay),
        )
