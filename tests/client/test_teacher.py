"""What the target's distribution becomes in drafter tokens: by hand, and against the proposal law by enumeration."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.client.decoding.emission import Emission
from fleetdraft.client.decoding.law import Law
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.lesson_writer import LessonWriter, Positions
from fleetdraft.client.learning.teacher import PathTree, Projection, View
from fleetdraft.client.runtimes.decoder import TableDecoder
from fleetdraft.client.runtimes.rows import Rows
from fleetdraft.client.spelling.trie import ROOT, Trie
from fleetdraft.common.spelling import Spelling
from fleetdraft.common.vocabulary import Vocabulary

BEGIN, WIDTH, DEPTH = 0, 4, 3
LISTED = 8
ROUNDING = 1e-5
"""Teachers are float32."""


def written(
    trie: Trie,
    emitted: list[Emission],
    p: list[list[float]],
    projection: Projection = "law",
    width: int = LISTED,
    positions: Positions = "all",
    rejected: bool = True,
) -> Lesson:
    """The lesson of a text behind ``BEGIN``."""
    target = Vocabulary(token_bytes=(b"",) * len(p[0]))
    spelling = Spelling(target, Vocabulary(token_bytes=(b"",) * 32, bos=BEGIN), trie)
    with np.errstate(divide="ignore"):
        rows = np.log(np.array(p, np.float32))
    writing = LessonWriter(spelling, trie, projection, width, positions, rejected).begin([], 100)
    writing.add(emitted, rows)
    return writing.lesson()


def text(*tokens: int) -> list[Emission]:
    return [Emission(token=token) for token in tokens]


def teacher(lesson: Lesson, row: int) -> dict[int, float]:
    """Listed drafter tokens with their probability."""
    listed = zip(lesson.teacher_ids[row].tolist(), lesson.teacher_probs[row].tolist(), strict=True)
    return {token: pytest.approx(mass, abs=1e-6) for token, mass in listed if mass > 0}


# --- by hand: targets a, ac, b over the drafter tokens a = 0, b = 1, c = 2 ---------------------------------------

BY_HAND = Trie.from_paths({0: (0,), 1: (0, 2), 2: (1,)})
FIRST, SECOND = [0.3, 0.3, 0.4], [0.5, 0.1, 0.4]


def test_direct_teaches_a_token_what_the_target_gives_it_alone() -> None:
    lesson = written(BY_HAND, text(0, 2), [FIRST, SECOND], "direct")
    assert teacher(lesson, 0) == {0: 0.3, 1: 0.4}
    assert teacher(lesson, 1) == {0: 0.5, 1: 0.4}


def test_prefix_teaches_the_first_token_of_all_that_begin_so() -> None:
    lesson = written(BY_HAND, text(0, 2), [FIRST, SECOND], "prefix")
    assert teacher(lesson, 0) == {0: 0.6, 1: 0.4}
    assert teacher(lesson, 1) == {0: 0.6, 1: 0.4}


def test_law_teaches_behind_a_token_that_may_go_on_both_what_goes_on_and_what_comes_next() -> None:
    """Behind a, p stops with 0.3 / 0.6; the next position then begins with a (0.6) or b (0.4)."""
    lesson = written(BY_HAND, text(0, 2), [FIRST, SECOND])
    assert teacher(lesson, 0) == {0: 0.6, 1: 0.4}
    assert teacher(lesson, 1) == {0: 0.5 * 0.6, 1: 0.5 * 0.4, 2: 0.5}
    assert lesson.taught.tolist() == [True, True, False]


def test_law_leaves_stopping_to_the_tail_where_nobody_knows_what_comes_next() -> None:
    within, at_the_end = written(BY_HAND, text(1), [FIRST]), written(BY_HAND, text(2, 0), [FIRST, FIRST])
    assert teacher(within, 1) == {2: 0.5}
    assert teacher(at_the_end, 2) == {2: 0.5}


def test_a_first_token_that_may_also_go_on_gets_both_masses() -> None:
    """Targets a, ab, b: behind a, p goes on to b with 0.5, or stops and begins with b with 0.4."""
    trie = Trie.from_paths({0: (0,), 1: (0, 1), 2: (1,)})
    assert teacher(written(trie, text(0, 2), [FIRST, SECOND]), 1) == {0: 0.5 * 0.6, 1: 0.5 + 0.5 * 0.4}


def test_labels_are_the_path_of_an_ngram_with_the_targets_probability_of_it() -> None:
    lesson = written(BY_HAND, text(2, 1), [FIRST, SECOND])
    assert lesson.ngram.tolist() == [False, True, True, False]
    assert lesson.labels[1:3].tolist() == [0, 2]
    assert lesson.label_probs.tolist() == pytest.approx([0, 0.1, 0.1, 0])


# --- what is listed ----------------------------------------------------------------------------------------------

MANY = Trie.from_paths({token: (token,) for token in range(12)})
FALLING = (np.arange(12, 0, -1) / 78).tolist()
"""12 / 78, 11 / 78, … 1 / 78"""


def rejection(of: int) -> list[Emission]:
    return [Emission(token=0, kind="corrected", rejected=of)]


def test_the_largest_are_listed_in_order_and_the_rest_is_tail() -> None:
    lesson = written(MANY, text(0), [FALLING], "prefix")
    assert lesson.teacher_ids[0].tolist() == list(range(8))
    assert lesson.teacher_probs[0].tolist() == pytest.approx(FALLING[:8])


def test_a_rejected_token_is_listed_however_unlikely() -> None:
    lesson = written(MANY, rejection(of=11), [FALLING], "prefix")
    assert lesson.teacher_ids[0].tolist() == [*range(7), 11]
    assert lesson.teacher_probs[0].tolist() == pytest.approx([*FALLING[:7], FALLING[11]])


def test_a_rejected_token_is_left_to_the_tail_where_that_is_asked_for() -> None:
    lesson = written(MANY, rejection(of=11), [FALLING], "prefix", rejected=False)
    assert lesson.teacher_ids[0].tolist() == list(range(8))


@pytest.mark.parametrize("projection", ["direct", "prefix", "law"])
def test_a_rejected_token_without_any_probability_is_no_padding(projection: Projection) -> None:
    lesson = written(MANY, rejection(of=3), [[0.5, 0.5, *[0.0] * 10]], projection)
    listed = dict(zip(lesson.teacher_ids[0].tolist(), lesson.teacher_probs[0].tolist(), strict=True))
    assert 0 < listed[3] < 1e-20


def test_a_rejected_token_is_listed_where_its_path_parts_from_the_text() -> None:
    """Targets xy, xz and nine others behind x: xz is emitted and the unlikely x 9 was proposed."""
    trie = Trie.from_paths({token: (0, token) for token in range(1, 11)})
    emitted = [Emission(token=1, kind="corrected", rejected=10)]
    lesson = written(trie, emitted, [[0.0, *[0.11] * 9, 0.01]])
    assert 10 not in lesson.teacher_ids[0]
    assert 10 in lesson.teacher_ids[1]
    assert lesson.teacher_probs[1][lesson.teacher_ids[1] == 10] == pytest.approx(0.01)


def test_wrong_positions_alone_teach_where_that_is_asked_for() -> None:
    emitted = [Emission(token=0, kind="accepted"), Emission(token=1, kind="corrected", rejected=2), *text(2, 1)]
    rows = [FIRST, SECOND, FIRST, SECOND]
    only = written(BY_HAND, emitted, rows, positions="wrong")
    every = written(BY_HAND, emitted, rows)
    assert every.judged.tolist() == [True] * 6 + [False]
    assert only.judged.tolist() == [False, True, True, *[False] * 4]
    assert teacher(only, 1) == {0: 0.6, 1: 0.4}  # no token of the position before, which was right


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(8, 10))
def test_listing_makes_no_mass_and_leaves_nothing_wanted_out(masses: list[float], width: int) -> None:
    shares, wanted = np.array(masses) / max(1.0, sum(masses)), len(masses) - 1
    ids, probs = View(np.arange(len(masses)), shares).listed(width, [wanted])
    assert probs.sum() <= shares.sum() + 1e-6
    assert wanted in ids[probs > 0]


# --- the law ------------------------------------------------------------------------------------------------------

#: Roots are a and b, further tokens c and d: no root is a child, so that ``law.CUT`` weighs nothing.
unclaimed = st.lists(
    st.tuples(st.integers(0, 1), st.lists(st.integers(2, 3), max_size=DEPTH - 1)).map(lambda p: (p[0], *p[1])),
    min_size=2,
    max_size=9,
    unique=True,
).map(lambda paths: Trie.from_paths(dict(enumerate(paths))))


def drafter(trie: Trie, seed: int, outside: bool) -> TableDecoder:
    """Random rows; with mass on what no walk may do only where ``outside``."""
    rng, rows = np.random.default_rng(seed), {}
    nodes = {trie.spelling(node): node for t in trie for node in trie.branch(trie.node(t))} | {(): ROOT}
    for path in (path for n in range(DEPTH + 1) for path in product(range(WIDTH), repeat=n)):
        row = 1.5 * rng.standard_normal(WIDTH)
        if not outside and path in nodes:
            row[[token for token in range(WIDTH) if token not in allowed(trie, nodes[path])]] = -np.inf
        rows[(BEGIN, *path)] = row
    return TableDecoder(rows)


def allowed(trie: Trie, node: int) -> set[int]:
    """What a walk may draw at a node: its children, and the next token's roots where it may stop."""
    children = trie.child_tokens(node, DEPTH + 1).tolist()
    return {*children, *(trie.child_tokens(ROOT, DEPTH + 1).tolist() if trie.target[node] >= 0 else ())}


def proposal_law(trie: Trie, decoder: TableDecoder) -> np.ndarray:
    """r by target token."""
    decoder.rewind(0)
    rows = Rows(decoder, decoder.score((BEGIN,))[0])
    law = Law(trie=trie, rows=rows, start=(), after=ROOT, budget=2 * DEPTH, temperature=1.0)
    return np.array([law.probability(t) for t in range(len(trie))])


def row_losses(lesson: Lesson, decoder: TableDecoder) -> float:
    """Σ of KL(teacher ‖ drafter) over a lesson's rows, each over listed tokens and tail."""
    decoder.rewind(0)
    total = 0.0
    for row, logits in enumerate(decoder.score(lesson.tokens.tolist()).astype(np.float64)):
        if lesson.taught[row]:
            listed = lesson.teacher_probs[row] > 0
            p, q = lesson.teacher_probs[row][listed].astype(np.float64), np.exp(logits - logits.max())
            q = (q / q.sum())[lesson.teacher_ids[row][listed]]
            total += divergence(np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum()))
    return total


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p‖q), where what rounding left of p does not count."""
    some = p > 1e-6
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-300))).sum())


def mean_loss(trie: Trie, p: np.ndarray, decoder: TableDecoder, projection: Projection) -> float:
    """The mean over texts of one token drawn from p."""
    lessons = [written(trie, text(t), [p.tolist()], projection) for t in range(len(p))]
    return sum(mass * row_losses(lesson, decoder) for mass, lesson in zip(p, lessons, strict=True))


@settings(deadline=None, max_examples=80, derandomize=True)
@given(unclaimed, st.integers(0, 100))
def test_law_bounds_the_divergence_from_the_proposal_law(trie: Trie, seed: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.ones(len(trie)))
    decoder = drafter(trie, seed, outside=True)
    assert mean_loss(trie, p, decoder, "law") >= divergence(p, proposal_law(trie, decoder)) - ROUNDING


@settings(deadline=None, max_examples=80, derandomize=True)
@given(unclaimed, st.integers(0, 100))
def test_law_is_the_divergence_from_the_proposal_law_where_the_drafter_does_what_a_walk_may(
    trie: Trie, seed: int
) -> None:
    p = np.random.default_rng(seed).dirichlet(np.ones(len(trie)))
    decoder = drafter(trie, seed, outside=False)
    expected = divergence(p, proposal_law(trie, decoder))
    assert mean_loss(trie, p, decoder, "law") == pytest.approx(expected, abs=ROUNDING)


def test_prefix_sees_less_than_the_whole_divergence() -> None:
    p, decoder = np.array(FIRST), drafter(BY_HAND, 1, outside=False)
    expected = divergence(p, proposal_law(BY_HAND, decoder))
    assert mean_loss(BY_HAND, p, decoder, "prefix") < expected - 0.01


tries = st.lists(
    st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=4).map(tuple), min_size=1, max_size=9, unique=True
).map(lambda paths: Trie.from_paths(dict(enumerate(paths))))


@settings(deadline=None, derandomize=True)
@given(tries, st.integers(0, 100))
def test_the_mass_below_a_child_is_that_of_the_tokens_whose_paths_pass_it(trie: Trie, seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((1, len(trie))).astype(np.float32)
    p, tree = np.exp(logits[0]) / np.exp(logits[0]).sum(), PathTree(trie)
    law = tree.law(logits)[0]
    for node in {ROOT, *(node for t in trie for node in trie.branch(trie.node(t)))}:
        view = tree.below(law, node)
        passing = masses_behind(trie, p, trie.spelling(node))
        assert dict(zip(view.tokens.tolist(), view.masses, strict=True)) == pytest.approx(passing, abs=1e-6)


def masses_behind(trie: Trie, p: np.ndarray, path: tuple[int, ...]) -> dict[int, float]:
    """By the drafter token that follows ``path``."""
    masses: defaultdict[int, float] = defaultdict(float)
    for t in trie:
        if trie.path(t)[: len(path)] == path and len(trie.path(t)) > len(path):
            masses[trie.path(t)[len(path)]] += p[t]
    return masses
