"""The proposal law r of one position: which target token a walk proposes, with which probability. It draws nothing.

A walk spells a target token in drafter tokens, at most ``budget`` of them (``verify.md`` has rule and proof). Node ids
are the trie's; ``ROOT`` stands for the position's start.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .rows import Rows
from .sampling import Probabilities, relative
from .trie import ROOT, Integers, Trie

#: Weight of a root where the same token also leads into a longer target token: a target's own tokenizer seldom cuts
#: there. Any weight is exact; compare others with ``simulations/bench/acceptance.py``.
CUT = 0.02


class Law:
    """The law of one position.

    Guarantees:
      - ``probability(t)`` is exactly the probability that ``walk`` proposes ``t``; the sum over all t is one, if the
        position can be begun at all (``possible``).
      - A drafter row is evaluated only if a factor needs it, and all rows that one ``probability`` needs in one call.

    With ``m`` drafter tokens left at a node, its children and the roots are those that ``m`` tokens can complete:

    | at a node              | drawn by the drafter's row over                                                     |
    |------------------------|-------------------------------------------------------------------------------------|
    | start                  | roots, each at weight ``CUT`` if it is also a child of the node before               |
    | not terminal           | its children                                                                        |
    | terminal with children | its children, and the roots, each at weight ``CUT`` if it is also a child            |
    | terminal without       | nothing: the walk ends there with probability one                                   |

    Args:
      trie: the canonical paths.
      rows: the drafter's rows in this block.
      start: the block's drafter tokens before this position.
      after: the node of the target token before this position, ``ROOT`` if there is none.
      budget: drafter tokens this position may use, at least one.
      temperature: of the drafter; 0 where the target's is.
    """

    def __init__(
        self, *, trie: Trie, rows: Rows, start: tuple[int, ...], after: int, budget: int, temperature: float
    ) -> None:
        self.trie, self.budget, self.greedy = trie, budget, temperature == 0
        self._rows, self._start, self._after, self._temperature = rows, start, after, temperature
        self._steps: dict[int, Probabilities] = {}

    @property
    def possible(self) -> bool:
        """Whether the budget completes any target token."""
        return len(self.trie.child_tokens(ROOT, self.budget)) > 0

    def children(self, node: int) -> Integers:
        """Drafter tokens of the children that a walk at ``node`` may step to; none for the root, which has roots."""
        return self.trie.child_tokens(node, self._left(node))

    def ends(self, node: int) -> bool:
        """Whether every walk that comes to ``node`` proposes its token."""
        return self.trie.ends(node, self._left(node))

    def scores(self, node: int) -> NDArray[np.float32]:
        """Logits of what may be drawn at ``node``: its children in their order, then, if it is terminal, the roots."""
        row = self._rows.after(self._start + self.trie.spelling(node))
        children = row[self.children(node)]
        if self.trie.target[node] < 0:
            return children
        return np.concatenate((children, row[self.trie.child_tokens(ROOT, self._left(node))]))

    def steps(self, node: int) -> Probabilities:
        """Distribution of the draw at ``node``, in the order of ``scores``."""
        steps = self._steps.get(node)
        if steps is None:
            steps = self._steps[node] = self._weighted(node, self._relative(self.scores(node)))
        return steps

    def stop(self, node: int) -> float:
        """Probability that a walk at ``node``, with budget left, proposes its token: that the draw is a root's."""
        return 1.0 if self.ends(node) else float(self.steps(node)[len(self.children(node)) :].sum())

    def probability(self, target: int) -> float:
        """r(target); 0 where it has no path or the path is longer than the budget."""
        branch = self.trie.branch(self.trie.node(target))
        if not 0 < len(branch) <= self.budget:
            return 0.0
        inner = branch[:-1] if self.ends(branch[-1]) else branch
        if inner:
            self._rows.after(self._start + self.trie.spelling(inner[-1]))
        r = self.stop(branch[-1])
        for node, child in pairwise((ROOT, *branch)):
            r *= self.steps(node)[child - self.trie.first_child(node)]
        return float(r)

    def known(self) -> tuple[Integers, Probabilities]:
        """Target ids whose r needs only the row at the start, and that r."""
        chosen = self.trie.single_ends(self.budget)
        return self.trie.single_targets[chosen], self.steps(ROOT)[chosen] if len(chosen) else np.empty(0)

    def _left(self, node: int) -> int:
        return self.budget - self.trie.depth(node)

    def _relative(self, scores: NDArray[np.float32]) -> Probabilities:
        """Unnormalised probabilities; all alike where the drafter forbids everything that a walk may do."""
        if scores[0] == -np.inf and np.isneginf(scores).all():
            return np.ones(len(scores))
        return relative(scores, self._temperature)

    def _weighted(self, node: int, weights: Probabilities) -> Probabilities:
        """``weights`` of the draw at ``node`` made a distribution, those of claimed roots lowered before. In place."""
        at, behind = (self._after, 0) if node == ROOT else (node, len(self.children(node)))
        if self.trie.target[at] >= 0:
            weights[self.trie.claimed(at, self._left(node)) + behind] *= CUT
        weights /= weights.sum()
        return weights
