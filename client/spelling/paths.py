"""The seam between drafting and the ways to hold draft paths: which target tokens may be drafted now.

The law is exact over any trie, so what is held decides speed and memory, never the law of what is emitted.
"""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from ...common.speller import Speller
from ...common.vocabulary import Vocabulary
from .trie import Trie


class DraftPaths(Protocol):
    """The draft paths of one target.

    Guarantees:
      - ``path(t)`` never changes, and equals ``trie.path(t)`` whenever the trie has one: what the drafter has cached of
        a drafted token is how its context spells that token.
    """

    @property
    def trie(self) -> Trie:
        """The paths that may be drafted now; a snapshot, fixed while a block is drafted and verified."""

    def path(self, token: int) -> tuple[int, ...]:
        """The path of any target token, drafted now or not; ``()`` where it has none."""

    def observe(self, tokens: Sequence[int]) -> None:
        """Learns from emitted target tokens."""


class FullPaths:
    """Every path may be drafted, always.

    Args:
      trie: the canonical paths of all target tokens.
    """

    def __init__(self, trie: Trie) -> None:
        self._trie = trie

    @property
    def trie(self) -> Trie:
        return self._trie

    def path(self, token: int) -> tuple[int, ...]:
        return self._trie.path(token)

    def observe(self, tokens: Sequence[int]) -> None:
        """There is nothing left to learn."""


class DirectPaths:
    """Only target tokens whose canonical path is one drafter token may be drafted.

    Args:
      target, drafter: the vocabularies.
      spell: gives the canonical path of a token.
    """

    def __init__(self, target: Vocabulary, drafter: Vocabulary, spell: Speller) -> None:
        shared = [token for text, token in target.ids.items() if text in drafter.ids]
        paths = {token: spell(token) for token in (*shared, *target.eos)}
        # A shared token that the drafter's tokenizer would split is an n-gram for it.
        self._trie = Trie.from_paths({token: path for token, path in paths.items() if len(path) == 1})
        self._path = cache(spell.__call__)

    @property
    def trie(self) -> Trie:
        return self._trie

    def path(self, token: int) -> tuple[int, ...]:
        return self._path(token)

    def observe(self, tokens: Sequence[int]) -> None:
        """There is nothing left to learn."""
