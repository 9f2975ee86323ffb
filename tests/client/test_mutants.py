"""Each way to get the law wrong that an author could fall into shows in the checker of ``test_exactness.py``.

A mutant replaces one internal function; a rename breaks it loudly. Every mutant runs the same worlds as the shipped
code, which passes them to 1e-12.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import enumeration
import numpy as np
import pytest
from enumeration import EXACT, VOCABULARIES, World, distance, limits_by_prefix, named_world, random_table

from fleetdraft.client.decoding import block, walk
from fleetdraft.client.decoding.block import Position
from fleetdraft.client.decoding.chooser import Chooser
from fleetdraft.client.decoding.law import Law
from fleetdraft.client.decoding.sampling import Sampling, Weights
from fleetdraft.client.pacing.boundary import Boundary, LimitRule
from fleetdraft.client.spelling.trie import ROOT, Trie

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


def shows(worlds: list[World]) -> bool:
    """Whether some law is another; the enumeration refuses a coin above one, which would pass as a negative mass."""
    try:
        return max(distances(worlds)) > VISIBLE
    except ValueError as error:
        return "asked to accept with probability" in str(error)


Patch = Callable[[pytest.MonkeyPatch], None]


# --- wrong carry-over -----------------------------------------------------------------------------------------


def first_token_behind_a_stop_is_drawn_as_at_a_fresh_start(patch: pytest.MonkeyPatch) -> None:
    """Claimed roots keep their weight where the walk draws, and r is that of the lowered ones."""

    def mutant(law: Law, chooser: Chooser) -> tuple[int, float]:
        fresh = Law(trie=law.trie, rows=law._rows, start=law.start, after=ROOT, budget=law.budget, temperature=1.0)
        token = chooser.choose(fresh.roots(ROOT))
        return token, law.roots(ROOT).probability(token)

    patch.setattr(walk, "_root", mutant)


def first_token_behind_a_stop_is_drawn_outside_of_the_children_only(patch: pytest.MonkeyPatch) -> None:
    """Claimed roots lose all their weight where the walk draws."""

    def mutant(law: Law, chooser: Chooser) -> tuple[int, float]:
        roots = law.roots(ROOT)
        free = roots.values.copy()
        free[law.trie.child_tokens(law._after, law.budget) if law._after else []] = 0.0
        token = chooser.choose(Weights(free) if free.any() else roots)
        return token, roots.probability(token)

    patch.setattr(walk, "_root", mutant)


def first_token_behind_a_stop_is_drawn_from_the_row_at_the_blocks_start(patch: pytest.MonkeyPatch) -> None:
    """What was read since the block began is forgotten where the walk draws."""

    def mutant(law: Law, chooser: Chooser) -> tuple[int, float]:
        early = Law(trie=law.trie, rows=law._rows, start=(), after=law._after, budget=law.budget, temperature=1.0)
        token = chooser.choose(early.roots(ROOT))
        return token, law.roots(ROOT).probability(token)

    patch.setattr(walk, "_root", mutant)


def roots_that_the_budget_cannot_complete_in_the_law_only(patch: pytest.MonkeyPatch) -> None:
    """r is that of the whole budget, whatever the walk may still spend."""
    shipped = Law.probability

    def mutant(self: Law, target: int) -> float:
        more = Law(
            trie=self.trie,
            rows=self._rows,
            start=self.start,
            after=self._after,
            budget=self.budget + 1,
            temperature=self._temperature,
        )
        return shipped(more, target)

    patch.setattr(Law, "probability", mutant)


# --- missing factors ------------------------------------------------------------------------------------------


def stop_left_out_of_the_law(patch: pytest.MonkeyPatch) -> None:
    """r is the product of the steps alone, wherever it is asked for."""
    whole = Law.probability

    def mutant(self: Law, target: int) -> float:
        r = whole(self, target)
        return r / self.stop(self.trie.node(target)) if r else 0.0

    patch.setattr(Law, "probability", mutant)


def stop_left_out_of_the_proposed_token(patch: pytest.MonkeyPatch) -> None:
    """What is accepted is weighed without it, what replaces a refused token with it."""
    shipped = walk.walk

    def mutant(law: Law, chooser: Chooser) -> walk.Walk:
        done = shipped(law, chooser)
        return replace(done, probability=done.probability / law.stop(done.node))

    patch.setattr(block, "walk", mutant)


def going_on_left_out_of_the_law(patch: pytest.MonkeyPatch) -> None:
    """A step behind a terminal node counts as if no walk stopped there."""
    shipped = Law.step

    def mutant(self: Law, node: int, child: int) -> float:
        if node == ROOT:
            return shipped(self, node, child)
        return self.children(node).probability(child - self.trie.first_child(node))

    patch.setattr(Law, "step", mutant)


def last_step(law: Law, node: int) -> float:
    """Probability of the last of several steps to ``node``; 1 where there are not several."""
    branch = law.trie.branch(node)
    return law.step(branch[-2], branch[-1]) if len(branch) > 1 else 1.0


def last_step_left_out_of_the_law(patch: pytest.MonkeyPatch) -> None:
    """One factor of a path of several steps is missing in r of the residual."""
    whole = Law.probability

    def mutant(self: Law, target: int) -> float:
        return whole(self, target) / last_step(self, self.trie.node(target)) if whole(self, target) else 0.0

    patch.setattr(Law, "probability", mutant)


def last_step_left_out_of_the_proposed_token(patch: pytest.MonkeyPatch) -> None:
    """The first step alone is what a proposal of several steps is accepted by."""
    shipped = walk.walk

    def mutant(law: Law, chooser: Chooser) -> walk.Walk:
        done = shipped(law, chooser)
        return replace(done, probability=done.probability / last_step(law, done.node))

    patch.setattr(block, "walk", mutant)


# --- wrong residuals ------------------------------------------------------------------------------------------


def residual_is_p(patch: pytest.MonkeyPatch) -> None:
    """A refused token is replaced by one of the target's own law."""

    def mutant(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
        return chooser.choose(p)

    patch.setattr(block, "_residual", mutant)


def residual_of_p_without_the_refused_token(patch: pytest.MonkeyPatch) -> None:
    """Any other token, by p: right at temperature 0 only."""

    def mutant(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
        values = p.values.copy()
        values[position.walk.target] = 0.0
        return chooser.choose(Weights(values))

    patch.setattr(block, "_residual", mutant)


def residual_by_the_law_of_the_blocks_start(patch: pytest.MonkeyPatch) -> None:
    """r of a later position is taken at the first one's start, with the budget that is left."""
    shipped = block._residual

    def mutant(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
        law = position.law
        first = Law(trie=law.trie, rows=law._rows, start=(), after=ROOT, budget=law.budget, temperature=1.0)
        return shipped(p, share, replace(position, law=first), chooser)

    patch.setattr(block, "_residual", mutant)


def residual_by_the_law_of_the_whole_budget(patch: pytest.MonkeyPatch) -> None:
    """r of a later position is taken as if no drafter token had been used."""
    shipped = block._residual

    def mutant(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
        law = position.law
        whole = Law(trie=law.trie, rows=law._rows, start=law.start, after=law._after, budget=BUDGET, temperature=1.0)
        return shipped(p, share, replace(position, law=whole), chooser)

    patch.setattr(block, "_residual", mutant)


# --- wrong coins ----------------------------------------------------------------------------------------------


def residual_without_the_share(patch: pytest.MonkeyPatch) -> None:
    """The residual of a refused position is that of a position that was reached for certain."""
    shipped = block._residual

    def mutant(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
        return shipped(p, 1.0, position, chooser) if chooser.accept(share) else None

    patch.setattr(block, "_residual", mutant)


def coin_of_the_share(patch: pytest.MonkeyPatch) -> None:
    """A beginning is accepted with its share although a later coin was to fail first."""

    def mutant(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
        r = np.array([position.law.probability(y) for y in range(len(p.values))])
        weights = np.maximum(share * p.probabilities - r, 0.0)
        return chooser.choose(Weights(weights) if weights.any() else p) if chooser.accept(share) else None

    patch.setattr(block, "_residual", mutant)


# --- wrong stops ----------------------------------------------------------------------------------------------


def stop_by_the_token_of_the_position_itself(patch: pytest.MonkeyPatch) -> None:
    """A position is proposed only if its own token pleases: the law no longer knows what was left out."""
    shipped = block.draft_block

    def mutant(*args: object, **kwargs: object) -> block.Draft:
        draft = shipped(*args, **kwargs)
        kept = next((i for i, token in enumerate(draft.tokens) if token % 2), len(draft.tokens))
        return replace(draft, positions=draft.positions[:kept])

    patch.setattr(enumeration, "draft_block", mutant)


def stop_by_a_look_at_the_next_draw(patch: pytest.MonkeyPatch) -> None:
    """The last position is dropped if its walk was unlikely, as a threshold on the proposal's own probability does."""
    shipped = block.draft_block

    def mutant(*args: object, **kwargs: object) -> block.Draft:
        draft = shipped(*args, **kwargs)
        unlikely = draft.positions and draft.positions[-1].walk.probability < 0.3
        return replace(draft, positions=draft.positions[:-1]) if unlikely else draft

    patch.setattr(enumeration, "draft_block", mutant)


MUTANTS: list[Patch] = [
    first_token_behind_a_stop_is_drawn_as_at_a_fresh_start,
    first_token_behind_a_stop_is_drawn_outside_of_the_children_only,
    first_token_behind_a_stop_is_drawn_from_the_row_at_the_blocks_start,
    roots_that_the_budget_cannot_complete_in_the_law_only,
    stop_left_out_of_the_law,
    stop_left_out_of_the_proposed_token,
    going_on_left_out_of_the_law,
    last_step_left_out_of_the_law,
    last_step_left_out_of_the_proposed_token,
    residual_is_p,
    residual_of_p_without_the_refused_token,
    residual_by_the_law_of_the_blocks_start,
    residual_by_the_law_of_the_whole_budget,
    residual_without_the_share,
    coin_of_the_share,
    stop_by_the_token_of_the_position_itself,
    stop_by_a_look_at_the_next_draw,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_mutant_is_caught(worlds: list[World], mutate: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    assert shows(worlds)


# --- limits of positions --------------------------------------------------------------------------------------


def roots_shared_whatever_the_budget_where_r_is_asked_for(patch: pytest.MonkeyPatch) -> None:
    """What replaces a refused token is weighed by the roots that the position before had seen for its own limit."""
    shipped = Law.following

    def mutant(self: Law, node: int, budget: int) -> Law:
        behind = shipped(self, node, budget)
        if self.trie.goes_on(ROOT, self._left(node)) and self.trie.target[node] >= 0:
            wrong = self.roots(node)
            behind.probability = lambda target: wrong_probability(behind, wrong, target)  # type: ignore[method-assign]
        return behind

    def wrong_probability(law: Law, roots: Weights, target: int) -> float:
        right, node = Law.probability(law, target), law.trie.node(target)
        if not right:
            return 0.0
        token = law.trie.token(law.trie.branch(node)[0])
        return (
            right
            / law.roots(ROOT).probability(token)
            * (roots.probability(token) if token < len(roots.values) else 0.0)
        )

    patch.setattr(Law, "following", mutant)


def limit_in_the_walk_only(patch: pytest.MonkeyPatch) -> None:
    """r is that of all that the block has left, whatever the position may use."""
    shipped = Law.within

    def mutant(self: Law, budget: int) -> Law:
        limited = shipped(self, budget)
        if limited is not self:
            limited.probability = self.probability  # type: ignore[method-assign]
        return limited

    patch.setattr(Law, "within", mutant)


def one_then_all(boundary: Boundary) -> int:
    return boundary.left if boundary.proposed else min(2, boundary.left)


LIMITS: list[LimitRule] = [one_then_all, *map(limits_by_prefix, range(2))]
LIMITED_MUTANTS: list[Patch] = [
    roots_shared_whatever_the_budget_where_r_is_asked_for,
    limit_in_the_walk_only,
]


def limited(worlds: list[World]) -> list[World]:
    return [replace(world, limit=limit) for world in worlds for limit in LIMITS]


def test_the_shipped_law_passes_under_limits(worlds: list[World]) -> None:
    assert max(distances(limited(worlds))) <= EXACT


@pytest.mark.parametrize("mutate", LIMITED_MUTANTS, ids=lambda mutate: mutate.__name__)
def test_mutant_is_caught_under_limits(worlds: list[World], mutate: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    assert shows(limited(worlds))
