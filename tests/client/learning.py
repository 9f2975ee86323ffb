"""A device's learner with everything around it noted. It knows no test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.learning.learner import LearnerConfig, OnlineLearner, Step
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.replay import ReplayChange
from fleetdraft.client.learning.trainer import Gradient, TrainStep
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.objective import Objective

CONFIG = LearnerConfig(every_prompts=4, steps=3)
IDLE = replace(CONFIG, schedule="idle", steps=4, batch_size=2)


class Watched:
    """A training step that notes its batches."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.batches: list[list[Lesson]] = []

    def __call__(
        self,
        adapter: Mapping[str, np.ndarray],
        lessons: Sequence[Lesson],
        objective: Objective,
        rng: np.random.Generator,
    ) -> Gradient:
        self.batches.append(list(lessons))
        return self._step(adapter, lessons, objective, rng)

    def close(self) -> None:
        self._step.close()


class Head:
    """Counts its trainings."""

    def __init__(self) -> None:
        self.trainings = 0

    def train(self) -> None:
        self.trainings += 1


class Home:
    """A device's learner on the ``spm`` pair, which reads texts that the target alone has written."""

    def __init__(self, bundle: Bundle, pair: Pair, config: LearnerConfig, seed: int = 3) -> None:
        drafter, self.head, self.pair = pair.drafter, Head(), pair
        step = TrainStep(drafter.train_graph, drafter.weights, drafter.model.threads)
        self.step, self.forces, self.saved = Watched(step), list[str](), list[Any]()
        self.table: dict[int, Lesson] = {}
        self.on_step: Callable[[], None] = lambda: None
        self.learner = OnlineLearner(
            step=self.step,
            writer=pair.lesson_writer(config),
            adapter=bundle.adapter(),
            config=config,
            seed=seed,
            on_change=lambda adapter: self.forces.append(adapter.digest),
            on_step=lambda: self.on_step(),
            on_replay=self._mirror,
            head=self.head,
        )

    def _mirror(self, change: ReplayChange) -> None:
        self.table.update(change.added)
        for number in change.dropped:
            del self.table[number]

    def read(self, prompts: Sequence[Prompt]) -> "Home":
        for prompt in prompts:
            self.learner.begin(self.pair.target_codec.prompt_tokens(prompt.text))
            self.pair.alone.run(prompt.text, Options(max_new_tokens=12), self.learner)
            self.learner.end()
        return self

    def save(self) -> None:
        self.saved.append((self.learner.checkpoint(), dict(self.table)))

    @property
    def digest(self) -> str:
        return self.learner.adapter.digest
