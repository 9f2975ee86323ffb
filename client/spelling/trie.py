"""The trie of draft paths: how target tokens are spelled in drafter tokens. It knows no probabilities."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ModelError

Integers = NDArray[np.intp]

ROOT = 0

#: No vocabulary comes near; what an index by id may cost is bounded by it.
_LARGEST_ID = (1 << 24) - 1


class Trie:
    """An immutable trie whose edges are drafter tokens and whose terminal nodes are target tokens.

    The *height* of a node is how many drafter tokens it is away from the nearest target token at or below it: 0 where
    it is terminal. Nodes are numbered by level, so the children of a node are consecutive, by height and then by token.
    A drawn index is therefore a child without any look-up, the children that some budget can complete come first, and
    every array here is a view.

    Guarantees:
      - No two target tokens share a path; no path is empty; every path ends in a target token.
      - ``from_arrays(to_arrays())`` is the same trie.

    Args:
      parent: (N,) each node's, -1 for the root.
      token: (N,) drafter id of the edge from it, -1 for the root.
      target: (N,) target id, -1 where the node is not terminal.

    Raises:
      ModelError: the arrays are no such trie.
    """

    def __init__(self, parent: Integers, token: Integers, target: Integers) -> None:
        _check(parent, token, target)
        terminal, nodes = target >= 0, len(parent)
        children = np.bincount(parent[1:], minlength=nodes)
        if not (terminal | (children > 0))[1:].all():
            raise ModelError("not the arrays of a trie: a path ends where there is no target token")
        node = np.zeros(int(target.max()) + 1, dtype=np.int32)
        node[target[terminal]] = np.flatnonzero(terminal)
        self._length = int(np.count_nonzero(terminal))
        if np.count_nonzero(node) != self._length:
            raise ModelError("not the arrays of a trie: a target token has two paths")
        self._token = _read_only(token)
        self._tokens = self._token.data
        first = np.cumsum(np.concatenate(([1], children)))
        height = _heights(first, terminal)
        if not _in_order(parent[1:], height[1:], token[1:]):
            raise ModelError("not the arrays of a trie: expected nodes by parent, then by height, then by token")
        self._first, self._height, self._parent, self._node = _view(first), _view(height), _view(parent), node.data
        self._levels = _levels(self._first)
        self.target = _view(target)
        """Target id of each node, -1 where the node is not terminal."""
        root = np.zeros(int(token.max()) + 1, dtype=np.int32)
        root[token[1 : first[1]]] = np.arange(1, first[1])
        self._root, self._masks = root.data, dict[int, NDArray[np.float32]]()
        self._single_ends = dict[int, tuple[Integers, Integers]]()
        singles = np.flatnonzero(terminal[1 : first[1]]) + 1
        self.single_targets = _read_only(target[singles])
        """The target ids that are one drafter token, in the order of the roots, of which these come first."""
        # Tokens that a walk needs to go on from each of them; none are enough where there is no child.
        self._single_needs = np.full(len(singles), _LARGEST_ID)
        self._single_needs[children[singles] > 0] = height[first[singles[children[singles] > 0]]] + 1

    # --- walking ----------------------------------------------------------------------------------------------

    def first_child(self, node: int) -> int:
        """Its children are this node and the following ones."""
        return self._first[node]

    def child_tokens(self, node: int, budget: int) -> Integers:
        """Drafter tokens of the children that ``budget`` tokens, the child's own included, can complete.

        These are the first of the children, in their order.
        """
        first, end = self._first[node], self._first[node + 1]
        return self._token[first : bisect_left(self._height, budget, first, end)]

    def goes_on(self, node: int, budget: int) -> bool:
        """Whether ``budget`` tokens complete any child of ``node``."""
        first = self._first[node]
        return first < self._first[node + 1] and self._height[first] < budget

    @property
    def shortest(self) -> int:
        """Drafter tokens of the target token that takes fewest; 0 where none has a path."""
        first = self._first[ROOT]
        return self._height[first] + 1 if first < self._first[ROOT + 1] else 0

    def root(self, token: int) -> int:
        """The root's child by a drafter token, ``ROOT`` where it has none."""
        return self._root[token]

    def is_root(self, token: int, budget: int) -> bool:
        """Whether a drafter token is one of the root's ``child_tokens``."""
        return token < len(self._root) and 0 < self._root[token] <= len(self.child_tokens(ROOT, budget))

    def token(self, node: int) -> int:
        """The drafter token by which ``node`` is its parent's child."""
        return self._tokens[node]

    def root_mask(self, budget: int) -> NDArray[np.float32]:
        """Of the root's ``child_tokens`` in a row of logits.

        Returns:
          float32 (n,) for the drafter ids below n, which are all in the trie: 0 where one is among them, else minus
          infinity.
        """
        tokens = self.child_tokens(ROOT, budget)
        mask = self._masks.get(len(tokens))
        if mask is None:
            mask = np.full(len(self._root), -np.inf, dtype=np.float32)
            mask[tokens] = 0.0
            mask.setflags(write=False)
            self._masks[len(tokens)] = mask
        return mask

    def single_ends(self, budget: int) -> tuple[Integers, Integers]:
        """The single targets that end a walk which has ``budget`` tokens at its start, and their drafter tokens."""
        budget = min(budget, len(self._levels))  # there is no longer path
        ends = self._single_ends.get(budget)
        if ends is None:
            chosen = np.flatnonzero(self._single_needs >= budget)
            ends = self._single_ends[budget] = self.single_targets[chosen], self.child_tokens(ROOT, 1)[chosen]
        return ends

    # --- paths ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        """The target ids that have a path, in ascending order."""
        return (target for target, node in enumerate(self._node) if node != ROOT)

    def node(self, target: int) -> int:
        """The terminal node of a target token, ``ROOT`` where it has no path."""
        return self._node[target] if 0 <= target < len(self._node) else ROOT

    def branch(self, node: int) -> tuple[int, ...]:
        """The nodes from the root's child down to ``node``."""
        nodes: list[int] = []
        while node != ROOT:
            nodes.append(node)
            node = self._parent[node]
        nodes.reverse()
        return tuple(nodes)

    def spelling(self, node: int) -> tuple[int, ...]:
        """The drafter tokens from the root to ``node``."""
        if node == ROOT:
            return ()
        parent = self._parent[node]
        if parent == ROOT:
            return (self._tokens[node],)
        return (*self.spelling(parent), self._tokens[node])

    def path(self, target: int) -> tuple[int, ...]:
        """The draft path of a target token, ``()`` where it has none."""
        return self.spelling(self.node(target))

    def depth(self, node: int) -> int:
        """Drafter tokens from the root to ``node``."""
        return bisect_right(self._levels, node) - 1 if node else 0

    # --- storage ----------------------------------------------------------------------------------------------

    @classmethod
    def from_paths(cls, paths: Mapping[int, Sequence[int]]) -> "Trie":
        """Builds the trie of ``{target id: drafter ids}``.

        Raises:
          ModelError: a path is empty, two are the same, or an id is negative.
        """
        lengths = np.fromiter(map(len, paths.values()), dtype=np.intp, count=len(paths))
        tokens = np.fromiter((d for path in paths.values() for d in path), dtype=np.intp, count=int(lengths.sum()))
        if not lengths.all() or min(paths, default=0) < 0 or tokens.min(initial=0) < 0:
            raise ModelError("not the paths of a trie: expected ids >= 0, and at least one drafter token for each")
        parent, token, end_of_path = _number(lengths, tokens)
        target = np.full(len(parent), -1, dtype=np.intp)
        target[end_of_path] = np.fromiter(paths, dtype=np.intp, count=len(paths))
        if np.count_nonzero(target >= 0) != len(paths):
            raise ModelError("two target tokens share one path of drafter tokens")
        return cls(parent, token, target)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.integer]]) -> "Trie":
        """Restores what ``to_arrays`` gave.

        Raises:
          ModelError: an array is missing or the arrays do not fit together.
        """
        try:
            parent, token, target = (_whole(arrays[name]) for name in ("parent", "token", "target"))
        except (KeyError, TypeError) as error:
            raise ModelError(f"not the arrays of a trie: {error!r}") from error
        return cls(parent, token, target)

    def to_arrays(self) -> dict[str, NDArray[np.int32]]:
        """The nodes as three int32 arrays, of which all else is counted up: parent, token and target, each (N,)."""
        nodes = {"parent": self._parent, "token": self._tokens, "target": self.target}
        return {name: np.array(view, dtype=np.int32) for name, view in nodes.items()}


def _whole(array: NDArray[np.integer]) -> Integers:
    return array.astype(np.intp, casting="same_kind")


def _check(parent: Integers, token: Integers, target: Integers) -> None:
    """Raises unless the arrays are a trie in which all nodes can be reached, numbered as ``Trie`` wants."""
    fits = all(array.ndim == 1 and len(array) == len(parent) > 0 for array in (parent, token, target)) and (
        parent[0] == token[0] == target[0] == -1
        and token[1:].min(initial=0) >= 0
        and target.min() >= -1
        and max(int(token.max()), int(target.max())) <= _LARGEST_ID
        and parent[1:].min(initial=0) >= 0
        and bool((parent < np.arange(len(parent))).all())
        and bool((np.diff(parent[1:]) >= 0).all())
    )
    if not fits:
        raise ModelError("not the arrays of a trie: expected ids >= 0, and nodes by parent")


def _heights(first: Integers, terminal: NDArray[np.bool_]) -> Integers:
    """(N,) of nodes whose children come by height: as many steps from first child to first child as to a target."""
    height = np.zeros(len(terminal), dtype=np.intp)
    climbing = at = np.flatnonzero(~terminal[1:]) + 1
    while len(climbing):
        at = first[at]
        height[climbing] += 1
        inner = ~terminal[at]
        climbing, at = climbing[inner], at[inner]
    return height


def _levels(first: Sequence[int]) -> list[int]:
    """The first node of each level."""
    levels, nodes = [ROOT], len(first) - 1
    while (following := first[levels[-1]]) < nodes:
        levels.append(following)
    return levels


def _in_order(parent: Integers, height: Integers, token: Integers) -> bool:
    """Whether nodes come by parent, then by height, then by token, and no parent has a token twice."""
    width = int(token.max(initial=0)) + 1
    ordered = np.diff((parent * (int(height.max(initial=0)) + 1) + height) * width + token) > 0
    edges = np.sort(parent * width + token)
    return bool(ordered.all() and (np.diff(edges) > 0).all())


def _number(lengths: Integers, tokens: Integers) -> tuple[Integers, Integers, Integers]:
    """Numbers the nodes level by level.

    Args:
      lengths: (n,) of the paths.
      tokens: the paths, one after the other.

    Returns:
      parent (N,) and token (N,) of each node, -1 for the root, and the last node of each path (n,).
    """
    starts, width = np.cumsum(lengths) - lengths, int(tokens.max(initial=0)) + 1
    at = np.zeros(len(lengths), dtype=np.intp)
    parents, edges, count = [np.array([-1])], [np.array([-1])], 1
    for depth in range(int(lengths.max(initial=0))):
        going = np.flatnonzero(lengths > depth)
        keys, which = np.unique(at[going] * width + tokens[starts[going] + depth], return_inverse=True)
        height = np.full(len(keys), len(tokens))
        np.minimum.at(height, which, lengths[going] - depth - 1)
        parent, edge = np.divmod(keys, width)
        order = np.lexsort((edge, height, parent))
        at[going] = count + np.argsort(order)[which]
        parents.append(parent[order])
        edges.append(edge[order])
        count += len(keys)
    return np.concatenate(parents), np.concatenate(edges), at


def _view(array: Integers) -> memoryview:
    """An int32 copy that gives Python's own integers, one at a time and without a list of them."""
    return array.astype(np.int32).data


def _read_only(array: Integers) -> Integers:
    array = array.copy()
    array.setflags(write=False)
    return array
