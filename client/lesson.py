"""What one generated text teaches the drafter: its context, with the target's judgement beside each row.

A lesson is the drafter's context of the text (``context.py``). The row before each emitted token carries the target's
distribution over *first draft tokens* (the ``TEACHER_WIDTH`` largest, the rest as tail mass). Where the emitted token
is an n-gram of draft tokens, the rows along its path carry that path as labels.

| projection of p            | a first draft token d gets                   | rows with a divergence           |
|----------------------------|----------------------------------------------|----------------------------------|
| ``direct`` (OmniDraft)     | p of the target token with d's bytes         | where a mapped token was emitted |
| ``prefix`` (ours, default) | p of all target tokens whose path starts so  | all                              |

Under the proposal law of ``law.py`` a walk proposes an n-gram through its first token, so the q that maximises
acceptance has the *prefix* mass there. The direct map teaches q to avoid the first tokens of likely n-grams.

Source: OmniDraft's hybrid distillation (ALGORITHMS §3). Truncation makes the divergence one over TEACHER_WIDTH + 1
outcomes, a lower bound of the full one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .context import Spelling
from .decoder import Logits
from .trie import Trie

TEACHER_WIDTH = 16

Projection = Literal["direct", "prefix"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One text of L drafter tokens; row i judges the token after ``tokens[: i + 1]``."""

    tokens: NDArray[np.int64]
    """(L,)"""
    teacher_ids: NDArray[np.int64]
    """(L, TEACHER_WIDTH) drafter tokens"""
    teacher_probs: NDArray[np.float32]
    """(L, TEACHER_WIDTH); zero where there is no teacher"""
    taught: NDArray[np.bool_]
    """(L,) rows that the divergence is taken on"""
    labels: NDArray[np.int64]
    """(L,)"""
    ngram: NDArray[np.bool_]
    """(L,) rows that the n-gram likelihood is taken on"""
    label_probs: NDArray[np.float32]
    """(L,) the target's probability of the n-gram's token, on the rows of its path; else 0"""

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(L,) rows that teach something."""
        return self.taught | self.ngram

    @property
    def rows(self) -> int:
        """How many rows teach something."""
        return int(self.judged.sum())


class LessonWriter:
    """Turns one target's decisions into lessons."""

    def __init__(self, spelling: Spelling, trie: Trie, projection: Projection = "prefix") -> None:
        self._spelling, self._trie, self._projection = spelling, trie, projection
        mapped = [t for t in trie if projection == "prefix" or len(trie.path(t)) == 1]
        self._mapped = np.asarray(mapped, dtype=np.intp)
        self._firsts, self._group = np.unique([trie.path(t)[0] for t in mapped], return_inverse=True)

    def write(self, prompt: Sequence[int], emitted: Sequence[int], rows: Logits, limit: int) -> Lesson:
        """Writes the lesson of one generated text.

        Args:
          prompt: target tokens before.
          emitted: n target tokens.
          rows: float32 (n, target vocab), the target's logits for each.
          limit: longest lesson in drafter tokens; the text's beginning is cut.
        """
        context, starts = self._spelling.context(prompt), list[int]()
        for token in emitted:
            starts.append(len(context))
            context += self._spelling(token)
        lesson = _blank(context)
        ids, probs = self._teacher(rows)
        for index, (token, start) in enumerate(zip(emitted, starts, strict=True)):
            if start:
                self._judge(lesson, start - 1, token, ids[index], probs[index])
        return _cut(lesson, limit)

    def _judge(self, lesson: Lesson, row: int, token: int, ids: NDArray[np.int64], probs: NDArray[np.float32]) -> None:
        path = self._trie.path(token)
        if self._projection == "prefix" or len(path) == 1:
            lesson.teacher_ids[row], lesson.teacher_probs[row], lesson.taught[row] = ids, probs, True
        if len(path) > 1:
            lesson.labels[row : row + len(path)], lesson.ngram[row : row + len(path)] = path, True

    def _teacher(self, rows: Logits) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The largest projected probabilities, (n, TEACHER_WIDTH) drafter tokens and values."""
        shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
        mapped = shifted[:, self._mapped] / shifted.sum(axis=1, keepdims=True)
        projected = np.stack([np.bincount(self._group, row, len(self._firsts)) for row in mapped])
        width = min(TEACHER_WIDTH, projected.shape[1])
        top = np.argpartition(projected, -width, axis=1)[:, -width:]
        ids = np.zeros((len(rows), TEACHER_WIDTH), np.int64)
        probs = np.zeros((len(rows), TEACHER_WIDTH), np.float32)
        ids[:, :width] = self._firsts[top]
        probs[:, :width] = np.take_along_axis(projected, top, axis=1)
        return ids, probs


def _blank(tokens: Sequence[int]) -> Lesson:
    length = len(tokens)
    return Lesson(
        tokens=np.asarray(tokens, dtype=np.int64),
        teacher_ids=np.zeros((length, TEACHER_WIDTH), np.int64),
        teacher_probs=np.zeros((length, TEACHER_WIDTH), np.float32),
        taught=np.zeros(length, np.bool_),
        labels=np.zeros(length, np.int64),
        ngram=np.zeros(length, np.bool_),
        label_probs=np.zeros(length, np.float32),
    )


def _cut(lesson: Lesson, limit: int) -> Lesson:
    if len(lesson.tokens) <= limit:
        return lesson
    return Lesson(**{name: value[-limit:] for name, value in vars(lesson).items()})
