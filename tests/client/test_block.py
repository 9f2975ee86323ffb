"""Losslessness of a draft-verify block, by running the shipped code over every random answer (no sampling)."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pytest

from fleetdraft.client.block import Verdict, draft_block, verify_block
from fleetdraft.client.chooser import Chooser, RandomChooser, enumerate_outcomes
from fleetdraft.client.decoder import TableDecoder
from fleetdraft.client.sampling import Sampling, target_probabilities
from fleetdraft.client.trie import Trie, canonical_paths
from fleetdraft.common.vocabulary import Vocabulary

#: Probability of each emitted sequence.
Law = dict[tuple[int, ...], float]
EXACT = 1e-12
BEGIN = 0
#: name: (drafter strings, target strings)
VOCABULARIES = {
    "identical": ("a b c", "a b c"),
    "overlapping": ("a b c", "ab a abc c ba"),
    "disjoint": ("a b", "ab ba aab bb"),
    "every root claimed": ("a b", "a b ab aa ba"),
    "unreachable and unusable": ("a b c", "a abc c z cz"),
}


@dataclass(frozen=True)
class Pair:
    """A drafter and a target as tables of random logits over all contexts that two emitted tokens can need."""

    drafter: TableDecoder
    target: TableDecoder
    trie: Trie
    rows: dict[tuple[int, ...], np.ndarray]


def table(width: int, depth: int, scale: float, seed: int) -> dict[tuple[int, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    contexts = [(BEGIN, *rest) for n in range(depth + 1) for rest in product(range(width), repeat=n)]
    logits = (scale * rng.standard_normal((len(contexts), width))).astype(np.float32)
    return dict(zip(contexts, logits, strict=True))


@cache
def pair(name: str, drafter_scale: float = 1.5) -> Pair:
    texts = [tuple(text.encode() for text in side.split()) for side in VOCABULARIES[name]]
    drafter, target = (Vocabulary(token_bytes=side) for side in texts)
    trie = Trie.from_paths(canonical_paths(target, drafter, encode=lambda text: []))
    rows = table(target.width, 5, 1.5, seed=1)
    return Pair(TableDecoder(table(drafter.width, 7, drafter_scale, seed=2)), TableDecoder(rows), trie, rows)


def emit(models: Pair, sampling: Sampling, budget: int, emitted: tuple[int, ...], chooser: Chooser) -> tuple[int, ...]:
    """What one block emits after ``emitted``, with both decoders kept as a session would keep them."""
    drafter, target, trie = models.drafter, models.target, models.trie
    text, spelled = (BEGIN, *emitted), (BEGIN, *(d for t in emitted for d in trie.path(t)))
    drafter.rewind(min(drafter.length, len(spelled) - 1))
    draft = draft_block(drafter, drafter.score(spelled[drafter.length :])[-1], trie, budget, sampling, chooser)
    target.rewind(len(text) - 1)
    verdict = verify_block(draft, target.score((text[-1], *draft.tokens)), drafter, sampling, chooser)
    check_bookkeeping(verdict, drafter, trie, base=len(spelled))
    return verdict.tokens


def check_bookkeeping(verdict: Verdict, drafter: TableDecoder, trie: Trie, base: int) -> None:
    accepted = tuple(d for t in verdict.tokens[: verdict.accepted] for d in trie.path(t))
    assert len(verdict.tokens) == verdict.accepted + 1 <= verdict.counters.drafted + 1
    assert verdict.drafter_tokens == accepted[: len(verdict.drafter_tokens)]
    assert drafter.length == verdict.drafter_length == base + len(verdict.drafter_tokens)


def first_two(models: Pair, sampling: Sampling, budget: int, chooser: Chooser) -> tuple[int, ...]:
    """The first two tokens that successive blocks emit."""
    models.drafter.rewind(0)
    models.target.rewind(0)
    emitted = emit(models, sampling, budget, (), chooser)
    if len(emitted) < 2:
        emitted += emit(models, sampling, budget, emitted, chooser)
    return emitted[:2]


def block_law(models: Pair, sampling: Sampling, budget: int, emitted: tuple[int, ...] = ()) -> Law:
    def run(chooser: Chooser) -> tuple[int, ...]:
        models.drafter.rewind(0)
        models.target.rewind(0)
        models.target.score((BEGIN, *emitted))
        return emit(models, sampling, budget, emitted, chooser)

    return enumerate_outcomes(run)


def two_token_law(models: Pair, sampling: Sampling, budget: int) -> Law:
    """Law of the first two tokens; where the first block emits one, the second comes from another real block."""
    law: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for tokens, mass in block_law(models, sampling, budget).items():
        following = block_law(models, sampling, min(budget, 2), tokens) if len(tokens) == 1 else {tokens[1:]: 1.0}
        for more, share in following.items():
            law[tokens[0], more[0]] += mass * share
    return law


def target_law(models: Pair, sampling: Sampling) -> Law:
    """The target's own law of two successive tokens."""
    first = target_probabilities(models.rows[BEGIN,], sampling)
    return {
        (a, b): first[a] * second
        for a in range(len(first))
        for b, second in enumerate(target_probabilities(models.rows[BEGIN, a], sampling))
    }


def total_variation(left: Law, right: Law) -> float:
    return sum(abs(left.get(key, 0.0) - right.get(key, 0.0)) for key in left.keys() | right.keys()) / 2


def assert_lossless(models: Pair, sampling: Sampling, budget: int) -> None:
    assert total_variation(two_token_law(models, sampling, budget), target_law(models, sampling)) <= EXACT


@pytest.mark.parametrize("temperature", [0, 0.7, 1])
@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_output_law_of_two_tokens_is_the_targets(name: str, budget: int, temperature: float) -> None:
    assert_lossless(pair(name), Sampling(temperature=temperature), budget)


@pytest.mark.parametrize("name", ["identical", "disjoint", "unreachable and unusable"])
def test_output_law_is_the_targets_when_blocks_follow_each_other_without_a_reset(name: str) -> None:
    sampling = Sampling(temperature=1)
    law = enumerate_outcomes(lambda chooser: first_two(pair(name), sampling, 2, chooser))
    assert total_variation(law, target_law(pair(name), sampling)) <= EXACT


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=2), Sampling(top_p=0.6), Sampling(temperature=0.7, top_k=4, top_p=0.8)], ids=str
)
@pytest.mark.parametrize("name", VOCABULARIES)
def test_output_law_is_the_targets_under_top_k_and_top_p(name: str, sampling: Sampling) -> None:
    assert_lossless(pair(name), sampling, budget=3)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_output_law_is_the_targets_with_an_absurd_drafter(name: str, temperature: float) -> None:
    assert_lossless(pair(name, drafter_scale=40.0), Sampling(temperature=temperature), budget=3)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_greedy_is_the_limit_of_the_sampled_route(name: str) -> None:
    cold = Sampling(temperature=1e-6)  # every softmax is one-hot in float64, through the route with r and residual
    assert block_law(pair(name), cold, 4) == pytest.approx(block_law(pair(name), Sampling(temperature=0), 4), abs=EXACT)


def test_identical_vocabularies_reduce_to_ordinary_speculative_sampling() -> None:
    models, sampling = pair("identical"), Sampling(temperature=0.7)
    p = target_probabilities(models.rows[BEGIN,], sampling)
    models.drafter.rewind(0)
    row = models.drafter.score((BEGIN,))[0]
    q = target_probabilities(row, sampling)
    first = defaultdict(float)
    for tokens, mass in block_law(models, sampling, 1).items():
        first[len(tokens) == 2] += mass
    assert first[True] == pytest.approx(np.minimum(p, q).sum(), abs=EXACT)
    draft = draft_block(models.drafter, row, models.trie, 1, sampling, RandomChooser(np.random.default_rng(0)))
    assert draft.positions[0].walk.probability == pytest.approx(q[draft.tokens[0]], abs=EXACT)


def test_residual_over_identical_vocabularies_is_drawn_at_once() -> None:
    models, sampling = pair("identical"), Sampling(temperature=1)

    def run(chooser: Chooser) -> int:
        counting = CountingChooser(chooser)
        models.drafter.rewind(0)
        models.target.rewind(0)
        emit(models, sampling, 1, (), counting)
        return counting.choices

    assert set(enumerate_outcomes(run)) == {2}  # the proposal, and the residual or the bonus


class CountingChooser:
    def __init__(self, inner: Chooser) -> None:
        self.inner, self.choices = inner, 0

    def choose(self, weights: np.ndarray) -> int:
        self.choices += 1
        return self.inner.choose(weights)

    def accept(self, probability: float) -> bool:
        return self.inner.accept(probability)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_first_proposal_is_accepted_with_the_overlap_of_p_and_r(name: str) -> None:
    models, sampling, budget = pair(name), Sampling(temperature=1), 3
    p = target_probabilities(models.rows[BEGIN,], sampling)
    models.drafter.rewind(0)
    draft = draft_block(
        models.drafter, models.drafter.score((BEGIN,))[0], models.trie, budget, sampling, RandomChooser(generator())
    )
    r = np.array([draft.positions[0].law.probability(t) for t in range(len(p))])
    assert accepted_mass(models, sampling, budget) == pytest.approx(np.minimum(p, r).sum(), abs=EXACT)


def accepted_mass(models: Pair, sampling: Sampling, budget: int) -> float:
    """Probability that the first proposal of a block is accepted."""

    def run(chooser: Chooser) -> bool:
        models.drafter.rewind(0)
        models.target.rewind(0)
        draft = draft_block(models.drafter, models.drafter.score((BEGIN,))[0], models.trie, budget, sampling, chooser)
        verdict = verify_block(draft, models.target.score((BEGIN, *draft.tokens)), models.drafter, sampling, chooser)
        return verdict.accepted > 0

    return enumerate_outcomes(run).get(True, 0.0)


def test_random_chooser_draws_the_targets_law() -> None:
    models, sampling, runs, chooser = pair("overlapping"), Sampling(temperature=1), 6000, RandomChooser(generator())
    counts: defaultdict[tuple[int, ...], int] = defaultdict(int)
    for _ in range(runs):
        counts[first_two(models, sampling, 3, chooser)] += 1
    expected = {tokens: runs * mass for tokens, mass in target_law(models, sampling).items() if mass > 0}
    chi_square = sum((counts[tokens] - n) ** 2 / n for tokens, n in expected.items())
    # 24 degrees of freedom: P(chi_square > 51.2) = 0.001.
    assert len(expected) == 25
    assert chi_square < 51.2


def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def test_wrong_number_of_target_rows_is_refused() -> None:
    models, sampling, chooser = pair("identical"), Sampling(temperature=0), RandomChooser(generator())
    models.drafter.rewind(0)
    draft = draft_block(models.drafter, models.drafter.score((BEGIN,))[0], models.trie, 2, sampling, chooser)
    with pytest.raises(ValueError, match="2 target rows for 2 proposed tokens"):
        verify_block(draft, np.zeros((2, 3), np.float32), models.drafter, sampling, chooser)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_budget_shrinks_to_the_room_in_the_drafters_context(room: int) -> None:
    drafter = TableDecoder(table(3, 3, 1.0, seed=3), limit=1 + room)
    trie = Trie.from_paths({0: (0,), 1: (1,), 2: (2,)})
    draft = draft_block(drafter, drafter.score((BEGIN,))[0], trie, 4, Sampling(), RandomChooser(generator()))
    assert len(draft.tokens) == draft.draft_tokens == room


def test_nothing_is_proposed_after_an_end_of_text() -> None:
    models, chooser = pair("identical"), RandomChooser(generator())
    models.drafter.rewind(0)
    row = models.drafter.score((BEGIN,))[0]
    draft = draft_block(models.drafter, row, models.trie, 4, Sampling(temperature=0), chooser, ends={int(row.argmax())})
    assert draft.tokens == (int(row.argmax()),)
    assert draft.rows.calls == 0


def test_empty_trie_proposes_nothing_and_the_target_decides() -> None:
    models, chooser, sampling = pair("identical"), RandomChooser(generator()), Sampling(temperature=0)
    models.drafter.rewind(0)
    draft = draft_block(models.drafter, models.drafter.score((BEGIN,))[0], Trie.from_paths({}), 4, sampling, chooser)
    rows = models.rows[BEGIN,][None]
    assert verify_block(draft, rows, models.drafter, sampling, chooser).tokens == (int(rows[0].argmax()),)


def test_every_emitted_token_has_positive_target_probability() -> None:
    models, sampling = pair("overlapping", drafter_scale=40.0), Sampling(top_k=1)
    assert {tokens[0] for tokens in block_law(models, sampling, 3)} == {int(models.rows[BEGIN,].argmax())}
