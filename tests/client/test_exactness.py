"""A draft-verify block emits what the target alone would, to 1e-12, over generated vocabularies, tries and rows.

Hypothesis makes the worlds; ``enumeration.py`` runs the shipped code over every random answer.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from enumeration import (
    EXACT,
    VOCABULARIES,
    Context,
    Row,
    World,
    distance,
    limits_by_prefix,
    named_world,
    settled_residuals,
    stops_by_prefix,
    table,
    trie_between,
)
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fleetdraft.client.decoding.block import Draft
from fleetdraft.client.decoding.chooser import Chooser, enumerate_outcomes
from fleetdraft.client.decoding.law import Law
from fleetdraft.client.decoding.processors import LogitsProcessor, RepetitionPenalty
from fleetdraft.client.decoding.sampling import Sampling, Weights
from fleetdraft.client.pacing.boundary import Boundary
from fleetdraft.client.spelling.trie import ROOT, Trie
from fleetdraft.common.vocabulary import Vocabulary

TEMPERATURES = [0, 0.7, 1]
DEPTH = 4
"""The largest budget: no context is asked for that is deeper."""
AMPLE = 1 << 10
"""Room for any draft."""


def law_settings(examples: int) -> Callable[..., Callable[..., None]]:
    return settings(deadline=None, derandomize=True, max_examples=examples, database=None)


# --- worlds ---------------------------------------------------------------------------------------------------

#: Ties, and logits so far apart that other tokens keep no mass in float64.
odd_logits = st.floats(-4, 4, width=32) | st.sampled_from([0.0, 1.0, 45.0, -1000.0])
#: A target's rows may forbid tokens.
masked_logits = odd_logits | st.just(float("-inf"))


@st.composite
def rows(draw: st.DrawFn, width: int, elements: st.SearchStrategy[float]) -> list[Row]:
    """Ordinary rows, and perhaps odd ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ordinary = (draw(st.sampled_from([1.5, 1.5, 6.0])) * rng.standard_normal((6, width))).astype(np.float32)
    odd = arrays(np.float32, width, elements=elements, fill=st.nothing()).filter(lambda row: np.isfinite(row.max()))
    return [*ordinary, *draw(st.lists(odd, max_size=4))]


@st.composite
def between(draw: st.DrawFn, trie: Trie, drafter_width: int, target_width: int, **fields: object) -> World:
    """A world around a trie."""
    return World(
        drafter_rows=table(draw(rows(drafter_width, odd_logits)), DEPTH),
        target_rows=table(draw(rows(target_width, masked_logits)), DEPTH),
        trie=trie,
        room=draw(st.sampled_from([AMPLE] * 6 + [1, 2])),
        last=draw(st.none() | st.integers(0, target_width - 1)),
        **fields,
    )


SHARED = [b"a", b"b", b"ab", b"ba", b"aa", b"aab", b"abb", b"abab"]
FOREIGN = [b"c", b"ca", b"ac"]


@st.composite
def canonical_worlds(draw: st.DrawFn) -> World:
    """Vocabularies with equal, overlapping, foreign and repeated strings; paths by longest match; perhaps an eos."""
    drafter = draw(st.just([b"a", b"b"]) | st.lists(st.sampled_from(SHARED), min_size=2, max_size=3))
    different = st.lists(st.sampled_from([*SHARED, *SHARED, *FOREIGN]), min_size=3, max_size=5)
    target = draw(st.one_of(st.just(drafter), different, different))
    if len(drafter) < 3 and len(target) < 5 and draw(st.booleans()):
        sides = [Vocabulary(token_bytes=(*side, b""), eos=(len(side),)) for side in (drafter, target)]
    else:
        sides = [Vocabulary(token_bytes=tuple(side)) for side in (drafter, target)]
    trie = trie_between(*sides)
    return draw(between(trie, sides[0].width, sides[1].width, ends=sides[1].eos))


@st.composite
def free_worlds(draw: st.DrawFn) -> World:
    """Any trie: paths with gaps behind terminal nodes, roots that are claimed, target tokens without a path."""
    width = draw(st.sampled_from([2, 2, 3, 1]))
    path = st.lists(st.integers(0, width - 1), min_size=1, max_size=DEPTH).map(tuple)
    paths = draw(st.lists(path, min_size=2, max_size=5, unique=True))
    if draw(st.booleans()):  # no gaps: the beginnings of a path are paths, so walks may stop at each
        paths = list(dict.fromkeys(path[:n] for path in paths for n in range(1, len(path) + 1)))[:5]
    targets = draw(st.permutations(range(len(paths) + draw(st.integers(0, 1)))))
    return draw(between(Trie.from_paths(dict(zip(targets, paths, strict=False))), width, len(targets)))


worlds = canonical_worlds() | free_worlds()
temperatures = st.sampled_from(TEMPERATURES)


# --- the law of what is emitted -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@law_settings(60)
@given(world=worlds)
def test_law_of_the_first_tokens_is_the_targets(budget: int, temperature: float, world: World) -> None:
    assert distance(world, Sampling(temperature=temperature), budget) <= EXACT


@law_settings(200)
@given(
    world=worlds,
    budget=st.integers(1, 3),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.7, 1]),
        top_k=st.integers(0, 3),
        top_p=st.sampled_from([1, 0.9, 0.5]),
        min_p=st.sampled_from([0, 0.1, 0.6]),
    ),
)
def test_law_is_the_targets_under_top_k_top_p_and_min_p(world: World, budget: int, sampling: Sampling) -> None:
    assert distance(world, sampling, budget) <= EXACT


def no_repetition(tokens: NDArray[np.int64], logits: Row) -> Row:
    """A grammar: the last token never comes twice, unless nothing else is left."""
    out = logits.copy()
    out[tokens[-1]] = -np.inf
    return out if np.isfinite(out.max()) else logits


def alternation(tokens: NDArray[np.int64], logits: Row) -> Row:
    """A grammar: tokens of even and odd id take turns by the length of the text; else the lowest id."""
    out = np.where(np.arange(len(logits)) % 2 == len(tokens) % 2, logits, np.float32(-np.inf))
    if not np.isfinite(out.max()):
        out[0] = 0.0
    return out


processors = st.lists(
    st.sampled_from([no_repetition, alternation, RepetitionPenalty(1.7), RepetitionPenalty(0.4)]),
    min_size=1,
    max_size=2,
).map(tuple)


@law_settings(200)
@given(world=worlds, budget=st.integers(1, 3), temperature=temperatures, processors=processors)
def test_law_is_the_targets_when_processors_depend_on_the_text(
    world: World, budget: int, temperature: float, processors: tuple[LogitsProcessor, ...]
) -> None:
    assert distance(replace(world, processors=processors), Sampling(temperature=temperature), budget) <= EXACT


@pytest.mark.parametrize("temperature", TEMPERATURES)
@law_settings(60)
@given(world=worlds, budget=st.integers(2, 4), seed=st.integers(0, 255), share=st.sampled_from([0.5, 0.8]))
def test_law_is_the_targets_when_a_draft_stops_by_what_is_drawn_already(
    temperature: float, world: World, budget: int, seed: int, share: float
) -> None:
    stopping = replace(world, limit=stops_by_prefix(seed, share))
    assert distance(stopping, Sampling(temperature=temperature), budget) <= EXACT


@pytest.mark.parametrize("temperature", TEMPERATURES)
@law_settings(80)
@given(world=worlds, budget=st.integers(2, 4), seed=st.integers(0, 255))
def test_law_is_the_targets_when_what_is_drawn_already_limits_a_position(
    temperature: float, world: World, budget: int, seed: int
) -> None:
    limited = replace(world, limit=limits_by_prefix(seed))
    assert distance(limited, Sampling(temperature=temperature), budget) <= EXACT


def test_a_position_uses_its_limit_at_most_and_the_next_one_has_all_that_is_left_of_the_block() -> None:
    def one_then_all(boundary: Boundary) -> int:
        seen.append(boundary.left)
        return boundary.left if boundary.proposed else 1

    def run(chooser: Chooser) -> tuple[int, ...]:
        seen.clear()
        positions = world.draft(Sampling(), 4, chooser).positions
        spent = [0, *np.cumsum([p.walk.depth for p in positions]).tolist()]
        assert seen == [4 - before for before in spent[: len(seen)]]
        assert [p.law.budget for p in positions] == [1, *(4 - before for before in spent[1:-1])]
        return tuple(p.walk.depth for p in positions)

    seen: list[int] = []
    world = replace(named_world("overlapping"), limit=one_then_all)
    depths = enumerate_outcomes(run)
    assert {depth[0] for depth in depths} == {1}
    assert any(len(depth) > 1 and depth[1] == 3 for depth in depths)


def test_a_stop_rule_ends_drafts_at_some_boundaries_and_not_at_others() -> None:
    world = replace(named_world("overlapping"), limit=stops_by_prefix(1, 0.8))
    lengths = enumerate_outcomes(lambda chooser: len(world.draft(Sampling(), 4, chooser).tokens))
    assert {0, 1, 2} & set(lengths) and len(lengths) > 1
    whole = enumerate_outcomes(lambda chooser: len(named_world("overlapping").draft(Sampling(), 4, chooser).tokens))
    assert mean_of(lengths) < mean_of(whole)


def mean_of(law: dict[int, float]) -> float:
    return sum(value * mass for value, mass in law.items())


# --- dead ends ------------------------------------------------------------------------------------------------


@st.composite
def dead_end_worlds(draw: st.DrawFn) -> tuple[World, int]:
    """(world, budget): the drafter wants a path that is longer than its budget; any other is far less likely."""
    budget = draw(st.integers(1, 3))
    end = tuple(draw(st.lists(st.integers(0, 1), min_size=budget + 1, max_size=DEPTH)))
    beginnings = {end[:n] for n in range(1, budget + 1)}
    path = st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple).filter(lambda path: path not in beginnings)
    others = draw(st.lists(path.filter(lambda path: path != end), min_size=1, max_size=4, unique=True))
    world = draw(between(Trie.from_paths(dict(enumerate([end, *others]))), 3, len(others) + 1))
    eager = dict(world.drafter_rows)
    for n in range(budget):
        context = (0, *end[:n])
        eager[context] = np.clip(eager[context], -4, 4)
        eager[context][end[n]] = draw(st.sampled_from([7.0, 12.0, 60.0]))
    return replace(world, drafter_rows=eager, room=AMPLE), budget


@law_settings(120)
@given(case=dead_end_worlds(), temperature=temperatures)
def test_law_is_the_targets_where_the_drafter_wants_what_the_budget_does_not_complete(
    case: tuple[World, int], temperature: float
) -> None:
    world, budget = case
    assert distance(world, Sampling(temperature=temperature), budget) <= EXACT


@law_settings(120)
@given(world=worlds, budget=st.integers(1, 3))
def test_every_position_proposes_a_token_within_its_budget(world: World, budget: int) -> None:
    def run(chooser: Chooser) -> None:
        left = min(budget, world.room)
        for position in world.draft(Sampling(), budget, chooser).positions:
            assert world.trie.path(position.walk.target) == world.trie.spelling(position.walk.node)
            assert 0 < position.walk.depth <= position.law.budget == left
            left -= position.walk.depth

    enumerate_outcomes(run)


# --- what the worlds hold -------------------------------------------------------------------------------------


def drafts(world: World) -> list[Draft]:
    found: list[Draft] = []
    enumerate_outcomes(lambda chooser: found.append(world.draft(Sampling(), 3, chooser)))
    return found


def is_anywhere(feature: Callable[[Draft], bool]) -> Callable[[World], bool]:
    return lambda world: any(map(feature, drafts(world)))


def claimed(trie: Trie, node: int) -> set[int]:
    """The roots that are children of ``node`` too, with a budget of three."""
    return set(trie.child_tokens(ROOT, 3).tolist()) & set(trie.child_tokens(node, 3).tolist()) if node else set()


FEATURES = {
    "a budget that completes nothing more": is_anywhere(
        lambda d: bool(d.positions) and d.draft_tokens < min(3, d.positions[0].law.budget) and d.tokens[-1] != 2
    ),
    "a walk that stops where it could go on, and a position behind it": is_anywhere(
        lambda d: any(p.law.trie.goes_on(p.walk.node, p.law.budget - p.walk.depth) for p in d.positions[:-1])
    ),
    "a proposal of several drafter tokens": is_anywhere(lambda d: any(p.walk.depth > 1 for p in d.positions)),
    "a path with a gap behind a target token": lambda w: any(
        sorted(ends) != ends
        for ends in ([w.trie.target[n] >= 0 for n in w.trie.branch(w.trie.node(t))] for t in w.trie)
    ),
    "a target token without a path": lambda w: 0 < len(w.trie) < w.width,
    "no path at all": lambda w: len(w.trie) == 0,
    "a root that a child claims": lambda w: any(
        len(claimed(w.trie, n)) and w.trie.target[n] >= 0 for n in range(1, len(w.trie.target))
    ),
    "a root claimed at the start": lambda w: w.last is not None and len(claimed(w.trie, w.trie.node(w.last))) > 0,
    "a token that the target forbids": lambda w: any(np.isneginf(row).any() for row in w.target_rows.values()),
    "a context with no room for the whole budget": lambda w: w.room < 3 and len(w.trie) > 0,
    "an end of text that is proposed": lambda w: any(set(d.tokens) & set(w.ends) for d in drafts(w)),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_worlds_with_each_difficulty_are_generated(feature: str) -> None:
    fast = settings(derandomize=True, max_examples=400, database=None, phases=[Phase.generate])
    find(worlds, FEATURES[feature], settings=fast)


# --- identical vocabularies -----------------------------------------------------------------------------------


@st.composite
def identical_worlds(draw: st.DrawFn) -> World:
    texts = draw(st.lists(st.sampled_from([*SHARED, *FOREIGN]), min_size=2, max_size=4, unique=True))
    same = Vocabulary(token_bytes=tuple(texts))
    return replace(draw(between(trie_between(same, same), same.width, same.width)), room=AMPLE)


Blocks = dict[tuple[Context, int], float]
"""Probability of each (emitted tokens, how many of them were proposals)."""


def q(world: World, context: Context, temperature: float) -> NDArray[np.float64]:
    """The softmax of a row with numerators in float32 and their sum in float64."""
    scores = world.drafter_rows[(0, *context)]
    if temperature == 0:
        return np.eye(len(scores))[scores.argmax()]
    odds = np.exp((scores - scores.max()) / np.float32(temperature)).astype(np.float64)
    return odds / odds.sum()


def block_verification(world: World, sampling: Sampling, gamma: int) -> Blocks:
    """Algorithm 2 of Sun et al., *Block verification accelerates speculative decoding* (2024), drafting from q."""
    law = defaultdict[tuple[Context, int], float](float)
    for draft in product(range(world.width), repeat=gamma):
        p = [world.p(draft[:i], sampling) for i in range(gamma + 1)]
        odds = [q(world, draft[:i], sampling.temperature) for i in range(gamma)]
        mass, shares = float(np.prod([row[x] for row, x in zip(odds, draft, strict=True)])), [1.0]
        for i, x in enumerate(draft if mass > 0 else ()):
            shares.append(min(1.0, shares[i] * p[i][x] / odds[i][x]))
        for i in range(gamma, -1, -1) if mass > 0 else ():
            weights = p[i] if i == gamma else np.maximum(0.0, shares[i] * p[i] - odds[i])
            total = weights.sum()
            coin = shares[i] if i == gamma else total / (total + 1 - shares[i]) if i and total else float(i == 0)
            for y in np.flatnonzero(weights).tolist():
                law[(*draft[:i], y), i] += mass * coin * weights[y] / total
            mass *= 1 - coin
    return law


def outcome(world: World, sampling: Sampling, gamma: int, chooser: Chooser) -> tuple[Context, int]:
    verdict = world.verify(world.draft(sampling, gamma, chooser), sampling, chooser)
    return verdict.tokens, verdict.accepted


@law_settings(60)
@given(world=identical_worlds(), gamma=st.integers(1, 3), temperature=temperatures, top_k=st.sampled_from([0, 2]))
def test_blocks_over_identical_vocabularies_are_those_of_block_verification(
    world: World, gamma: int, temperature: float, top_k: int
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k)
    with settled_residuals():
        ours = enumerate_outcomes(lambda chooser: outcome(world, sampling, gamma, chooser))
    theirs = block_verification(world, sampling, gamma)
    assert {o: ours.get(o, 0.0) for o in theirs} == pytest.approx(theirs, abs=EXACT)
    assert mean_tokens(ours) == pytest.approx(mean_tokens(theirs), abs=EXACT)


def mean_tokens(blocks: Blocks) -> float:
    return sum(mass * len(tokens) for (tokens, _), mass in blocks.items())


class Questions:
    """Notes each question of a run before it is answered."""

    def __init__(self, inner: Chooser) -> None:
        self._inner = inner
        self.accepts: list[float] = []
        self.weights: list[Weights] = []

    def choose(self, weights: Weights) -> int:
        self.weights.append(weights)
        return self._inner.choose(weights)

    def accept(self, probability: float) -> bool:
        self.accepts.append(probability)
        return self._inner.accept(probability)


@law_settings(60)
@given(world=identical_worlds(), gamma=st.integers(1, 3), temperature=st.sampled_from([0.7, 1]))
def test_over_identical_vocabularies_a_residual_takes_two_draws_at_most_and_no_drafter_call(
    world: World, gamma: int, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature)

    def run(chooser: Chooser) -> None:
        asked = Questions(chooser)
        draft = world.draft(sampling, gamma, asked)
        proposed, calls = len(asked.weights), draft.rows.calls
        verdict = world.verify(draft, sampling, asked)
        assert proposed == gamma
        assert len(asked.weights) - proposed <= max(1, 2 * (gamma - verdict.accepted))
        assert draft.rows.calls == calls

    enumerate_outcomes(run)


# --- how much is accepted, and what it costs -------------------------------------------------------------------


def shares(world: World, draft: Draft, sampling: Sampling) -> list[float]:
    """a_0, a_1 ... of ``verify.md``."""
    a = [1.0]
    for i, token in enumerate(draft.tokens):
        a.append(min(1.0, a[i] * world.p(draft.tokens[:i], sampling)[token] / draft.positions[i].walk.probability))
    return a


def one_by_one(world: World, draft: Draft, sampling: Sampling) -> list[float]:
    """Probabilities that each beginning of the draft survives a coin for each token, and a refusal ends it."""
    kept = [1.0]
    for i, token in enumerate(draft.tokens):
        kept.append(
            kept[i] * min(1.0, world.p(draft.tokens[:i], sampling)[token] / draft.positions[i].walk.probability)
        )
    return kept


def mean(run: Callable[[Chooser], float]) -> float:
    return sum(value * mass for value, mass in enumerate_outcomes(run).items())


@law_settings(60)
@given(world=worlds, budget=st.integers(1, 4), temperature=st.sampled_from([0.7, 1]))
def test_a_beginning_of_the_draft_is_accepted_with_its_share_and_never_less_than_one_by_one(
    world: World, budget: int, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature)
    with settled_residuals():
        accepted = mean(lambda chooser: outcome(world, sampling, budget, chooser)[1])
    expected = mean(lambda chooser: sum(shares(world, world.draft(sampling, budget, chooser), sampling)[1:]))
    separate = mean(lambda chooser: sum(one_by_one(world, world.draft(sampling, budget, chooser), sampling)[1:]))
    assert accepted == pytest.approx(expected, abs=EXACT)
    assert accepted >= separate - EXACT


@pytest.mark.parametrize("name", VOCABULARIES)
def test_r_is_evaluated_at_most_once_for_each_position_reached(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world, sampling, budget, evaluate, count = named_world(name), Sampling(), 2, Law.probability, [0]

    def counted(law: Law, target: int) -> float:
        count[0] += 1
        return evaluate(law, target)

    def evaluated(chooser: Chooser) -> float:
        count[0] = 0
        world.block(sampling, budget, chooser)
        return count[0]

    def reached(chooser: Chooser) -> float:
        draft = world.draft(sampling, budget, chooser)
        return sum(shares(world, draft, sampling)[: len(draft.positions)])

    monkeypatch.setattr(Law, "probability", counted)
    assert mean(evaluated) <= mean(reached) + EXACT
