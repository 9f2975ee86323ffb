"""The target's distribution seen in drafter tokens: where its mass lies in the trie of draft paths. It knows no text.

| projection          | the row before a target token                | rows behind its first drafter token      |
|---------------------|----------------------------------------------|------------------------------------------|
| `direct` (OmniDraft)| a token d gets p of the target token d alone | none                                     |
| `prefix`            | d gets p of all target tokens that begin so  | none                                     |
| `law`               | as `prefix`                                  | d gets p below the child by d, given the |
|                     |                                              | mass below the node                      |

Under the proposal law r (``law.py``) a walk proposes an n-gram through its first token, so the q that maximises
acceptance has the *prefix* mass there. The direct map teaches q to avoid the first tokens of likely n-grams.

`law` is the chain rule on the tree of paths. With M(v) the mass of p at and below a node v,

    KL(p‖r) = Σ_v M(v) · KL(p over what may come at v ‖ the walk's step there),

where at a node that ends a token, stopping is one of the things that may come. A text drawn from p comes to v with
probability M(v), so the sum of the rows' KL along its tokens' paths is KL(p‖r) in the mean. Three limits: a row of the
drafter is normalised over its whole vocabulary and a step only over what a walk may do, which makes it an upper bound;
where a root is also a child, its mass is in both (``law.CUT``); and the row behind a token that may go on is also the
next position's first, which then counts with the probability s of stopping: s · next + (1 − s) · children.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..runtimes.decoder import Logits
from ..spelling.trie import ROOT, Integers, Trie

Projection = Literal["direct", "prefix", "law"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)

Reals = NDArray[np.float64]

#: Probability of a listed token that the target gives none: more than 0, which is padding, and nothing to a loss.
LEAST = 1e-30


@dataclass(frozen=True, slots=True)
class View:
    """Masses of some drafter tokens; what they leave of one is the tail. tokens, masses: (n,)."""

    tokens: Integers
    masses: Reals

    def listed(self, width: int, wanted: Iterable[int] = ()) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The largest masses in descending order, and whatever is wanted in place of the smallest of them.

        Returns:
          (width,) drafter tokens and probabilities; 0 is padding.
        """
        top = np.arange(len(self.masses))
        if len(top) > width:
            top = np.argpartition(self.masses, -width)[-width:]
        top = top[np.argsort(-self.masses[top], kind="stable")]
        missing = [token for token in wanted if token not in self.tokens[top]][:width]
        top = top[: width - len(missing)]
        ids, probs = np.zeros(width, np.int64), np.zeros(width, np.float32)
        ids[: len(top)], probs[: len(top)] = self.tokens[top], self.masses[top]
        for place, token in enumerate(missing, len(top)):
            ids[place], probs[place] = token, self.masses[self.tokens == token].sum()
        probs[np.isin(ids, list(wanted)) & (probs < LEAST)] = LEAST
        return ids, probs

    def mixed(self, share: float, other: "View") -> "View":
        """``share`` of this and all of ``other``; a token of both gets both."""
        if not len(other.tokens):
            return View(self.tokens, self.masses * share)
        order = np.argsort(self.tokens)
        at = order[np.searchsorted(self.tokens, other.tokens, sorter=order).clip(max=len(order) - 1)]
        both, masses = self.tokens[at] == other.tokens, self.masses * share
        masses[at[both]] += other.masses[both]
        return View(np.concatenate([self.tokens, other.tokens[~both]]), np.concatenate([masses, other.masses[~both]]))


#: More drafter tokens than any path has.
_UNLIMITED = 1 << 24

NOTHING = View(np.empty(0, np.intp), np.empty(0))


class PathTree:
    """The target tokens of a trie in depth-first order, so that those at and below a node are a range.

    Args:
      trie: the canonical paths.
    """

    def __init__(self, trie: Trie) -> None:
        self._trie = trie
        arrays = trie.to_arrays()
        parent, target = arrays["parent"].astype(np.intp), arrays["target"]
        terminal = (target >= 0).astype(np.intp)
        levels = _levels(parent)
        count = terminal.copy()
        for level in reversed(levels):
            np.add.at(count, parent[level], count[level])
        self._begin = np.zeros(len(parent), np.intp)
        for level in levels:
            above, before = parent[level], np.cumsum(count[level]) - count[level]
            siblings = before - before[np.searchsorted(above, above)]
            self._begin[level] = self._begin[above] + terminal[above] + siblings
        self._end = self._begin + count
        self._order = np.empty(count[ROOT], np.intp)
        self._order[self._begin[target >= 0]] = target[target >= 0]

    def law(self, rows: Logits) -> NDArray[np.float32]:
        """The target's probabilities at temperature 1.

        Args:
          rows: float32 (n, target vocab) logits.

        Returns:
          (n, tokens with a path), depth first.
        """
        weights = rows - rows.max(axis=1, keepdims=True)
        np.exp(weights, out=weights)
        found: NDArray[np.float32] = weights[:, self._order]
        found /= weights.sum(axis=1, keepdims=True)
        return found

    def single(self, law: NDArray[np.float32]) -> View:
        """Of one row of ``law``: the target tokens that are one drafter token."""
        return View(self._singles, law[self._begin[1 : 1 + len(self._singles)]].astype(np.float64))

    def below(self, law: NDArray[np.float32], node: int) -> View:
        """Of one row of ``law``: the mass at and below each child of a node."""
        first, tokens = self._trie.first_child(node), self._trie.child_tokens(node, _UNLIMITED)
        if not len(tokens):
            return NOTHING
        begin, end = self._begin[first], self._end[first + len(tokens) - 1]
        starts = self._begin[first : first + len(tokens)] - begin
        return View(tokens, np.add.reduceat(law[begin:end], starts, dtype=np.float64))

    def at(self, law: NDArray[np.float32], node: int) -> float:
        """Of one row of ``law``: the mass of the target token that ends at ``node``, 0 where none does."""
        return float(law[self._begin[node]]) if self._trie.target[node] >= 0 else 0.0

    def ahead(self, law: NDArray[np.float32], node: int) -> tuple[float, View]:
        """Of one row of ``law``: what may come at a node, given that p came there.

        Returns:
          the probability that the token ends there, and the children with what is left; (1, nothing) where there are
          none, or where p never comes.
        """
        children, own = self.below(law, node), self.at(law, node)
        mass = own + float(children.masses.sum())
        if not len(children.tokens) or mass <= 0:
            return 1.0, NOTHING
        return own / mass, View(children.tokens, children.masses / mass)

    @cached_property
    def _singles(self) -> Integers:
        return self._trie.child_tokens(ROOT, 1)


def _levels(parent: Integers) -> list[slice]:
    """The nodes of each level behind the root's, which are consecutive."""
    ends = [1]
    while ends[-1] < len(parent):
        ends.append(1 + int(np.searchsorted(parent[1:], ends[-1])))
    return [slice(begin, end) for begin, end in pairwise(ends)]
