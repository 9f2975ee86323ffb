"""Writes lessons: one target's decisions about one text become rows to learn from.

It knows no model; ``teacher.py`` says what a row holds.

What enters: every emitted position with the target's row, whether its token was accepted, corrected or the target's
own. Where a proposal was *rejected*, the drafter token by which it parted from what was emitted is listed in the row
where it did, however unlikely: else it would be part of the tail, whose inner shape no loss sees, and the loss could
not push exactly that mass down.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .context import Spelling
from .decoder import Logits
from .emission import Emission
from .lesson import Lesson
from .teacher import NOTHING, PathTree, Projection, View
from .trie import ROOT, Trie

#: Which emitted positions teach: all, or those alone where the drafter was corrected (Liu et al., OSD).
Positions = Literal["all", "wrong"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)


class LessonWriter:
    """Turns one target's decisions into lessons.

    Args:
      spelling: how the drafter reads the target's tokens.
      trie: the canonical paths.
      projection: how the target's distribution is seen in drafter tokens.
      width: listed drafter tokens of a row, K.
      positions: which teach.
      rejected: whether what was rejected is listed.
    """

    def __init__(
        self,
        spelling: Spelling,
        trie: Trie,
        projection: Projection = "prefix",
        width: int = 16,
        positions: Positions = "all",
        rejected: bool = True,
    ) -> None:
        self._spelling, self._trie, self._tree = spelling, trie, PathTree(trie)
        self._projection, self._width, self._rejected = projection, width, rejected
        self._positions = positions

    def write(
        self, prompt: Sequence[int], emitted: Sequence[Emission], rows: Logits, limit: int, written: float = 0.0
    ) -> Lesson:
        """Writes the lesson of one generated text.

        Args:
          prompt: target tokens before.
          emitted: what came behind.
          rows: float32 (n, target vocab), the target's logits for each of the last n emitted tokens.
          limit: longest lesson in drafter tokens; the text's beginning is cut.
          written: the time.
        """
        context, starts = self._spelling.context(prompt), list[int]()
        for emission in emitted:
            starts.append(len(context))
            context += self._spelling(emission.token)
        ends = [*starts[1:], len(context)]
        lesson, law = _blank(context, self._width, written), self._tree.law(rows)
        old = len(emitted) - len(law)
        judged = [
            _Position(self._trie, self._tree, emission, start, end, p)
            for emission, start, end, p in zip(emitted[old:], starts[old:], ends[old:], law, strict=True)
        ]
        taught = [self._positions == "all" or position.emission.kind == "corrected" for position in judged]
        self._judge(lesson, [position if teaches else None for position, teaches in zip(judged, taught, strict=True)])
        return lesson.latest(limit)

    def _judge(self, lesson: Lesson, positions: "Sequence[_Position | None]") -> None:
        """Fills the rows of a text's positions; None is one that teaches nothing."""
        for before, position in pairwise((None, *positions, None)):
            if position is not None:
                self._teach(lesson, position.start - 1, self._first(position, before), (before, position))
                self._inner(lesson, position)
                self._label(lesson, position)
            elif before is not None and self._projection == "law":
                self._teach(lesson, before.end - 1, before.ahead(len(before.branch))[1], (before,))

    def _first(self, position: "_Position", before: "_Position | None") -> View:
        """What the row before a position's token says."""
        if self._projection == "direct":
            return self._tree.single(position.p) if len(position.branch) == 1 else NOTHING
        roots = self._tree.below(position.p, ROOT)
        if self._projection == "prefix" or before is None:
            return roots
        stop, children = before.ahead(len(before.branch))
        return roots.mixed(stop, children)

    def _inner(self, lesson: Lesson, position: "_Position") -> None:
        """The rows within a token's path."""
        if self._projection == "law":
            for depth in range(1, len(position.branch)):
                self._teach(lesson, position.start - 1 + depth, position.ahead(depth)[1], (position,))

    def _teach(self, lesson: Lesson, row: int, view: View, about: "Sequence[_Position | None]") -> None:
        if row < 0 or not len(view.tokens):
            return
        parted = [position.parting for position in about if position is not None and self._rejected]
        wanted = [token for at, token in parted if at == row]
        lesson.teacher_ids[row], lesson.teacher_probs[row] = view.listed(self._width, wanted)
        lesson.taught[row] = True

    def _label(self, lesson: Lesson, position: "_Position") -> None:
        if len(position.branch) > 1 and position.start:
            rows = slice(position.start - 1, position.end - 1)
            lesson.labels[rows] = lesson.tokens[position.start : position.end]
            lesson.label_probs[rows] = self._tree.at(position.p, position.branch[-1])
            lesson.ngram[rows] = True


class _Position:
    """An emitted token in a context: drafter tokens ``start`` to ``end``, the nodes of its path, its row of p."""

    def __init__(
        self, trie: Trie, tree: PathTree, emission: Emission, start: int, end: int, p: NDArray[np.float32]
    ) -> None:
        self.emission, self.start, self.end, self.p = emission, start, end, p
        self.branch = trie.branch(trie.node(emission.token))
        self._trie, self._tree = trie, tree

    def ahead(self, depth: int) -> tuple[float, View]:
        """See ``PathTree.ahead``, at the node after ``depth`` of its drafter tokens."""
        return self._tree.ahead(self.p, self.branch[depth - 1]) if depth else (1.0, NOTHING)

    @property
    def parting(self) -> tuple[int, int]:
        """The row where the rejected proposal parts from what was emitted, and its token there; row -1 for none."""
        if self.emission.rejected is None:
            return -1, 0
        other = self._trie.branch(self._trie.node(self.emission.rejected))
        common = sum(a == b for a, b in zip(self.branch, other, strict=False))
        if common == len(other):
            return -1, 0
        return self.start - 1 + common, self._trie.token(other[common])


def _blank(tokens: Sequence[int], width: int, written: float) -> Lesson:
    length = len(tokens)
    return Lesson(
        tokens=np.asarray(tokens, dtype=np.int64),
        teacher_ids=np.zeros((length, width), np.int64),
        teacher_probs=np.zeros((length, width), np.float32),
        taught=np.zeros(length, np.bool_),
        labels=np.zeros(length, np.int64),
        label_probs=np.zeros(length, np.float32),
        ngram=np.zeros(length, np.bool_),
        written=written,
    )
