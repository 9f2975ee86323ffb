"""Exact laws of one draft-verify block over tables of logits, by running the shipped code over every random answer.

It knows no test: what a world holds is the caller's choice.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fleetdraft.client.decoding import block
from fleetdraft.client.decoding.block import Draft, Position, Verdict, draft_block, verify_block
from fleetdraft.client.decoding.chooser import Chooser, enumerate_outcomes
from fleetdraft.client.decoding.processors import History, LogitsProcessor, ProcessedRows
from fleetdraft.client.decoding.sampling import Sampling, Weights, target_probabilities
from fleetdraft.client.pacing.boundary import Boundary, LimitRule, unlimited
from fleetdraft.client.runtimes.decoder import TableDecoder
from fleetdraft.client.spelling.trie import Trie
from fleetdraft.common.speller import canonical_paths
from fleetdraft.common.vocabulary import Vocabulary

Context = tuple[int, ...]
Row = NDArray[np.float32]
EXACT = 1e-12
BEGIN = 0
"""The token before every context; both models have it."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A drafter and a target as tables, joined by a trie, and how the target's rows are processed."""

    drafter_rows: Mapping[Context, Row] = field(repr=False)
    target_rows: Mapping[Context, Row] = field(repr=False)
    trie: Trie
    processors: tuple[LogitsProcessor, ...] = ()
    ends: tuple[int, ...] = ()
    room: int = 1 << 10
    """Drafter tokens that fit behind ``BEGIN``."""
    last: int | None = None
    """The target token that the context ends with, for the first position's law."""
    limit: LimitRule = unlimited
    """Drafter tokens that a position may use, where that is not all that is left."""

    @cached_property
    def drafter(self) -> TableDecoder:
        return TableDecoder(self.drafter_rows, limit=1 + self.room)

    @cached_property
    def target(self) -> TableDecoder:
        return TableDecoder(self.target_rows)

    @property
    def width(self) -> int:
        return self.target.vocab_size

    def draft(self, sampling: Sampling, budget: int, chooser: Chooser) -> Draft:
        """A draft after ``BEGIN``."""
        self.drafter.rewind(0)
        row = self.drafter.score((BEGIN,))[0]
        return draft_block(self.drafter, row, self.trie, budget, sampling, chooser, self.ends, self.last, self.limit)

    def verify(self, draft: Draft, sampling: Sampling, chooser: Chooser) -> Verdict:
        """What the target makes of it."""
        self.target.rewind(0)
        rows = self.target.score((BEGIN, *draft.tokens))
        return verify_block(draft, self._processed(draft.tokens, rows), self.drafter, sampling, chooser)

    def block(self, sampling: Sampling, budget: int, chooser: Chooser) -> tuple[int, ...]:
        """What one block emits."""
        return self.verify(self.draft(sampling, budget, chooser), sampling, chooser).tokens

    def p(self, emitted: Context, sampling: Sampling) -> NDArray[np.float64]:
        """float64 (V,): what the target alone samples from after ``emitted``."""
        rows = np.stack([self.target_rows[(BEGIN, *emitted[:n])] for n in range(len(emitted) + 1)])
        return target_probabilities(self._processed(emitted, rows)[len(emitted)], sampling)

    def _processed(self, tokens: Context, rows: NDArray[np.float32]) -> ProcessedRows:
        history = History((BEGIN,))
        history.propose(tokens)
        return ProcessedRows(rows, history, self.processors)


def table(rows: Sequence[Row], depth: int) -> dict[Context, Row]:
    """One of ``rows``, by checksum, for each context of up to ``depth`` tokens."""
    return {context: rows[crc32(bytes(context)) % len(rows)] for context in contexts(len(rows[0]), depth)}


def random_table(width: int, depth: int, scale: float, seed: int) -> dict[Context, Row]:
    """A row of its own for each context."""
    every = contexts(width, depth)
    logits = (scale * np.random.default_rng(seed).standard_normal((len(every), width))).astype(np.float32)
    return dict(zip(every, logits, strict=True))


def contexts(width: int, depth: int) -> list[Context]:
    return [(BEGIN, *rest) for n in range(depth + 1) for rest in product(range(width), repeat=n)]


def trie_between(drafter: Vocabulary, target: Vocabulary) -> Trie:
    """Canonical paths by longest match: the encoder finds no segmentation."""
    return Trie.from_paths(canonical_paths(target, drafter, encode=lambda text: []))


#: name: (drafter strings, target strings)
VOCABULARIES = {
    "identical": ("a b c", "a b c"),
    "overlapping": ("a b c", "ab a abc c ba"),
    "disjoint": ("a b", "ab ba aab bb"),
    "every root claimed": ("a b", "a b ab aa ba"),
    "gaps and unusable": ("a b c", "a abc c z cz"),
}


def named_world(name: str, drafter_scale: float = 1.5, depth: int = 5) -> World:
    """A world of random logits over one of ``VOCABULARIES``, as deep as blocks of budget ``depth`` need."""
    drafter, target = (
        Vocabulary(token_bytes=tuple(text.encode() for text in side.split())) for side in VOCABULARIES[name]
    )
    return World(
        drafter_rows=random_table(drafter.width, depth, drafter_scale, seed=2),
        target_rows=random_table(target.width, depth, 1.5, seed=1),
        trie=trie_between(drafter, target),
    )


def stops_by_prefix(seed: int, share: float = 0.5) -> LimitRule:
    """Goes on or not by a checksum of all that is drawn already, with both outcomes for different draws."""
    return lambda boundary: boundary.left * (_checksum(seed, boundary) / 2**32 < share)


def limits_by_prefix(seed: int) -> LimitRule:
    """Any limit by a checksum of all that is drawn already: none, none at all, and those between; 0 is the rarest."""

    def limit(boundary: Boundary) -> int:
        return min(boundary.left, (0, 1, 1, 1, 2, 2, 3, boundary.left)[_checksum(seed, boundary) % 8])

    return limit


def _checksum(seed: int, boundary: Boundary) -> int:
    return crc32(bytes((seed, *boundary.proposed, 255, *boundary.start)))


@contextmanager
def settled_residuals() -> Iterator[None]:
    """Each residual is enumerated by itself and becomes one question with its exact law.

    Several positions of a block may ask for one, and the runs for all orders of their tries would multiply.
    """
    shipped = block._residual

    def settled(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
        law = enumerate_outcomes(lambda inner: shipped(p, share, position, inner))
        return list(law)[chooser.choose(Weights(np.array(list(law.values()))))]

    block._residual = settled
    try:
        yield
    finally:
        block._residual = shipped


# --- laws of the first tokens of a text, as arrays with one axis for each token --------------------------------


def target_law(world: World, sampling: Sampling, depth: int, emitted: Context = ()) -> NDArray[np.float64]:
    """float64 (V,) * depth: the target's own law of the next ``depth`` tokens."""
    p = world.p(emitted, sampling)
    if depth == 1:
        return p
    law = np.zeros((world.width,) * depth)
    for token in np.flatnonzero(p):
        law[token] = p[token] * target_law(world, sampling, depth - 1, (*emitted, int(token)))
    return law


def emitted_law(world: World, sampling: Sampling, budget: int, depth: int) -> NDArray[np.float64]:
    """float64 (V,) * depth: the law of the first ``depth`` tokens of one block and, where it is over, the target."""
    law = np.zeros((world.width,) * depth)
    with settled_residuals():
        blocks = enumerate_outcomes(lambda chooser: world.block(sampling, budget, chooser))
    for tokens, mass in blocks.items():
        rest = depth - len(tokens)
        law[tokens[:depth]] += mass * (target_law(world, sampling, rest, tokens) if rest > 0 else 1.0)
    return law


def distance(world: World, sampling: Sampling, budget: int) -> float:
    """Total variation between what a block makes of the first tokens, at most three, and the target's own law."""
    depth = min(budget + 1, 3)
    emitted, alone = emitted_law(world, sampling, budget, depth), target_law(world, sampling, depth)
    return float(np.abs(emitted - alone).sum() / 2)
