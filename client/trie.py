"""The trie of canonical paths: how each target token is spelled in drafter tokens. It knows no probabilities."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ModelError
from ..common.vocabulary import Vocabulary

Encode = Callable[[str], list[int]]
Integers = NDArray[np.intp]

ROOT = 0
_LEAD = "\n"


def canonical_paths(target: Vocabulary, drafter: Vocabulary, encode: Encode) -> dict[int, tuple[int, ...]]:
    """One path of drafter tokens for every target token that the drafter can spell.

    | target token                                     | path                                                   |
    |--------------------------------------------------|--------------------------------------------------------|
    | any, where both vocabularies are the same        | itself                                                 |
    | text                                             | the drafter tokenizer's own segmentation, mid-text     |
    | half a character, or a segmentation that differs | greedy longest match over the drafter's byte strings   |
    | bytes the drafter lacks                          | none: never proposed, still emitted by the target      |
    | same bytes as another id                         | only one id gets the path (``Vocabulary.ids``)         |
    | eos                                              | the drafter's eos; of several, first to first          |
    | other special tokens                             | none                                                   |

    Args:
      encode: the drafter tokenizer, adding no special tokens.
    """
    # The same vocabulary maps by id: a token that its own tokenizer never produces must still map to itself.
    paths: dict[int, tuple[int, ...]]
    if target.token_bytes == drafter.token_bytes:
        paths = {t: (drafter.ids[text],) for text, t in target.ids.items()}
    else:
        spell = _Speller(drafter, encode)
        paths = {t: path for text, t in target.ids.items() if (path := spell(text))}
    return paths | {t: (d,) for t, d in zip(target.eos, drafter.eos, strict=False)}


class _Speller:
    """Spells byte strings in drafter tokens."""

    def __init__(self, drafter: Vocabulary, encode: Encode) -> None:
        self._drafter, self._encode = drafter, encode
        self._space = b" " if drafter.dummy_prefix else b""

    def __call__(self, text: bytes) -> tuple[int, ...]:
        """The path, or ``()`` where there is none."""
        try:
            characters = text.decode()
        except UnicodeDecodeError:
            return self._drafter.longest_match(text)
        path = self._segmented(_LEAD, characters) or self._segmented("", characters)
        return path or self._drafter.longest_match(text)

    def _segmented(self, lead: str, text: str) -> tuple[int, ...]:
        """The tokens of ``text`` behind ``lead``, if token boundaries fall between the two and the bytes agree."""
        tokens = self._encode(lead + text)
        pieces = [self._drafter.token_bytes[t] for t in tokens]
        before = self._space + lead.encode()
        ends = list(accumulate(map(len, pieces), initial=0))
        if not all(pieces) or b"".join(pieces) != before + text.encode() or len(before) not in ends:
            return ()
        return tuple(self._drafter.ids[piece] for piece in pieces[ends.index(len(before)) :])


class Trie:
    """An immutable trie whose edges are drafter tokens and whose terminal nodes are target tokens.

    Nodes are numbered by level, so the children of a node are consecutive: first those that are terminal, then the
    others, each by token. A drawn index is therefore a child without any look-up, and every array here is a view.

    Guarantees:
      - No two target tokens share a path; no path is empty.
      - ``from_arrays(to_arrays())`` is the same trie.

    Args:
      targets: (n,) distinct target ids.
      offsets: (n + 1,) path i is ``tokens[offsets[i]:offsets[i + 1]]``.
      tokens: (offsets[n],) drafter ids.

    Raises:
      ModelError: the arrays are no such paths.
    """

    def __init__(self, targets: Integers, offsets: Integers, tokens: Integers) -> None:
        _check(targets, offsets, tokens)
        self._arrays = {"targets": targets, "offsets": offsets, "tokens": tokens}
        parent, token, end_of_path = _number(offsets, tokens)
        target = np.full(len(parent), -1, dtype=np.intp)
        target[end_of_path] = targets
        if np.count_nonzero(target >= 0) != len(targets):
            raise ModelError("two target tokens share one path of drafter tokens")
        self._token = token
        self._first = np.searchsorted(parent, np.arange(len(parent) + 1)).tolist()
        terminal = np.bincount(parent[1:][target[1:] >= 0], minlength=len(parent))
        self._terminals: list[int] = terminal.tolist()
        self._parent: list[int] = parent.tolist()
        self._node = dict(zip(targets.tolist(), end_of_path.tolist(), strict=True))
        self.target: list[int] = target.tolist()
        """Target id of each node, -1 where the node is not terminal."""
        self.roots = self.child_tokens(ROOT)
        """Drafter tokens that begin a path."""
        self._root_rank = np.full(int(tokens.max(initial=0)) + 1, -1, dtype=np.intp)
        self._root_rank[self.roots] = np.arange(len(self.roots))
        self.single = _read_only(np.arange(self._terminals[ROOT]))
        """Positions in ``roots`` of the tokens that are a whole target token."""
        self.single_final = _read_only(self.single[terminal[1 : 1 + self._terminals[ROOT]] == 0])
        """Those of ``single`` that have no terminal child."""
        self.single_targets = _read_only(target[1 : 1 + self._terminals[ROOT]])
        """The target ids of ``single``."""

    # --- walking ----------------------------------------------------------------------------------------------

    def first_child(self, node: int) -> int:
        """Its children are this node and the following ones."""
        return self._first[node]

    def child_tokens(self, node: int) -> Integers:
        """Drafter tokens of the children, in their order."""
        return self._token[self._first[node] : self._first[node + 1]]

    def terminal_children(self, node: int) -> Integers:
        """Drafter tokens of the terminal children, which come first."""
        first = self._first[node]
        return self._token[first : first + self._terminals[node]]

    def is_final(self, node: int) -> bool:
        """Whether ``node`` is terminal and no terminal child continues it: a walk ends here."""
        return self.target[node] >= 0 and not self._terminals[node]

    def claimed(self, node: int) -> Integers:
        """Positions in ``roots`` of the tokens that a terminal child of ``node`` claims."""
        if node == ROOT:
            return self.single[:0]
        ranks = self._root_rank[self.terminal_children(node)]
        return ranks[ranks >= 0]

    # --- paths ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._node)

    def __iter__(self) -> Iterator[int]:
        """The target ids that have a path."""
        return iter(self._node)

    def node(self, target: int) -> int:
        """The terminal node of a target token, ``ROOT`` where it has no path."""
        return self._node.get(target, ROOT)

    def branch(self, node: int) -> tuple[int, ...]:
        """The nodes from the root's child down to ``node``."""
        nodes: list[int] = []
        while node != ROOT:
            nodes.append(node)
            node = self._parent[node]
        return tuple(reversed(nodes))

    def spelling(self, node: int) -> tuple[int, ...]:
        """The drafter tokens from the root to ``node``."""
        return tuple(int(self._token[n]) for n in self.branch(node))

    def path(self, target: int) -> tuple[int, ...]:
        """The canonical path of a target token, ``()`` where it has none."""
        return self.spelling(self.node(target))

    def reachable(self, target: int) -> bool:
        """Whether a walk can end in ``target``: once its path meets a terminal node, all later nodes are terminal."""
        nodes = self.branch(self.node(target))
        terminal = [self.target[n] >= 0 for n in nodes]
        return bool(nodes) and terminal == sorted(terminal)

    # --- storage ----------------------------------------------------------------------------------------------

    @classmethod
    def from_paths(cls, paths: Mapping[int, Sequence[int]]) -> "Trie":
        """Builds the trie of ``{target id: drafter ids}``."""
        offsets = np.cumsum([0, *map(len, paths.values())], dtype=np.intp)
        tokens = np.fromiter((d for path in paths.values() for d in path), dtype=np.intp, count=int(offsets[-1]))
        return cls(np.fromiter(paths, dtype=np.intp, count=len(paths)), offsets, tokens)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.integer]]) -> "Trie":
        """Restores what ``to_arrays`` gave.

        Raises:
          ModelError: an array is missing or the arrays do not fit together.
        """
        try:
            targets, offsets, tokens = (arrays[name].astype(np.intp) for name in ("targets", "offsets", "tokens"))
        except (KeyError, ValueError) as error:
            raise ModelError(f"not the arrays of a trie: {error!r}") from error
        return cls(targets, offsets, tokens)

    def to_arrays(self) -> dict[str, NDArray[np.int32]]:
        """The paths as three flat int32 arrays, for an ``.npz`` file."""
        return {name: array.astype(np.int32) for name, array in self._arrays.items()}


def _check(targets: Integers, offsets: Integers, tokens: Integers) -> None:
    fits = (
        all(array.ndim == 1 for array in (targets, offsets, tokens))
        and len(offsets) == len(targets) + 1
        and offsets[0] == 0
        and offsets[-1] == len(tokens)
        and bool((np.diff(offsets) > 0).all())
        and int(min(targets.min(initial=0), tokens.min(initial=0))) >= 0
        and len(np.unique(targets)) == len(targets)
    )
    if not fits:
        raise ModelError("not the arrays of a trie: expected distinct ids >= 0 and non-empty paths between offsets")


def _number(offsets: Integers, tokens: Integers) -> tuple[Integers, Integers, Integers]:
    """Numbers the nodes level by level.

    Returns:
      parent (N,) and token (N,) of each node, -1 for the root, and the last node of each path (n,).
    """
    lengths, width = np.diff(offsets), int(tokens.max(initial=0)) + 1
    at = np.zeros(len(lengths), dtype=np.intp)
    parents, edges, count = [np.array([-1])], [np.array([-1])], 1
    for depth in range(int(lengths.max(initial=0))):
        going = np.flatnonzero(lengths > depth)
        keys, which = np.unique(at[going] * width + tokens[offsets[going] + depth], return_inverse=True)
        inner = np.ones(len(keys), dtype=np.bool_)
        inner[which[lengths[going] == depth + 1]] = False
        parent, edge = np.divmod(keys, width)
        order = np.lexsort((edge, inner, parent))
        at[going] = count + np.argsort(order)[which]
        parents.append(parent[order])
        edges.append(edge[order])
        count += len(keys)
    return np.concatenate(parents), _read_only(np.concatenate(edges)), at


def _read_only(array: Integers) -> Integers:
    array.setflags(write=False)
    return array
