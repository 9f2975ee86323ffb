"""The proposal law r of one position: which target token a walk proposes, with which probability. It draws nothing.

A walk spells a target token in drafter tokens, at most ``budget`` of them (``verify.md`` has rule and proof). Node ids
are the trie's; ``ROOT`` stands for the position's start.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .rows import Rows
from .sampling import Probabilities, distribution
from .trie import ROOT, Integers, Trie


class Law:
    """The law of one position.

    Guarantees:
      - ``probability(t)`` is exactly the probability that ``walk`` proposes ``t``; the sum over all t is at most one,
        and what is missing is the probability of a failed walk.
      - A drafter row is evaluated only if a factor needs it, and all rows that one ``probability`` needs in one call.

    | at a node                        | drawn from the drafter's row restricted to               |
    |----------------------------------|----------------------------------------------------------|
    | start, fresh                     | roots                                                    |
    | start, with a carried token      | roots minus terminal children of the node before         |
    | not terminal                     | its children                                             |
    | terminal, with terminal children | its terminal children and the roots, each token once     |
    | terminal, without                | nothing: the walk ends there with probability one        |

    Args:
      trie: the canonical paths.
      rows: the drafter's rows in this block.
      start: the block's drafter tokens before this position.
      after: the node in which the previous position ended, ``ROOT`` if there is none.
      budget: drafter tokens this position may use, at least one.
      temperature: the target's.
    """

    def __init__(
        self, *, trie: Trie, rows: Rows, start: tuple[int, ...], after: int, budget: int, temperature: float
    ) -> None:
        self.trie, self.budget, self.greedy = trie, budget, temperature == 0
        self._rows, self._start, self._after, self._temperature = rows, start, after, temperature
        self._steps: dict[int, Probabilities] = {}

    def scores(self, node: int) -> NDArray[np.float32]:
        """Logits of what may be drawn at ``node``, in the order of ``steps``; minus infinity where claimed."""
        row = self._rows.after(self._start + self.trie.spelling(node))
        if node == ROOT:
            return self._root_scores(row, self._after)
        if self.trie.target[node] < 0:
            return row[self.trie.child_tokens(node)]
        return np.concatenate((self._root_scores(row, node), row[self.trie.terminal_children(node)]))

    def steps(self, node: int) -> Probabilities:
        """Distribution of the draw at ``node``: over its children, behind all roots where the node is terminal."""
        steps = self._steps.get(node)
        if steps is None:
            steps = self._steps[node] = distribution(self.scores(node), self._temperature)
        return steps

    def stop(self, node: int) -> float:
        """Probability that a walk at ``node``, with budget left, proposes its token: that the draw is a root's."""
        if self.trie.is_final(node):
            return 1.0
        return float(self.steps(node)[: len(self.trie.roots)].sum())

    def probability(self, target: int) -> float:
        """r(target); 0 where it has no path, the path is longer than the budget, or the walk rule cannot reach it."""
        branch = self.trie.branch(self.trie.node(target))
        if not 0 < len(branch) <= self.budget or not self.trie.reachable(target):
            return 0.0
        stops = len(branch) < self.budget and not self.trie.is_final(branch[-1])
        inner = branch if stops else branch[:-1]
        if inner:
            self._rows.after(self._start + self.trie.spelling(inner[-1]))
        r = self.stop(branch[-1]) if stops else 1.0
        for node, child in pairwise((ROOT, *branch)):
            r *= self.steps(node)[self._index(node, child)]
        return float(r)

    def known(self) -> tuple[Integers, Probabilities]:
        """Target ids whose r needs only the row at the start, and that r."""
        chosen = self.trie.single if self.budget == 1 else self.trie.single_final
        return self.trie.single_targets[chosen], self.steps(ROOT)[chosen]

    def _index(self, node: int, child: int) -> int:
        index = child - self.trie.first_child(node)
        return index if self.trie.target[node] < 0 else index + len(self.trie.roots)

    def _root_scores(self, row: NDArray[np.float32], after: int) -> NDArray[np.float32]:
        scores = row[self.trie.roots]
        scores[self.trie.claimed(after)] = -np.inf
        return scores
