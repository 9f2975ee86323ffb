"""A draft-verify block: what the drafter keeps, what is asked of the target, and edge cases.

That its output law is the target's: ``test_exactness.py``.
"""

import numpy as np
import pytest
from enumeration import BEGIN, EXACT, VOCABULARIES, World, named_world, random_table, settled_residuals, target_law

from fleetdraft.client.decoding.block import draft_block, verify_block
from fleetdraft.client.decoding.chooser import Chooser, RandomChooser, enumerate_outcomes
from fleetdraft.client.decoding.sampling import Sampling
from fleetdraft.client.runtimes.decoder import TableDecoder
from fleetdraft.client.spelling.trie import Trie


@pytest.fixture(params=VOCABULARIES)
def world(request: pytest.FixtureRequest) -> World:
    return named_world(request.param)


def generator() -> np.random.Generator:
    return np.random.default_rng(7)


# --- blocks that follow each other ----------------------------------------------------------------------------


def first_two(world: World, sampling: Sampling, budget: int, chooser: Chooser) -> tuple[int, ...]:
    """The first two tokens of successive blocks, both decoders kept as a session keeps them."""
    world.drafter.rewind(0)
    world.target.rewind(0)
    emitted = next_block(world, sampling, budget, (), chooser)
    if len(emitted) < 2:
        emitted += next_block(world, sampling, budget, emitted, chooser)
    return emitted[:2]


def next_block(
    world: World, sampling: Sampling, budget: int, emitted: tuple[int, ...], chooser: Chooser
) -> tuple[int, ...]:
    drafter, target, trie = world.drafter, world.target, world.trie
    text, spelled = (BEGIN, *emitted), (BEGIN, *(d for t in emitted for d in trie.path(t)))
    drafter.rewind(min(drafter.length, len(spelled) - 1))
    draft = draft_block(drafter, drafter.score(spelled[drafter.length :])[-1], trie, budget, sampling, chooser)
    target.rewind(len(text) - 1)
    return verify_block(draft, target.score((text[-1], *draft.tokens)), drafter, sampling, chooser).tokens


@pytest.mark.parametrize("name", ["identical", "disjoint", "gaps and unusable"])
def test_law_is_the_targets_when_blocks_follow_each_other_without_a_reset(name: str) -> None:
    world, sampling = named_world(name), Sampling()
    law = np.zeros((world.width, world.width))
    with settled_residuals():
        emitted = enumerate_outcomes(lambda chooser: first_two(world, sampling, 2, chooser))
    for tokens, mass in emitted.items():
        law[tokens] = mass
    assert law == pytest.approx(target_law(world, sampling, 2), abs=EXACT)


def test_random_chooser_draws_the_targets_law() -> None:
    world, sampling, runs, chooser = named_world("overlapping"), Sampling(), 6000, RandomChooser(generator())
    counts = np.zeros((world.width, world.width))
    for _ in range(runs):
        counts[first_two(world, sampling, 3, chooser)] += 1
    expected = runs * target_law(world, sampling, 2)
    # 24 degrees of freedom: P(chi_square > 51.2) = 0.001.
    assert expected.size == 25
    assert ((counts - expected) ** 2 / expected).sum() < 51.2


# --- what a verdict says --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1])
def test_drafter_is_left_with_accepted_tokens_only(world: World, temperature: float) -> None:
    sampling = Sampling(temperature=temperature)

    def run(chooser: Chooser) -> None:
        verdict = world.verify(world.draft(sampling, 3, chooser), sampling, chooser)
        accepted = tuple(d for t in verdict.tokens[: verdict.accepted] for d in world.trie.path(t))
        assert len(verdict.tokens) == verdict.accepted + 1 <= verdict.counters.drafted + 1
        assert verdict.drafter_tokens == accepted[: len(verdict.drafter_tokens)]
        assert world.drafter.length == verdict.drafter_length == 1 + len(verdict.drafter_tokens)

    with settled_residuals():
        enumerate_outcomes(run)


class AskedRows:
    """Notes which rows are asked for."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self.asked = rows.copy(), set[int]()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> np.ndarray:
        self.asked.add(position)
        return self._rows[position]


@pytest.mark.parametrize("temperature", [0, 1])
def test_no_row_behind_a_proposal_that_the_target_forbids_is_asked_for(world: World, temperature: float) -> None:
    """A processor could not make it: such a proposal may be no text under its rules."""
    sampling = Sampling(temperature=temperature, top_k=2)

    def run(chooser: Chooser) -> None:
        draft = world.draft(sampling, 3, chooser)
        world.target.rewind(0)
        rows = AskedRows(world.target.score((BEGIN, *draft.tokens)))
        verify_block(draft, rows, world.drafter, sampling, chooser)
        possible = [world.p(draft.tokens[:i], sampling)[token] > 0 for i, token in enumerate(draft.tokens)]
        assert all(all(possible[:i]) for i in rows.asked)

    with settled_residuals():
        enumerate_outcomes(run)


def test_first_proposal_is_accepted_with_the_overlap_of_p_and_r(world: World) -> None:
    sampling, budget = Sampling(), 3
    law = world.draft(sampling, budget, RandomChooser(generator())).positions[0].law
    r = np.array([law.probability(t) for t in range(world.width)])
    with settled_residuals():
        accepted = enumerate_outcomes(
            lambda chooser: world.verify(world.draft(sampling, budget, chooser), sampling, chooser).accepted > 0
        )
    assert accepted.get(True, 0.0) == pytest.approx(np.minimum(world.p((), sampling), r).sum(), abs=EXACT)


def block_law(world: World, sampling: Sampling) -> dict[tuple[int, ...], float]:
    with settled_residuals():
        return enumerate_outcomes(lambda chooser: world.block(sampling, 4, chooser))


def test_greedy_is_the_limit_of_the_sampled_route(world: World) -> None:
    cold = Sampling(temperature=1e-6)  # every softmax is one-hot in float64, through the route with r and residual
    assert block_law(world, cold) == pytest.approx(block_law(world, Sampling(temperature=0)), abs=EXACT)


def test_every_emitted_token_has_positive_target_probability() -> None:
    world = named_world("overlapping", drafter_scale=40.0)
    best = int(world.target_rows[BEGIN,].argmax())
    assert {tokens[0] for tokens in block_law(world, Sampling(top_k=1))} == {best}


# --- edges ----------------------------------------------------------------------------------------------------


def test_wrong_number_of_target_rows_is_refused() -> None:
    world, sampling, chooser = named_world("identical"), Sampling(temperature=0), RandomChooser(generator())
    draft = world.draft(sampling, 2, chooser)
    with pytest.raises(ValueError, match="2 target rows for 2 proposed tokens"):
        verify_block(draft, np.zeros((2, 3), np.float32), world.drafter, sampling, chooser)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_budget_shrinks_to_the_room_in_the_drafters_context(room: int) -> None:
    drafter = TableDecoder(random_table(3, 3, 1.0, seed=3), limit=1 + room)
    trie = Trie.from_paths({0: (0,), 1: (1,), 2: (2,)})
    draft = draft_block(drafter, drafter.score((BEGIN,))[0], trie, 4, Sampling(), RandomChooser(generator()))
    assert len(draft.tokens) == draft.draft_tokens == room


def test_nothing_is_proposed_after_an_end_of_text() -> None:
    world, chooser = named_world("identical"), RandomChooser(generator())
    row = world.drafter.score((BEGIN,))[0]
    draft = draft_block(world.drafter, row, world.trie, 4, Sampling(temperature=0), chooser, ends={int(row.argmax())})
    assert draft.tokens == (int(row.argmax()),)
    assert draft.rows.calls == 0


def test_empty_trie_proposes_nothing_and_the_target_decides() -> None:
    world, chooser, sampling = named_world("identical"), RandomChooser(generator()), Sampling(temperature=0)
    draft = draft_block(world.drafter, world.drafter.score((BEGIN,))[0], Trie.from_paths({}), 4, sampling, chooser)
    rows = world.target_rows[BEGIN,][None]
    assert verify_block(draft, rows, world.drafter, sampling, chooser).tokens == (int(rows[0].argmax()),)
