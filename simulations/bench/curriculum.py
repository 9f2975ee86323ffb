"""The lessons that the training benchmark teaches: the same for every contestant, made from a seed. It knows no model.

Tokens follow a skewed law over a part of the vocabulary, and each token has a teacher's row of its own, so that there
is something to learn. Every position is judged.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...client.learning.lesson import Lesson

_WORDS = 200
"""How many different tokens occur, and so how many different teacher's rows."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """vocabulary: tokens 0.. of the drafter. texts, length: of a batch. width: listed teacher tokens of a row."""

    vocabulary: int
    texts: int
    length: int
    width: int
    seed: int

    def batches(self) -> Iterator[list[Lesson]]:
        """Batches without end."""
        rng = np.random.default_rng(self.seed)
        words = min(_WORDS, self.vocabulary)
        known = rng.permutation(self.vocabulary)[:words]
        width = min(self.width, self.vocabulary - 1)
        listed = np.stack([rng.permutation(self.vocabulary)[:width] for _ in range(words)])
        masses = np.sort(rng.dirichlet(np.full(width + 1, 0.2), words).astype(np.float32))[:, ::-1][:, :width]
        law = 1 / np.arange(1, words + 1)
        while True:
            places = rng.choice(words, (self.texts, self.length), p=law / law.sum())
            yield [_lesson(known[row], listed[row], masses[row]) for row in places]


def _lesson(tokens: np.ndarray, ids: np.ndarray, probs: np.ndarray) -> Lesson:
    return Lesson(
        tokens=tokens,
        teacher_ids=ids,
        teacher_probs=np.ascontiguousarray(probs),
        taught=np.ones(len(tokens), np.bool_),
        labels=ids[:, 0],
        ngram=np.ones(len(tokens), np.bool_),
        label_probs=np.ascontiguousarray(probs[:, 0]),
    )
