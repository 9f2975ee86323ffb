"""A device in a federation: adapts on its own prompts and answers with a clipped update. Its text never leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..common.messages import EvaluateTask, Evaluation, Release, TrainTask, Update, clipped
from ..common.metrics import DraftCounters
from .decoding.options import Options
from .learning.learner import LearnerConfig
from .online.adaptation import adapt_online
from .pair import Pair
from .prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class Participant:
    """The ``Device`` that runs real models. Stateless between rounds: each starts from the release it is sent."""

    name: str
    pair: Pair
    prompts: Sequence[Prompt]
    """What the user asks; each round takes the next ``prompts_per_round`` of a seeded order."""
    held_out: Sequence[Prompt]
    options: Options
    learning: LearnerConfig
    prompts_per_round: int

    @property
    def family(self) -> str:
        return self.pair.family

    def train(self, task: TrainTask, release: Release) -> Update:
        """Adapts the release on this round's prompts."""
        config = replace(self.learning, factors=task.factors)
        seed = self._seed(task)
        learner = self.pair.learner(release.adapter, config, seed)
        options = replace(self.options, seed=seed)
        counters = adapt_online(self.pair, learner, self.this_round(task), options)
        delta = {
            n: v for n, v in learner.adapter.minus(release.adapter).items() if n.rpartition(".")[2] in task.factors
        }
        return Update(
            client=self.name,
            family=self.family,
            base=release.base,
            layout=release.adapter.layout.fingerprint,
            release=release.adapter.digest,
            delta=clipped(delta, task.clip_norm),
            weight=float(counters.tokens),
            counters=counters,
            training=learner.training,
        )

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        """Measures acceptance of the release on held-out prompts."""
        self.pair.adapt(release.adapter)
        options = replace(self.options, seed=task.seed)
        counters = sum((self.pair.drafted.run(p.text, options).counters for p in self.held_out), DraftCounters())
        return Evaluation(client=self.name, family=self.family, counters=counters)

    def _seed(self, task: TrainTask) -> int:
        """Of this client in this round of this run."""
        return int(np.random.default_rng([task.seed, task.round, *self.name.encode()]).integers(2**31))

    def this_round(self, task: TrainTask) -> list[Prompt]:
        """The prompts of round ``task.round`` (from 1), in an order fixed per client, again and again."""
        order = np.random.default_rng([task.seed, *self.name.encode()]).permutation(len(self.prompts))
        first = (task.round - 1) * self.prompts_per_round
        return [self.prompts[order[i % len(order)]] for i in range(first, first + self.prompts_per_round)]
