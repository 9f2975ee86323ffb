"""How a text of one vocabulary is read in another: the target's tokens, each spelled by its draft path.

It knows no model and no text.
"""

from collections.abc import Iterable
from typing import Protocol

from .vocabulary import Vocabulary


class Paths(Protocol):
    """Gives canonical paths: a trie, or any other way to hold them."""

    def path(self, token: int) -> tuple[int, ...]:
        """The draft path of a target token, ``()`` where it has none."""


class Spelling:
    """Spells a target's tokens in drafter tokens."""

    def __init__(self, target: Vocabulary, drafter: Vocabulary, paths: Paths) -> None:
        self._target, self._drafter, self._paths = target, drafter, paths
        self.start: tuple[int, ...] = drafter.eos[:1] if drafter.bos is None else (drafter.bos,)
        """What every context begins with: the drafter's beginning of text, or the end of the text before."""

    def __call__(self, token: int) -> tuple[int, ...]:
        """The draft path of a target token.

        | token                                 | spelled                                    |
        |---------------------------------------|--------------------------------------------|
        | one with a path                       | by its path                                |
        | text whose path belongs to another id | by longest match over the drafter's tokens |
        | special, or bytes the drafter lacks   | not at all                                 |
        """
        return self._paths.path(token) or self._drafter.longest_match(self._target.token_bytes[token])

    def context(self, tokens: Iterable[int]) -> list[int]:
        """The drafter's context for a text of target tokens."""
        return [*self.start, *(d for token in tokens for d in self(token))]
