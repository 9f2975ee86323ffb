"""The n-gram cache of one target: which target tokens of several drafter tokens may be drafted. It knows no model.

What the cache holds is made from a user's texts. It belongs on the device, in a file that only its owner can read; no
message carries it.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Literal, get_args

from ...common.errors import ConfigError, FingerprintError, ModelError, UserError
from ...common.files import write_atomic
from ...common.vocabulary import Vocabulary
from .paths import DraftPaths
from .trie import Trie

Policy = Literal["lfu", "lru"]

_NAME = b"fleetdraft n-grams "
_FORMAT = f"{_NAME.decode()}1"
#: Far more than any vocabulary's n-grams take.
_LARGEST_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class NgramConfig:
    """How many n-grams are held, and which one makes room for a new one.

    Raises:
      ConfigError: a value out of range.
    """

    capacity: int = 20_000
    """0 holds none: only the direct map is drafted."""
    policy: Policy = "lfu"
    """``lfu``: the least often used, of these the least recently used. ``lru``: the least recently used."""

    def __post_init__(self) -> None:
        if self.capacity < 0:
            raise ConfigError(f"capacity is {self.capacity}, expected an integer >= 0")
        if self.policy not in get_args(Policy):
            raise ConfigError(f"policy is {self.policy!r}, expected one of {', '.join(get_args(Policy))}")


class NgramCache:
    """Draft paths that begin with the direct map and learn n-grams from what the target emits.

    An n-gram is a target token whose canonical path has at least two drafter tokens.

    Guarantees:
      - ``trie`` holds the direct map and exactly the n-grams held when it was asked for; it never changes afterwards.
      - At most ``capacity`` n-grams are held; an emitted token costs O(1).
      - Which n-grams are held decides speed only: the law is exact over any trie.

    Args:
      direct: the direct map, which also gives the canonical path of every other token.
      target, drafter: the vocabularies; a file of another pair is not read.
    """

    def __init__(
        self, direct: DraftPaths, target: Vocabulary, drafter: Vocabulary, config: NgramConfig | None = None
    ) -> None:
        self._path: Callable[[int], tuple[int, ...]] = cache(direct.path)
        self._singles = {token: direct.path(token) for token in direct.trie}
        self._pair = {"target": target.fingerprint, "drafter": drafter.fingerprint}
        self._config = config or NgramConfig()
        self._held = _Ranking(self._config)
        self._trie: Trie | None = direct.trie

    def __len__(self) -> int:
        """How many n-grams are held."""
        return len(self._held)

    def __iter__(self) -> Iterator[int]:
        """The target ids of the n-grams held, the next to be evicted first."""
        return iter(self._held)

    @property
    def trie(self) -> Trie:
        """The paths that may be drafted now. Built anew only where n-grams have come or gone since the last time."""
        if self._trie is None:
            self._trie = Trie.from_paths(self._singles | {token: self._path(token) for token in self._held})
        return self._trie

    def path(self, token: int) -> tuple[int, ...]:
        return self._path(token)

    def observe(self, tokens: Sequence[int]) -> None:
        """Counts each n-gram among ``tokens`` as used once."""
        for token in tokens:
            if len(self._path(token)) > 1 and self._held.use(token):
                self._trie = None

    # --- bytes and file -----------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The n-grams held. The same ones in the same order give the same bytes.

        Paths are not stored; they follow from the tokenizers.
        """
        held = list(self._held)
        uses = [self._held.uses(token) for token in held]
        body = json.dumps({**self._pair, "tokens": held, "uses": uses}, separators=(",", ":")).encode()
        return f"{_FORMAT} {_digest(body)}\n".encode() + body

    def restore_bytes(self, data: bytes, source: str = "the state") -> None:
        """Replaces what is held by what ``to_bytes`` gave; where the capacity is smaller, those of most worth stay.

        Args:
          source: what messages call it.

        Raises:
          ModelError: torn or of another version. Nothing is held then.
          FingerprintError: n-grams of another target or drafter. Nothing is held then.
        """
        self._held, self._trie = _Ranking(self._config), None
        self._held.fill(self._parse(data, source))

    def save(self, path: Path) -> None:
        """Writes ``to_bytes`` to ``path``, whole or not at all, readable by the owner alone."""
        write_atomic(path, self.to_bytes(), mode=0o600)

    def restore(self, path: Path) -> str:
        """Replaces what is held by what ``save`` wrote to ``path``; without such a file, by nothing.

        One of ours that is torn or of another version is set aside under a free name, ``*.unusable``. Nothing else is
        touched. Where the capacity is smaller than the file, the n-grams of most worth stay.

        Returns:
          One line for the user where a file was set aside, else ``""``.

        Raises:
          UserError: what is there is no file of n-grams, or can be neither read nor written.
          FingerprintError: it holds n-grams of another target or drafter.
        """
        self._held, self._trie = _Ranking(self._config), None
        if not path.exists():
            return ""
        self._check_ours(path)
        try:
            self.restore_bytes(path.read_bytes(), str(path))
        except ModelError as error:
            names = (f"{path}.unusable{number or ''}" for number in count())
            aside = path.rename(next(name for name in names if not os.path.lexists(name)))
            return f"{error}; it is now {aside}, and the n-grams begin empty"
        return ""

    def _check_ours(self, path: Path) -> None:
        """Returns if ``path`` is a regular file that ``save`` may have begun, and may be replaced."""
        if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
            raise UserError(f"{path} is no file of n-grams; give the name of one, or of none yet")
        if not os.access(path, os.R_OK | os.W_OK):
            raise UserError(f"{path} cannot be read and written; change its permissions or give another name")
        with path.open("rb") as file:
            beginning = file.read(len(_NAME))
        if not _NAME.startswith(beginning):
            raise UserError(f"{path} is no file of n-grams; give the name of one, or of none yet")

    def _parse(self, data: bytes, source: str) -> list[tuple[int, int]]:
        """The (target id, uses) of the n-grams in ``data``, in its order."""
        head, _, body = data.partition(b"\n")
        form, _, digest = head.decode("ascii", "replace").rpartition(" ")
        if form != _FORMAT or digest != _digest(body):
            raise ModelError(f"{source} is torn or not in the format {_FORMAT!r}")
        content = json.loads(body)
        if {name: content[name] for name in self._pair} != self._pair:
            raise FingerprintError(f"{source} holds n-grams of another target or drafter; each pair needs its own file")
        held = zip(content["tokens"], content["uses"], strict=True)
        # An id whose path is no n-gram comes from other rules of spelling: it is forgotten.
        return [(token, uses) for token, uses in held if len(self._path(token)) > 1]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Ranking:
    """A bounded set of tokens in the order in which they will be evicted. Every change costs O(1).

    A plain dict would not do: finding its first key takes the longer, the more keys before it were deleted.
    """

    def __init__(self, config: NgramConfig) -> None:
        self._config = config
        self._uses: dict[int, int] = {}
        self._ranks: dict[int, OrderedDict[int, None]] = {}
        """By number of uses: the tokens with so many, the least recently used first."""
        self._least = 1
        """The lowest rank that is not empty, where any is."""

    def __len__(self) -> int:
        return len(self._uses)

    def __iter__(self) -> Iterator[int]:
        return (token for uses in sorted(self._ranks) for token in self._ranks[uses])

    def uses(self, token: int) -> int:
        """How often a token was used since it came in, 1 under LRU, which does not count."""
        return self._uses[token]

    def use(self, token: int) -> bool:
        """Whether ``token`` came in, for another where there was no room."""
        uses = self._uses.get(token, 0)
        if uses:
            self._leave(token, uses)
            self._enter(token, self._counted(uses + 1))
            return False
        if not self._config.capacity:
            return False
        if len(self._uses) == self._config.capacity:
            evicted = next(iter(self._ranks[self._least]))
            self._leave(evicted, self._least)
            del self._uses[evicted]
        self._enter(token, 1)
        return True

    def fill(self, held: Sequence[tuple[int, int]]) -> None:
        """Enters (token, uses) in the order of eviction, the last ones where not all have room."""
        for token, uses in held[max(0, len(held) - self._config.capacity) :]:
            self._enter(token, self._counted(uses))
        self._least = min(self._ranks, default=1)

    def _counted(self, uses: int) -> int:
        return uses if self._config.policy == "lfu" else 1

    def _enter(self, token: int, uses: int) -> None:
        self._uses[token] = uses
        self._ranks.setdefault(uses, OrderedDict())[token] = None
        self._least = min(self._least, uses)

    def _leave(self, token: int, uses: int) -> None:
        rank = self._ranks[uses]
        del rank[token]
        if not rank:
            del self._ranks[uses]
            # Whoever empties the lowest rank enters the next one, or another token enters rank 1.
            self._least += uses == self._least
