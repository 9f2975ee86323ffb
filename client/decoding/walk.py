"""The walk: draws one target token of a proposal, drafter token by drafter token. Its law is ``law.py``."""

from dataclasses import dataclass

from ..spelling.trie import ROOT
from .chooser import Chooser
from .law import Law


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """One walked position."""

    node: int
    """Where it ended: the end of the proposed token's path."""
    depth: int
    """Drafter tokens from the start to ``node``."""
    target: int
    """The proposed target id."""
    probability: float
    """r(target)."""


def walk(law: Law, chooser: Chooser) -> Walk:
    """Proposes one target token.

    Guarantees:
      - Given what came before the position, ``target`` is distributed as ``law.probability``.

    Args:
      law: of this position; a possible one.
      chooser: the only source of randomness; at temperature 0 there is none.
    """
    trie = law.trie
    token, probability = _root(law, chooser)
    node, depth = trie.root(token), 1
    while not law.ends(node):
        if trie.target[node] >= 0:
            stop = law.stop(node)
            if chooser.accept(stop):
                probability *= stop
                break
            probability *= 1.0 - stop
        index, step = _child(law, node, chooser)
        node, depth, probability = trie.first_child(node) + index, depth + 1, probability * step
    return Walk(node=node, depth=depth, target=trie.target[node], probability=probability)


def _root(law: Law, chooser: Chooser) -> tuple[int, float]:
    """(drafter token, its probability) of the first step; greedily without a softmax."""
    if law.greedy:
        return law.best_root(ROOT)[0], 1.0
    roots = law.roots(ROOT)
    token = chooser.choose(roots)
    return token, roots.probability(token)


def _child(law: Law, node: int, chooser: Chooser) -> tuple[int, float]:
    """(index, its probability among the children) of a further step; greedily without a softmax."""
    if law.greedy:
        return law.best_child(node)[0], 1.0
    children = law.children(node)
    index = chooser.choose(children)
    return index, children.probability(index)
