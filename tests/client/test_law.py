"""The proposal law r equals what the walk really does, enumerated."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.client.decoding.block import Draft, draft_block
from fleetdraft.client.decoding.chooser import Chooser, enumerate_outcomes
from fleetdraft.client.decoding.law import CUT, Law
from fleetdraft.client.decoding.sampling import Sampling
from fleetdraft.client.decoding.walk import Walk, walk
from fleetdraft.client.runtimes.decoder import TableDecoder
from fleetdraft.client.runtimes.rows import Rows
from fleetdraft.client.spelling.trie import ROOT, Trie

EXACT = 1e-12
WIDTH, DEPTH = 3, 4
TARGETS = 7


def drafter(seed: int = 0) -> TableDecoder:
    rng = np.random.default_rng(seed)
    contexts = [rest for n in range(1, DEPTH + 2) for rest in product(range(WIDTH), repeat=n)]
    decoder = TableDecoder({context: 1.5 * rng.standard_normal(WIDTH) for context in contexts})
    decoder.score((0,))
    return decoder


def root_row(decoder: TableDecoder) -> np.ndarray:
    decoder.rewind(0)
    return decoder.score((0,))[0]


def law_at_start(
    trie: Trie, budget: int, temperature: float, decoder: TableDecoder | None = None, after: int = ROOT
) -> Law:
    decoder = decoder or drafter()
    rows = Rows(decoder, root_row(decoder))
    return Law(trie=trie, rows=rows, start=(), after=after, budget=budget, temperature=temperature)


def walk_law(trie: Trie, budget: int, temperature: float, after: int) -> dict[int, float]:
    """The law of the walk, run over every answer; empty where the budget completes no target token."""
    if not law_at_start(trie, budget, temperature).possible:
        return {}
    return enumerate_outcomes(
        lambda chooser: walk(law_at_start(trie, budget, temperature, after=after), chooser).target
    )


tries = st.lists(
    st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=4).map(tuple), min_size=1, max_size=TARGETS, unique=True
).map(lambda paths: Trie.from_paths(dict(enumerate(paths))))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(tries, st.integers(1, DEPTH), st.sampled_from([0, 0.7, 1.0]), st.integers(-1, TARGETS - 1))
def test_r_is_the_probability_that_the_walk_proposes(trie: Trie, budget: int, temperature: float, last: int) -> None:
    walked = walk_law(trie, budget, temperature, trie.node(last))
    law = law_at_start(trie, budget, temperature, after=trie.node(last))
    r = {t: law.probability(t) for t in range(TARGETS)}
    assert all(r[t] == pytest.approx(walked.get(t, 0.0), abs=EXACT) for t in r)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(tries, st.integers(1, DEPTH))
def test_exactly_the_tokens_within_the_budget_can_be_proposed_and_every_walk_proposes_one(
    trie: Trie, budget: int
) -> None:
    """But for a token that a longer one continues where no token would fit behind it: there the walk goes on."""
    law = law_at_start(trie, budget, 1.0)
    r = {t: law.probability(t) for t in range(TARGETS)}

    def ends(token: int) -> bool:
        left = budget - len(trie.path(token))
        return left >= 0 and (trie.goes_on(ROOT, left) or not trie.goes_on(trie.node(token), left))

    assert {t for t in r if r[t] > 0} == {t for t in trie if ends(t)}
    assert sum(r.values()) == pytest.approx(1.0 if law.possible else 0.0, abs=EXACT)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(tries, st.integers(2, DEPTH))
def test_second_position_is_walked_by_its_law_behind_the_first(trie: Trie, budget: int) -> None:
    """P(t1, t2) = r1(t1) r2(t2 | t1): the joint law of two positions."""
    walked: defaultdict[tuple[int, int], float] = defaultdict(float)
    laws: dict[int, Law] = {}

    def run(chooser: Chooser) -> tuple[int, ...]:
        decoder = drafter()
        draft = draft_block(decoder, root_row(decoder), trie, budget, Sampling(), chooser)
        laws.update({d.positions[0].walk.target: d.positions[1].law for d in (draft,) if len(d.positions) > 1})
        return tuple(p.walk.target for p in draft.positions[:2])

    for targets, mass in enumerate_outcomes(run).items():
        if len(targets) == 2:
            walked[targets] += mass
    first = law_at_start(trie, budget, 1.0)
    for (t1, t2), mass in walked.items():
        assert first.probability(t1) * laws[t1].probability(t2) == pytest.approx(mass, abs=EXACT)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(tries, st.integers(1, DEPTH))
def test_walk_reports_the_r_of_what_it_proposes(trie: Trie, budget: int) -> None:
    for draft in drafts(trie, budget):
        for position in draft.positions:
            expected = position.law.probability(position.walk.target)
            assert position.walk.probability == pytest.approx(expected, rel=1e-9, abs=EXACT)


def drafts(trie: Trie, budget: int) -> list[Draft]:
    """Every draft there is."""
    found: list[Draft] = []

    def run(chooser: Chooser) -> int:
        decoder = drafter()
        found.append(draft_block(decoder, root_row(decoder), trie, budget, Sampling(), chooser))
        return 0

    enumerate_outcomes(run)
    return found


@settings(deadline=None, max_examples=120, derandomize=True)
@given(tries, st.integers(1, DEPTH))
def test_known_r_needs_no_call_of_the_drafter(trie: Trie, budget: int) -> None:
    decoder = drafter()
    law = law_at_start(trie, budget, 1.0, decoder)
    targets, r = law.known()
    assert decoder.length == 1
    assert r == pytest.approx([law.probability(t) for t in targets], abs=EXACT)


def test_r_by_hand() -> None:
    """Tokens a, b; targets a, ab, b: behind a, b leads into ab, and hardly ever begins the next token."""
    trie = Trie.from_paths({0: (0,), 1: (0, 1), 2: (1,)})
    half, quarter = np.log([0.5, 0.5, 1e-30]), np.log([0.75, 0.25, 1e-30])
    decoder = TableDecoder({(0,): half, (0, 0): quarter, (0, 1): quarter})
    law = law_at_start(trie, budget=2, temperature=1.0, decoder=decoder)
    assert [law.probability(t) for t in range(3)] == pytest.approx(
        [0.5 * (0.75 + 0.25 * CUT) / (1 + 0.25 * CUT), 0.5 * 0.25 / (1 + 0.25 * CUT), 0.5], abs=1e-7
    )


def test_r_of_a_path_needs_one_call_of_the_drafter() -> None:
    decoder, trie = drafter(), Trie.from_paths({0: (0, 1, 2, 0), 1: (1,)})
    rows = Rows(decoder, root_row(decoder))
    law = Law(trie=trie, rows=rows, start=(), after=ROOT, budget=4, temperature=1.0)
    assert law.probability(0) > 0
    assert rows.calls == 1


def test_final_node_is_proposed_without_a_row_of_its_own() -> None:
    decoder, trie = drafter(), Trie.from_paths({0: (0,), 1: (1,), 2: (2,)})
    rows = Rows(decoder, root_row(decoder))
    law = Law(trie=trie, rows=rows, start=(), after=ROOT, budget=3, temperature=1.0)
    proposed: set[Walk] = set()
    enumerate_outcomes(lambda chooser: proposed.add(walk(law, chooser)))
    assert rows.calls == 0
    assert {(step.target, step.depth) for step in proposed} == {(0, 1), (1, 1), (2, 1)}


def test_a_token_behind_a_gap_is_proposed_only_if_the_budget_completes_it() -> None:
    trie = Trie.from_paths({0: (0,), 1: (0, 1, 2), 2: (2,)})
    assert [law_at_start(trie, budget, 1.0).probability(1) > 0 for budget in (1, 2, 3)] == [False, False, True]
    assert law_at_start(trie, 2, 1.0).ends(trie.node(0))
    assert not law_at_start(trie, 3, 1.0).ends(trie.node(0))


def test_a_root_that_leads_on_from_the_last_token_keeps_a_small_weight_at_the_start() -> None:
    trie = Trie.from_paths({0: (0,), 1: (1,), 2: (2,), 3: (0, 1)})
    free, behind = (law_at_start(trie, 4, 1.0, after=after).roots(ROOT) for after in (ROOT, trie.node(0)))
    weighted = (free.values * np.float32([1, CUT, 1])).astype(np.float64)
    assert behind.probabilities == pytest.approx(weighted / weighted.sum(), abs=EXACT)


def test_a_drafter_that_forbids_all_a_walk_may_do_is_drawn_from_alike() -> None:
    trie = Trie.from_paths({0: (0, 1), 1: (0, 2)})
    decoder = TableDecoder({(0,): [0.0, 1.0, 2.0], (0, 0): [0.0, -np.inf, -np.inf]})
    law = law_at_start(trie, budget=2, temperature=1.0, decoder=decoder)
    assert [law.probability(t) for t in range(2)] == [0.5, 0.5]
