"""A target's answers as a drafter reads them: its tokens in drafter tokens, teacher rows and labels beside them.

The rows are those of ``client/learning/teacher.py``, from the K likeliest tokens instead of all. What the others would
add to a drafter token is in the row's tail instead: a drafter token that begins many unlikely tokens is listed too low,
by at most what the K tokens leave. Projections:

| projection | the row before a target token                | rows behind its first drafter token                    |
|------------|----------------------------------------------|--------------------------------------------------------|
| `direct`   | a token d gets p of the target token d alone | none                                                   |
| `prefix`   | d gets p of all target tokens that begin so  | none                                                   |
| `law`      | as `prefix`                                  | d gets p below the child by d, given p below the node  |

It knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...common.errors import ConfigError
from ...common.speller import canonical_paths
from ...common.spelling import Spelling
from ...common.vocabulary import Vocabulary
from .dataset import Text

PROJECTIONS = ("direct", "prefix", "law")

Integers = NDArray[np.int64]
View = tuple[Integers, NDArray[np.float64]]
"""Drafter tokens and their masses, (n,) each; a token may come several times."""
NOTHING: View = (np.empty(0, np.int64), np.empty(0))


class PathTable:
    """The draft paths of a target's tokens as arrays; fulfils ``spelling.Paths``.

    paths: int64 (V, longest), -1 behind a path's end. lengths: int64 (V,), 0 where there is none.
    """

    def __init__(self, paths: dict[int, tuple[int, ...]], width: int) -> None:
        self._paths = paths
        self.lengths = np.zeros(width, np.int64)
        self.paths = np.full((width, max(map(len, paths.values()), default=1)), -1, np.int64)
        for token, path in paths.items():
            self.lengths[token] = len(path)
            self.paths[token, : len(path)] = path

    def path(self, token: int) -> tuple[int, ...]:
        return self._paths.get(token, ())


@dataclass(frozen=True, kw_only=True)
class DraftText:
    """One answer in L drafter tokens; R of its rows teach, row i judging the token after ``tokens[: i + 1]``.

    tokens: (L,). rows: (R,), ascending. teacher_ids, teacher_probs: (R, K), the likeliest first; probability 0 is
    padding. taught: (R,) where there is a teacher. labels: (R,) next tokens of n-grams. label_probs: (R,) p of the
    target token that the n-gram spells. ngram: (R,) where there is a label.
    """

    tokens: Integers
    rows: Integers
    teacher_ids: Integers
    teacher_probs: NDArray[np.float32]
    taught: NDArray[np.bool_]
    labels: Integers
    label_probs: NDArray[np.float32]
    ngram: NDArray[np.bool_]


class Projector:
    """Sees a target's answers in drafter tokens.

    Args:
      target, drafter: the vocabularies.
      paths: of the target's tokens.
      projection: one of ``PROJECTIONS``.
      width: listed drafter tokens of a row, K.
      longest: in drafter tokens; a longer text loses its beginning.
    """

    def __init__(
        self,
        target: Vocabulary,
        drafter: Vocabulary,
        paths: PathTable,
        *,
        projection: str = "prefix",
        width: int = 16,
        longest: int = 256,
    ) -> None:
        if projection not in PROJECTIONS:
            raise ConfigError(f"projection is {projection!r}, expected one of {', '.join(PROJECTIONS)}")
        for name, value, least in (("width", width, 1), ("longest", longest, 2)):
            if value < least:
                raise ConfigError(f"{name} is {value}, expected at least {least}")
        self._spelling = Spelling(target, drafter, paths)
        self._table, self._projection, self._width, self._longest = paths, projection, width, longest
        self._outcomes = drafter.width

    @classmethod
    def between(cls, target: Path, target_width: int, drafter: Path, drafter_width: int, **options: Any) -> Projector:
        """Reads both tokenizers; canonical paths of a large vocabulary take seconds."""
        words, own = Vocabulary.from_directory(target, target_width), Vocabulary.from_directory(drafter, drafter_width)
        encoder = Tokenizer.from_file(str(drafter / "tokenizer.json"))
        paths = canonical_paths(words, own, lambda text: list(encoder.encode(text, add_special_tokens=False).ids))
        return cls(words, own, PathTable(paths, target_width), **options)

    def __call__(self, text: Text) -> DraftText:
        """The answer's context with what its teacher rows say of it."""
        tokens = self._spelling.context(text.tokens[: text.start].tolist())
        answered = text.tokens[text.start :].tolist()
        starts = list[int]()
        for token in answered:
            starts.append(len(tokens))
            tokens += self._spelling(token)
        masses = [_Masses(self._table, *row) for row in zip(text.teacher_ids, text.teacher_probs, strict=True)]
        teachers = self._listed(self._views(answered, starts, masses, len(tokens)))
        likelihoods = self._likelihoods(answered, starts, masses)
        return self._put_together(np.array(tokens, np.int64), teachers, likelihoods)

    def _views(
        self, answered: Sequence[int], starts: Sequence[int], masses: Sequence[_Masses], end: int
    ) -> Iterator[tuple[int, View]]:
        """Rows and what they say; of two on one row, between which no drafter token is, the later counts."""
        stop, children = 1.0, NOTHING
        for token, start, mass in zip(answered, starts, masses, strict=True):
            path = self._table.path(token)
            if self._projection == "direct":
                yield start - 1, mass.single() if len(path) == 1 else NOTHING
                continue
            roots, weights = mass.below(())
            if self._projection == "prefix":
                yield start - 1, (roots, weights)
                continue
            yield start - 1, (np.append(roots, children[0]), np.append(weights * stop, children[1]))
            for depth in range(1, len(path)):
                yield start - 1 + depth, mass.ahead(path[:depth])[1]
            stop, children = mass.ahead(path)
        yield end - 1, children

    def _listed(self, views: Iterator[tuple[int, View]]) -> dict[int, View]:
        """By row, the drafter tokens with the largest masses, in descending order."""
        said = {row: view for row, view in views if len(view[0])}
        if not said:
            return {}
        rows = np.repeat(list(said), [len(tokens) for tokens, _ in said.values()])
        tokens, masses = (np.concatenate(column) for column in zip(*said.values(), strict=True))
        keys, which = np.unique(rows * self._outcomes + tokens, return_inverse=True)
        sums: NDArray[np.float64] = np.bincount(which, weights=masses, minlength=len(keys)).astype(np.float64)
        keys, sums = keys[sums > 0], sums[sums > 0]
        order = np.lexsort((-sums, keys // self._outcomes))
        keys, sums = keys[order], sums[order]
        found, firsts = np.unique(keys // self._outcomes, return_index=True)
        listed = dict[int, View]()
        for row, first, end in zip(found, firsts, [*firsts[1:], len(keys)], strict=True):
            most = slice(first, min(end, first + self._width))
            listed[int(row)] = keys[most] % self._outcomes, sums[most]
        return listed

    def _likelihoods(
        self, answered: Sequence[int], starts: Sequence[int], masses: Sequence[_Masses]
    ) -> dict[int, float]:
        """By row along the path of an answered n-gram, the target's probability of that n-gram."""
        found = dict[int, float]()
        for token, start, mass in zip(answered, starts, masses, strict=True):
            length = int(self._table.lengths[token])
            if length > 1:
                found |= dict.fromkeys(range(start - 1, start + length - 1), mass.of(token))
        return found

    def _put_together(
        self,
        tokens: Integers,
        teachers: dict[int, View],
        likelihoods: dict[int, float],
    ) -> DraftText:
        first = max(0, len(tokens) - self._longest)
        rows = sorted(row for row in teachers.keys() | likelihoods.keys() if row >= first)
        ids, probs = np.zeros((len(rows), self._width), np.int64), np.zeros((len(rows), self._width), np.float32)
        for at, row in enumerate(rows):
            if row in teachers:
                listed, masses = teachers[row]
                ids[at, : len(listed)], probs[at, : len(listed)] = listed, masses
        ngram = np.array([row in likelihoods for row in rows], np.bool_)
        return DraftText(
            tokens=tokens[first:],
            rows=np.array(rows, np.int64) - first,
            teacher_ids=ids,
            teacher_probs=probs,
            taught=np.array([row in teachers for row in rows], np.bool_),
            labels=np.array([tokens[row + 1] if row in likelihoods else 0 for row in rows], np.int64),
            label_probs=np.array([likelihoods.get(row, 0.0) for row in rows], np.float32),
            ngram=ngram,
        )


class _Masses:
    """One teacher row along the paths: ids and probs (K,) of target tokens."""

    def __init__(self, table: PathTable, ids: NDArray[np.integer], probs: NDArray[np.floating]) -> None:
        self._ids = ids
        self._paths, self._lengths, self._probs = table.paths[ids], table.lengths[ids], probs.astype(np.float64)

    def single(self) -> View:
        """What are single drafter tokens."""
        one = self._lengths == 1
        return self._paths[one, 0], self._probs[one]

    def below(self, node: tuple[int, ...]) -> View:
        """The next drafter tokens of what goes on behind ``node``; a token may come several times."""
        on = self._at(node) & (self._lengths > len(node))
        return self._paths[on, len(node)] if on.any() else NOTHING[0], self._probs[on]

    def ahead(self, node: tuple[int, ...]) -> tuple[float, View]:
        """The probability that a token ends at ``node``, given that it comes there, and what goes on, likewise.

        (1, nothing) where nothing goes on, or where p never comes.
        """
        if not node:
            return 1.0, NOTHING
        tokens, masses = self.below(node)
        own = float(self._probs[self._at(node) & (self._lengths == len(node))].sum())
        mass = own + float(masses.sum())
        if not len(tokens) or mass <= 0:
            return 1.0, NOTHING
        return own / mass, (tokens, masses / mass)

    def of(self, token: int) -> float:
        """Of one target token, 0 where it is not listed."""
        return float(self._probs[self._ids == token].sum())

    def _at(self, node: tuple[int, ...]) -> NDArray[np.bool_]:
        if len(node) > self._paths.shape[1]:
            return np.zeros(len(self._lengths), np.bool_)
        same: NDArray[np.bool_] = (self._paths[:, : len(node)] == np.array(node, np.int64)).all(axis=1)
        return same
