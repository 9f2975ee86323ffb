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
    """Where it ended."""
    depth: int
    """Drafter tokens from the start to ``node``."""
    target: int
    """The proposed target id, -1 for a failed walk: budget used up at a node that is no target token."""
    probability: float
    """r(target); 0 for a failed walk."""
    carry: Carry | None = None

    @property
    def failed(self) -> bool:
        return self.target < 0


def walk(law: Law, chooser: Chooser, carry: Carry | None = None) -> Walk:
    """Proposes one target token, or fails.

    Guarantees:
      - Given that the previous position ended where ``law`` says, ``target`` is distributed as ``law.probability``.

    Args:
      law: of this position.
      chooser: the only source of randomness.
      carry: the first token, where the previous walk has drawn it.
    """
    trie, node, probability = law.trie, ROOT, 1.0
    for depth in range(law.budget):
        index, step = (carry.index, carry.probability) if carry and node == ROOT else _draw(law, node, chooser)
        if trie.target[node] >= 0:
            if index < len(trie.roots):
                return _stopped(law, node, depth, probability, Carry(index, step))
            index -= len(trie.roots)
        node, probability = trie.first_child(node) + index, probability * step
        if trie.is_final(node):
            return Walk(node=node, depth=depth + 1, target=trie.target[node], probability=probability)
    target = trie.target[node]
    return Walk(node=node, depth=law.budget, target=target, probability=probability if target >= 0 else 0.0)


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
        return int(law.scores(node).argmax()), 1.0
    steps = law.steps(node)
    index = chooser.choose(steps)
    return index, float(steps[index])
