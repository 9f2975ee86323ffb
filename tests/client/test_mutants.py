"""Each way to get the law wrong that an author could fall into shows in the checker of ``test_exactness.py``.

A mutant replaces one internal function; a rename breaks it loudly. Every mutant runs the same worlds as the shipped
code, which passes them to 1e-12.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from enumeration import EXACT, VOCABULARIES, World, distance, named_world, random_table
from numpy.typing import NDArray

from fleetdraft.client import block, walk
from fleetdraft.client.block import Position
from fleetdraft.client.chooser import Chooser
from fleetdraft.client.law import Law
from fleetdraft.client.sampling import Sampling
from fleetdraft.client.trie import ROOT, Trie

VISIBLE = 1e-3
BUDGET = 3


def cases() -> Iterator[World]:
    yield from (named_world(name) for name in VOCABULARIES)
    # Gaps behind terminal nodes, and a path that is longer than the budget.
    for seed, paths in enumerate([[(0,), (0, 1), (0, 1, 1), (1, 1)], [(0, 1, 1, 0), (1,), (1, 0), (0, 1)]]):
        yield World(
            drafter_rows=random_table(2, 5, 1.5, seed),
            target_rows=random_table(len(paths), BUDGET, 1.5, seed + 10),
            trie=Trie.from_paths(dict(enumerate(paths))),
        )


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return list(cases())


def distances(worlds: list[World], budget: int = BUDGET) -> list[float]:
    return [distance(world, Sampling(), budget) for world in worlds]


def test_the_shipped_law_passes_where_its_mutants_fail(worlds: list[World]) -> None:
    assert max(distances(worlds)) <= EXACT


Patch = Callable[[pytest.MonkeyPatch], None]


# --- wrong carry-over -----------------------------------------------------------------------------------------


def carried_token_not_renormalised(patch: pytest.MonkeyPatch) -> None:
    """The carried token keeps its probability among terminal children and roots."""
    stopped = walk._stopped

    def mutant(law: Law, node: int, depth: int, probability: float, drawn: walk.Carry) -> walk.Walk:
        return replace(stopped(law, node, depth, probability, drawn), carry=drawn)

    patch.setattr(walk, "_stopped", mutant)


def claimed_roots_keep_their_weight_behind_a_carried_token(patch: pytest.MonkeyPatch) -> None:
    """The law of a position with a carried token is that of a fresh one."""
    known_start = Law.__init__

    def mutant(self: Law, **arguments: object) -> None:
        known_start(self, **arguments | {"after": ROOT})

    patch.setattr(Law, "__init__", mutant)


def claimed_roots_lose_all_weight_behind_a_carried_token(patch: pytest.MonkeyPatch) -> None:
    """The law of a position with a carried token knows only what lies outside of the children."""
    shipped = Law._weighted

    def mutant(self: Law, node: int, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        weighted = shipped(self, node, steps)
        claimed = self.trie.claimed(self._after, self.budget) if node == ROOT else ()
        if 0 < len(claimed) < len(weighted):
            weighted[claimed] = 0.0
            weighted /= weighted.sum()
        return weighted

    patch.setattr(Law, "_weighted", mutant)


def roots_that_the_budget_cannot_complete_in_the_law_only(patch: pytest.MonkeyPatch) -> None:
    """r is that of the whole budget, whatever the walk may still spend."""
    shipped = Law.probability

    def mutant(self: Law, target: int) -> float:
        more = Law(
            trie=self.trie,
            rows=self._rows,
            start=self._start,
            after=self._after,
            budget=self.budget + 1,
            temperature=self._temperature,
        )
        return shipped(more, target)

    patch.setattr(Law, "probability", mutant)


# --- missing factors ------------------------------------------------------------------------------------------


def stop_left_out_of_the_law(patch: pytest.MonkeyPatch) -> None:
    """r is the product of the steps alone, wherever it is asked for."""
    patch.setattr(Law, "stop", lambda self, node: 1.0)


def stop_left_out_of_the_proposed_token(patch: pytest.MonkeyPatch) -> None:
    """What is accepted is weighed without it, what replaces a refused token with it."""
    stopped = walk._stopped

    def mutant(law: Law, node: int, depth: int, probability: float, drawn: walk.Carry) -> walk.Walk:
        return replace(stopped(law, node, depth, probability, drawn), probability=probability)

    patch.setattr(walk, "_stopped", mutant)


def last_step(law: Law, node: int) -> float:
    """Probability of the last of several steps to ``node``; 1 where there are not several."""
    branch = law.trie.branch(node)
    return float(law.steps(branch[-2])[branch[-1] - law.trie.first_child(branch[-2])]) if len(branch) > 1 else 1.0


def last_step_left_out_of_the_law(patch: pytest.MonkeyPatch) -> None:
    """One factor of a path of several steps is missing in r of the residual."""
    whole = Law.probability

    def mutant(self: Law, target: int) -> float:
        return whole(self, target) / last_step(self, self.trie.node(target)) if whole(self, target) else 0.0

    patch.setattr(Law, "probability", mutant)


def last_step_left_out_of_the_proposed_token(patch: pytest.MonkeyPatch) -> None:
    """The first step alone is what a proposal of several steps is accepted by."""
    shipped = walk.walk

    def mutant(law: Law, chooser: Chooser, carry: walk.Carry | None = None) -> walk.Walk:
        done = shipped(law, chooser, carry)
        return replace(done, probability=done.probability / last_step(law, done.node))

    patch.setattr(block, "walk", mutant)


# --- wrong residuals ------------------------------------------------------------------------------------------


def residual_is_p(patch: pytest.MonkeyPatch) -> None:
    """A refused token is replaced by one of the target's own law."""

    def mutant(p: NDArray[np.float64], share: float, position: Position, chooser: Chooser) -> int | None:
        return chooser.choose(p)

    patch.setattr(block, "_residual", mutant)


def residual_of_p_without_the_refused_token(patch: pytest.MonkeyPatch) -> None:
    """Any other token, by p: right at temperature 0 only."""

    def mutant(p: NDArray[np.float64], share: float, position: Position, chooser: Chooser) -> int | None:
        weights = p.copy()
        weights[position.walk.target] = 0.0
        return chooser.choose(weights)

    patch.setattr(block, "_residual", mutant)


def residual_by_the_law_of_the_blocks_start(patch: pytest.MonkeyPatch) -> None:
    """r of a later position is taken at the first one's start, with the budget that is left."""
    shipped = block._residual

    def mutant(p: NDArray[np.float64], share: float, position: Position, chooser: Chooser) -> int | None:
        law = position.law
        first = Law(trie=law.trie, rows=law._rows, start=(), after=ROOT, budget=law.budget, temperature=1.0)
        return shipped(p, share, replace(position, law=first), chooser)

    patch.setattr(block, "_residual", mutant)


def residual_by_the_law_of_the_whole_budget(patch: pytest.MonkeyPatch) -> None:
    """r of a later position is taken as if no drafter token had been used."""
    shipped = block._residual

    def mutant(p: NDArray[np.float64], share: float, position: Position, chooser: Chooser) -> int | None:
        law = position.law
        whole = Law(trie=law.trie, rows=law._rows, start=law._start, after=law._after, budget=BUDGET, temperature=1.0)
        return shipped(p, share, replace(position, law=whole), chooser)

    patch.setattr(block, "_residual", mutant)


# --- wrong coins ----------------------------------------------------------------------------------------------


def residual_without_the_share(patch: pytest.MonkeyPatch) -> None:
    """The residual of a refused position is that of a position that was reached for certain."""
    shipped = block._residual

    def mutant(p: NDArray[np.float64], share: float, position: Position, chooser: Chooser) -> int | None:
        return shipped(p, 1.0, position, chooser) if chooser.accept(share) else None

    patch.setattr(block, "_residual", mutant)


def coin_of_the_share(patch: pytest.MonkeyPatch) -> None:
    """A beginning is accepted with its share although a later coin was to fail first."""

    def mutant(p: NDArray[np.float64], share: float, position: Position, chooser: Chooser) -> int | None:
        weights = np.array([max(0.0, share * p[y] - position.law.probability(y)) for y in range(len(p))])
        return chooser.choose(weights if weights.any() else p) if chooser.accept(share) else None

    patch.setattr(block, "_residual", mutant)


MUTANTS: list[Patch] = [
    carried_token_not_renormalised,
    claimed_roots_keep_their_weight_behind_a_carried_token,
    claimed_roots_lose_all_weight_behind_a_carried_token,
    roots_that_the_budget_cannot_complete_in_the_law_only,
    stop_left_out_of_the_law,
    stop_left_out_of_the_proposed_token,
    last_step_left_out_of_the_law,
    last_step_left_out_of_the_proposed_token,
    residual_is_p,
    residual_of_p_without_the_refused_token,
    residual_by_the_law_of_the_blocks_start,
    residual_by_the_law_of_the_whole_budget,
    residual_without_the_share,
    coin_of_the_share,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_mutant_is_caught(worlds: list[World], mutate: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    assert max(distances(worlds)) > VISIBLE
