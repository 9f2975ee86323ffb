"""The proposal law r of one position: which target token a walk proposes, with which probability. It draws nothing.

A walk spells a target token in drafter tokens, at most ``budget`` of them (``verify.md`` has rule and proof). Node ids
are the trie's; ``ROOT`` stands for the position's start.
"""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..runtimes.rows import Rows
from ..spelling.trie import ROOT, Integers, Trie
from .sampling import Probabilities, Weights, most_likely, relative

#: Weight of a root where the same token also leads into a longer target token: a target's own tokenizer seldom cuts
#: there. Any weight is exact; compare others with ``simulations/bench/acceptance.py``.
CUT = 0.02
_CUT = np.float32(CUT)


class Law:
    """The law of one position.

    Guarantees:
      - ``probability(t)`` is exactly the probability that ``walk`` proposes ``t``; the sum over all t is one, if the
        position can be begun at all (``possible``).
      - A drafter row is evaluated only if a factor needs it, and all rows that one ``probability`` needs in one call.

    With ``m`` drafter tokens left at a node, its children and the roots are those that ``m`` tokens can complete:

    | at a node              | drawn by the drafter's row                                                          |
    |------------------------|-------------------------------------------------------------------------------------|
    | start                  | a root, each at weight ``CUT`` if it is also a child of the node before              |
    | not terminal           | a child                                                                             |
    | terminal with children | whether the walk stops: the weight of the roots, each at ``CUT`` if it is also a     |
    |                        | child, beside that of the children; if it does not, a child                          |
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
        self.start, self._rows, self._after, self._temperature = start, rows, after, temperature
        self._roots, self._children = dict[int, Weights](), dict[int, Weights]()

    def within(self, budget: int) -> "Law":
        """The law of the same position with another budget."""
        return self if budget == self.budget else self._at(self.start, self._after, budget)

    def following(self, node: int, budget: int) -> "Law":
        """The law of the position behind a walk that proposed the token of ``node``."""
        behind = self._at(self.start + self.trie.spelling(node), node, budget)
        if node in self._roots and budget == self._left(node):
            behind._roots[ROOT] = self._roots[node]  # the same row, the same budget, the same children before
        return behind

    def _at(self, start: tuple[int, ...], after: int, budget: int) -> "Law":
        return Law(
            trie=self.trie, rows=self._rows, start=start, after=after, budget=budget, temperature=self._temperature
        )

    @property
    def possible(self) -> bool:
        """Whether the budget completes any target token."""
        return self.trie.goes_on(ROOT, self.budget)

    def ends(self, node: int) -> bool:
        """Whether every walk that comes to ``node`` proposes its token."""
        return self.trie.target[node] >= 0 and not self.trie.goes_on(node, self._left(node))

    def best_root(self, node: int) -> tuple[int, float]:
        """The likeliest drafter token of ``roots(node)`` whatever ``CUT``, the first of ties, and its score."""
        row, left = self._row(node), self._left(node)
        best = int(row.argmax())
        if not self.trie.is_root(best, left):
            mask = self.trie.root_mask(left)
            scores = row[: len(mask)] + mask
            best = int((mask if np.isneginf(scores).all() else scores).argmax())
        return best, row.item(best)

    def best_child(self, node: int) -> tuple[int, float]:
        """The likeliest index of ``children(node)``, the first of ties, and its score."""
        scores = self._child_scores(node)
        best = int(scores.argmax())
        return best, scores.item(best)

    def roots(self, node: int) -> Weights:
        """Over drafter tokens: what the next target token begins with, seen from ``node``; at ``ROOT``, this one."""
        roots = self._roots.get(node)
        if roots is None:
            left, before = self._left(node), self._after if node == ROOT else node
            mask = self.trie.root_mask(left)
            claimed = self.trie.child_tokens(before, left) if before != ROOT else None
            scores = self._row(node)[: len(mask)] + mask
            roots = self._roots[node] = self._weights(scores, mask, claimed)
        return roots

    def children(self, node: int) -> Weights:
        """Over the children of ``node``, which is not the root, in their order."""
        children = self._children.get(node)
        if children is None:
            children = self._children[node] = self._weights(self._child_scores(node))
        return children

    def stop(self, node: int) -> float:
        """Probability that a walk at ``node``, which is terminal, proposes its token."""
        left = self._left(node)
        if not self.trie.goes_on(node, left):
            return 1.0
        if not self.trie.goes_on(ROOT, left):
            return 0.0
        if self.greedy:  # a child comes before the root of the same token: what colder and colder draws tend to
            return float(self.best_root(node)[1] > self.best_child(node)[1])
        roots, children = self.roots(node), self.children(node)
        # Each kind is in units of its own likeliest.
        ahead = (roots.top - children.top) / self._temperature if roots.top != children.top else 0.0
        mass = roots.total * math.exp(min(ahead, 0.0))
        return mass / (mass + children.total * math.exp(min(-ahead, 0.0)))

    def step(self, node: int, child: int) -> float:
        """Probability that a walk at ``node`` goes to ``child``."""
        if node == ROOT:
            return self.roots(ROOT).probability(self.trie.token(child))
        step = self.children(node).probability(child - self.trie.first_child(node))
        return step if self.trie.target[node] < 0 else (1.0 - self.stop(node)) * step

    def probability(self, target: int) -> float:
        """r(target); 0 where it has no path or the path is longer than the budget."""
        branch = self.trie.branch(self.trie.node(target))
        if not 0 < len(branch) <= self.budget:
            return 0.0
        inner = branch[:-1] if self.ends(branch[-1]) else branch
        if inner:
            self._row(inner[-1])
        r = self.stop(branch[-1])
        for node, child in pairwise((ROOT, *branch)):
            r *= self.step(node, child)
        return r

    def known(self) -> tuple[Integers, Probabilities]:
        """Target ids whose r needs only the row at the start, and that r."""
        targets, tokens = self.trie.single_ends(self.budget)
        if not len(targets):
            return targets, np.empty(0)
        roots = self.roots(ROOT)
        return targets, np.divide(roots.values[tokens], roots.total, dtype=np.float64)

    def _left(self, node: int) -> int:
        return self.budget - self.trie.depth(node)

    def _row(self, node: int) -> NDArray[np.float32]:
        return self._rows.after(self.start + self.trie.spelling(node))

    def _child_scores(self, node: int) -> NDArray[np.float32]:
        return self._row(node)[self.trie.child_tokens(node, self._left(node))]

    def _weights(
        self,
        scores: NDArray[np.float32],
        alike: NDArray[np.float32] | None = None,
        claimed: Integers | None = None,
    ) -> Weights:
        """Of scores; of ``alike`` (zeros) where the drafter forbids everything that a walk may do."""
        best = int(scores.argmax())
        top = scores.item(best)
        if top == -math.inf:
            scores = np.zeros_like(scores) if alike is None else alike
        if not math.isfinite(top):
            best = most_likely(scores)
        values = relative(scores, best, self._temperature)
        if claimed is not None:
            values[claimed] *= _CUT
        return Weights(values, top)
