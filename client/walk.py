"""The walk: draws one target token of a proposal, drafter token by drafter token. Its law is ``law.py``."""

from dataclasses import dataclass

from .chooser import Chooser
from .law import Law
from .trie import ROOT


@dataclass(frozen=True, slots=True)
class Carry:
    """The first drafter token of the next position, drawn while looking for the end of this one."""

    index: int
    """Position among the trie's roots."""
    probability: float
    """Under the next position's law, that is given that this walk stopped."""


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
    carry: Carry | None = None


def walk(law: Law, chooser: Chooser, carry: Carry | None = None) -> Walk:
    """Proposes one target token.

    Guarantees:
      - Given what came before the position, ``target`` is distributed as ``law.probability``.

    Args:
      law: of this position; a possible one.
      chooser: the only source of randomness.
      carry: the first token, where the previous walk has drawn it.
    """
    trie, node, depth, probability = law.trie, ROOT, 0, 1.0
    index, step = (carry.index, carry.probability) if carry else _draw(law, ROOT, chooser)
    while True:
        node, depth, probability = trie.first_child(node) + index, depth + 1, probability * step
        if law.ends(node):
            return Walk(node=node, depth=depth, target=trie.target[node], probability=probability)
        index, step = _draw(law, node, chooser)
        behind = index - len(law.children(node))
        if trie.target[node] >= 0 and behind >= 0:
            return _stopped(law, node, depth, probability, Carry(behind, step))


def _stopped(law: Law, node: int, depth: int, probability: float, drawn: Carry) -> Walk:
    stop = 1.0 if law.greedy else law.stop(node)
    return Walk(
        node=node,
        depth=depth,
        target=law.trie.target[node],
        probability=probability * stop,
        carry=Carry(drawn.index, drawn.probability / stop),
    )


def _draw(law: Law, node: int, chooser: Chooser) -> tuple[int, float]:
    """(index, its probability) of the draw at ``node``; greedily without a softmax."""
    if law.greedy:
        # A child comes before the root of the same token: the argmax is what colder and colder draws tend to.
        return int(law.scores(node).argmax()), 1.0
    steps = law.steps(node)
    index = chooser.choose(steps)
    return index, float(steps[index])
