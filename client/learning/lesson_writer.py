"""Writes lessons: one target's decisions about one text become rows to learn from.

It knows no model; ``teacher.py`` says what a row holds.

What enters: every emitted position with the target's row, whether its token was accepted, corrected or the target's
own. Where a proposal was *rejected*, the drafter token by which it parted from what was emitted is listed in the row
where it did, however unlikely: else it would be part of the tail, whose inner shape no loss sees, and the loss could
not push exactly that mass down.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...common.spelling import Spelling
from ..decoding.emission import Emission
from ..runtimes.decoder import Logits
from ..spelling.trie import ROOT, Trie
from .lesson import Lesson
from .teacher import NOTHING, PathTree, Projection, View

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
        self.spelling, self.trie, self.tree = spelling, trie, PathTree(trie)
        self.projection, self.width, self.rejected = projection, width, rejected
        self.positions = positions

    def begin(self, prompt: Sequence[int], limit: int) -> "Writing":
        """Begins the lesson of a text.

        Args:
          prompt: target tokens before it.
          limit: longest lesson in drafter tokens; the text's beginning is cut.
        """
        return Writing(self, prompt, limit)


class Writing:
    """The lesson of one text, while that is generated.

    A row of the target is reduced to K drafter tokens when it comes: what is held are ``limit`` rows of 12 K bytes, and
    of the target's rows the newest alone, whatever its vocabulary and however long the text.
    """

    def __init__(self, writer: LessonWriter, prompt: Sequence[int], limit: int) -> None:
        """See ``LessonWriter.begin``."""
        self._writer, self._limit = writer, limit
        self._tokens = writer.spelling.context(prompt)
        self._teachers = dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]()
        """By row, in ascending order."""
        self._likelihoods = dict[int, float]()
        """p of the n-gram that a row's label is of, by row, in ascending order."""
        self._before: _Position | None = None

    def add(self, emitted: Sequence[Emission], rows: Logits) -> None:
        """Goes on with what was emitted.

        Args:
          rows: float32 (n, target vocab), the target's logits for each of n emitted tokens; not kept.
        """
        for emission, row in zip(emitted, rows, strict=True):
            start = len(self._tokens)
            self._tokens += self._writer.spelling(emission.token)
            taught = self._writer.positions == "all" or emission.kind == "corrected"
            self._judge(_Position(self._writer, emission, start, len(self._tokens), row) if taught else None)
        for held in (self._teachers, self._likelihoods):
            _drop_before(held, len(self._tokens) - self._limit)

    def lesson(self, written: float = 0.0) -> Lesson:
        """What was written, at the time ``written``; ends the text."""
        self._judge(None)
        first = max(0, len(self._tokens) - self._limit)
        lesson = _blank(self._tokens[first:], self._writer.width, written)
        for row, (ids, probs) in self._teachers.items():
            lesson.teacher_ids[row - first], lesson.teacher_probs[row - first] = ids, probs
            lesson.taught[row - first] = True
        for row, p in self._likelihoods.items():
            lesson.labels[row - first], lesson.label_probs[row - first] = self._tokens[row + 1], p
            lesson.ngram[row - first] = True
        return lesson

    def _judge(self, position: "_Position | None") -> None:
        """Writes the rows up to a position's last token; None is one that teaches nothing."""
        before, self._before = self._before, position
        if position is not None:
            self._teach(position.start - 1, self._first(position, before), (before, position))
            self._inner(position)
            self._label(position)
        elif before is not None and self._writer.projection == "law":
            self._teach(before.end - 1, before.ahead(len(before.branch))[1], (before,))

    def _first(self, position: "_Position", before: "_Position | None") -> View:
        """What the row before a position's token says."""
        tree, projection = self._writer.tree, self._writer.projection
        if projection == "direct":
            return tree.single(position.p) if len(position.branch) == 1 else NOTHING
        roots = tree.below(position.p, ROOT)
        if projection == "prefix" or before is None:
            return roots
        stop, children = before.ahead(len(before.branch))
        return roots.mixed(stop, children)

    def _inner(self, position: "_Position") -> None:
        """The rows within a token's path."""
        if self._writer.projection == "law":
            for depth in range(1, len(position.branch)):
                self._teach(position.start - 1 + depth, position.ahead(depth)[1], (position,))

    def _teach(self, row: int, view: View, about: "Sequence[_Position | None]") -> None:
        if row < 0 or not len(view.tokens):
            return
        parted = [position.parting for position in about if position is not None and self._writer.rejected]
        wanted = [token for at, token in parted if at == row]
        self._teachers[row] = view.listed(self._writer.width, wanted)

    def _label(self, position: "_Position") -> None:
        if len(position.branch) > 1 and position.start:
            p = self._writer.tree.at(position.p, position.branch[-1])
            self._likelihoods |= dict.fromkeys(range(position.start - 1, position.end - 1), p)


class _Position:
    """An emitted token in a context: drafter tokens ``start`` to ``end``, the nodes of its path, its row of p."""

    def __init__(self, writer: LessonWriter, emission: Emission, start: int, end: int, row: Logits) -> None:
        self.emission, self.start, self.end = emission, start, end
        self._trie, self._tree = writer.trie, writer.tree
        self.p: NDArray[np.float32] = self._tree.law(row[None])[0]
        self.branch = self._trie.branch(self._trie.node(emission.token))

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


def _drop_before(held: dict[int, Any], row: int) -> None:
    """``held`` is by row, in ascending order."""
    while held and (first := next(iter(held))) < row:
        del held[first]


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
