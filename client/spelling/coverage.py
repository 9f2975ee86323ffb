"""How a target's tokens are covered by draft paths, and why some have none. It knows no probabilities."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ...common.vocabulary import Vocabulary
from .paths import DraftPaths


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Every id of a target counted once.

    | field         | ids that                                                                              |
    |---------------|---------------------------------------------------------------------------------------|
    | `direct`      | are one drafter token                                                                 |
    | `ends`        | end a text and are paired with an end of the drafter's                                |
    | `ngrams`      | are several drafter tokens, by how many                                               |
    | `unlearned`   | the drafter can spell, but that may not be drafted now (an n-gram cache)              |
    | `special`     | have another role or are marked as special: they map by role only                     |
    | `padding`     | the tokenizer does not know: rows of logits beyond it or between its tokens           |
    | `unspellable` | spell nothing: the unknown token, characters outside the byte alphabet                |
    | `duplicate`   | spell what another id spells, which has the path                                      |
    | `lacking`     | need a byte that the drafter lacks                                                    |

    Guarantees:
      - ``drafted + unlearned + special + padding + unspellable + duplicate + lacking == tokens``.
    """

    tokens: int
    direct: int
    ends: int
    ngrams: dict[int, int]
    unlearned: int
    special: int
    padding: int
    unspellable: int
    duplicate: int
    lacking: int

    @property
    def drafted(self) -> int:
        """How many ids have a path that may be drafted."""
        return self.direct + self.ends + sum(self.ngrams.values())

    def to_json(self) -> dict[str, Any]:
        """The counts; JSON makes the keys of ``ngrams`` strings."""
        return asdict(self)


def coverage(target: Vocabulary, paths: DraftPaths) -> Coverage:
    """Counts every id of ``target`` by what ``paths`` can draft now."""
    trie = paths.trie
    drafted, ends = set(trie), set(trie) & set(target.eos)
    lengths = Counter(len(trie.path(token)) for token in drafted - ends)
    return Coverage(
        tokens=target.width,
        direct=lengths.pop(1, 0),
        ends=len(ends),
        ngrams=dict(sorted(lengths.items())),
        **_reasons(set(range(target.width)) - drafted, target, paths),
    )


def _reasons(tokens: Iterable[int], target: Vocabulary, paths: DraftPaths) -> dict[str, int]:
    """Why ``tokens`` are not in the trie, each by the first condition that holds."""
    conditions: dict[str, Callable[[int], bool]] = {
        "unlearned": lambda token: bool(paths.path(token)),
        "special": lambda token: token in target.special or token in target.eos,
        "padding": lambda token: token in target.padding,
        "unspellable": lambda token: not target.token_bytes[token],
        "duplicate": lambda token: target.ids[target.token_bytes[token]] != token,
        "lacking": lambda token: True,
    }
    found = Counter(next(reason for reason, holds in conditions.items() if holds(token)) for token in tokens)
    return {reason: found[reason] for reason in conditions}
