"""A target's tokenizer joined with the drafter's: the target's tokens in drafter tokens, however they are held.

It knows no model. Every part is made when it is first asked for and shared by all pairs on the target.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from ...common.errors import ConfigError
from ...common.speller import Speller
from .ngrams import NgramCache, NgramConfig
from .paths import DirectPaths, DraftPaths, FullPaths
from .text import TextCodec
from .trie import Trie
from .trie_cache import cached_trie

PathKind = Literal["full", "online", "direct"]
PATH_KINDS: tuple[PathKind, ...] = get_args(PathKind)


def path_kind(name: str) -> PathKind:
    """The kind of that name.

    Raises:
      ConfigError: there is none.
    """
    for kind in PATH_KINDS:
        if kind == name:
            return kind
    raise ConfigError(f"paths is {name!r}, expected one of {', '.join(PATH_KINDS)}")


class TokenizerPair:
    """Two tokenizers and the canonical paths between them.

    Args:
      target, drafter: the tokenizers.
      cache: where tries are kept on disk, None for nowhere.
    """

    def __init__(self, target: TextCodec, drafter: TextCodec, cache: Path | None) -> None:
        self.target, self.drafter = target, drafter
        self._cache = cache

    @cached_property
    def trie(self) -> Trie:
        """The canonical paths of all target tokens."""
        target, drafter = self.target.vocabulary, self.drafter.vocabulary
        return cached_trie(target, drafter, self.drafter.plain_tokens, self._cache)

    @cached_property
    def direct(self) -> DirectPaths:
        """The target tokens that are one drafter token."""
        target, drafter = self.target.vocabulary, self.drafter.vocabulary
        return DirectPaths(target, drafter, Speller(target, drafter, self.drafter.plain_tokens))

    def paths(self, kind: PathKind, ngrams: NgramConfig | None = None) -> DraftPaths:
        """A way to hold the paths.

        | kind   | what may be drafted                               | held                            |
        |--------|---------------------------------------------------|---------------------------------|
        | full   | every target token that the drafter can spell     | the whole trie, cached on disk  |
        | online | direct, and n-grams that the target has emitted   | the n-grams, one cache per call |
        | direct | target tokens that are one drafter token          | these                           |

        Args:
          kind: one of these.
          ngrams: bounds of an ``online`` cache.
        """
        makers: Mapping[PathKind, Callable[[], DraftPaths]] = {
            "full": lambda: FullPaths(self.trie),
            "online": lambda: NgramCache(self.direct, self.target.vocabulary, self.drafter.vocabulary, ngrams),
            "direct": lambda: self.direct,
        }
        return makers[kind]()
