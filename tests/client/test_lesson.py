"""Lessons: what a target decided, in the drafter's tokens."""

import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest

from fleetdraft.client.decoding.emission import Emission, emissions
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.lesson_writer import LessonWriter
from fleetdraft.client.learning.teacher import PROJECTIONS, Projection
from fleetdraft.client.pacing.outcome import Outcome
from fleetdraft.client.pacing.pace import BlockCost
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.spelling.trie import Trie
from fleetdraft.common.spelling import Spelling
from fleetdraft.common.vocabulary import Vocabulary

TARGETS = ["spm", "bpe3", "bpe1"]


COST = BlockCost(draft_tokens=0, proposed=0, accepted=0, target_s=0.0, rest_s=0.0)


class Notes:
    """Keeps what a witness sees."""

    def __init__(self) -> None:
        self.emitted: list[Emission] = []
        self.rows: list[np.ndarray] = []

    @property
    def tokens(self) -> list[int]:
        return [emission.token for emission in self.emitted]

    def observe(self, outcome: Outcome) -> None:
        self.emitted += emissions(outcome)
        self.rows.append(outcome.rows.copy())

    def lesson(self, pair: Pair, prompt: str, writer: LessonWriter, limit: int = 500, at_once: int = 1) -> Lesson:
        """What they teach, ``at_once`` tokens at a time."""
        writing, rows = writer.begin(pair.target_codec.prompt_tokens(prompt), limit), np.concatenate(self.rows)
        for n in range(0, len(rows), at_once):
            writing.add(self.emitted[n : n + at_once], rows[n : n + at_once])
        return writing.lesson()


def lesson_of(pair: Pair, prompt: str, projection: Projection = "prefix", limit: int = 500) -> tuple[Notes, Lesson]:
    notes = Notes()
    pair.alone.run(prompt, Options(max_new_tokens=40), notes)
    return notes, notes.lesson(pair, prompt, LessonWriter(pair.spelling, pair.trie, projection), limit)


def test_emissions_know_how_each_token_came_to_be() -> None:
    rows = np.zeros((3, 9), np.float32)
    refused = Outcome(tokens=(5, 6, 7), rows=rows, cost=COST, proposed=(5, 6, 8, 8), accepted=2)
    agreed = Outcome(tokens=(5, 6, 7), rows=rows, cost=COST, proposed=(5, 6), accepted=2)
    ended = Outcome(tokens=(5,), rows=rows[:1], cost=COST, proposed=(5, 6, 8), accepted=2)
    assert emissions(refused) == [
        Emission(token=5, kind="accepted"),
        Emission(token=6, kind="accepted"),
        Emission(token=7, kind="corrected", rejected=8),
    ]
    assert emissions(agreed)[1:] == [Emission(token=6, kind="accepted"), Emission(token=7, kind="own")]
    assert emissions(ended) == [Emission(token=5, kind="accepted")]
    assert emissions(Outcome(tokens=(7,), rows=rows[:1], cost=COST)) == [Emission(token=7, kind="own")]


@pytest.mark.parametrize("name", TARGETS)
def test_a_drafted_text_teaches_what_it_would_alone_but_for_what_was_rejected(
    pairs: dict[str, Pair], prompts: list[Prompt], name: str
) -> None:
    pair, notes = pairs[name], Notes()
    pair.drafted.run(prompts[1].text, Options(max_new_tokens=40), notes)
    alone, expected = lesson_of(pair, prompts[1].text)
    assert notes.tokens == alone.tokens
    kinds = [emission.kind for emission in notes.emitted]
    assert kinds.count("corrected") > 3
    assert kinds.count("accepted") > 3
    lesson = notes.lesson(pair, prompts[1].text, LessonWriter(pair.spelling, pair.trie, rejected=False))
    np.testing.assert_array_equal(lesson.taught, expected.taught)
    np.testing.assert_allclose(lesson.teacher_probs, expected.teacher_probs, atol=1e-4)


@pytest.mark.parametrize("name", TARGETS)
def test_each_rejected_proposals_first_token_is_listed_in_its_row(
    pairs: dict[str, Pair], prompts: list[Prompt], name: str
) -> None:
    pair, notes = pairs[name], Notes()
    pair.drafted.run(prompts[1].text, Options(max_new_tokens=40), notes)
    tokens = pair.target_codec.prompt_tokens(prompts[1].text)
    lesson = notes.lesson(pair, prompts[1].text, LessonWriter(pair.spelling, pair.trie))
    row = len(pair.spelling.context(tokens)) - 1
    for emission in notes.emitted:
        if emission.rejected is not None:
            first = pair.trie.path(emission.rejected)[0]
            assert first in lesson.teacher_ids[row][lesson.teacher_probs[row] > 0]
        row += len(pair.spelling(emission.token))


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("limit", [500, 15])
def test_a_lesson_is_the_same_however_many_tokens_a_block_has(
    pairs: dict[str, Pair], prompts: list[Prompt], projection: Projection, limit: int
) -> None:
    pair, prompt = pairs["bpe1"], prompts[3].text
    notes, whole = lesson_of(pair, prompt, projection)
    writer = LessonWriter(pair.spelling, pair.trie, projection)
    end = {f.name: getattr(whole, f.name)[-limit:] for f in fields(whole) if f.name != "written"}
    cut = replace(whole, **end).to_bytes()
    assert all(notes.lesson(pair, prompt, writer, limit, n).to_bytes() == cut for n in (1, 3, 7, 40))


def test_what_is_held_of_a_long_text_is_a_small_part_of_its_rows() -> None:
    """600 rows of 4,096 float32 are 9.8 MB, and the 50 that the lesson may have 0.8 MB."""
    size, rng = 4096, np.random.default_rng(0)
    trie = Trie.from_paths({token: (token,) for token in range(size)})
    words = Vocabulary(token_bytes=(b"",) * size, bos=0)
    writing, rows = LessonWriter(Spelling(words, words, trie), trie).begin([], 50), rng.normal(0, 1, (4, size))
    tracemalloc.start()
    try:
        for token in range(0, 600, 4):
            emitted = [Emission(token=token + n, kind="corrected", rejected=0) for n in range(4)]
            writing.add(emitted, rows.astype(np.float32))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert writing.lesson().rows == 49
    assert held < 150_000
    assert peak < 500_000


@pytest.mark.parametrize("name", TARGETS)
def test_lesson_spells_prompt_and_text(pairs: dict[str, Pair], prompts: list[Prompt], name: str) -> None:
    pair = pairs[name]
    notes, lesson = lesson_of(pair, prompts[0].text)
    target = pair.target_codec.vocabulary
    expected = target.spell([*pair.target_codec.prompt_tokens(prompts[0].text), *notes.tokens])
    assert pair.drafter.codec.vocabulary.spell(lesson.tokens) == expected


@pytest.mark.parametrize("name", TARGETS)
def test_every_emitted_token_is_judged_in_the_row_before_it(
    pairs: dict[str, Pair], prompts: list[Prompt], name: str
) -> None:
    notes, lesson = lesson_of(pairs[name], prompts[1].text)
    assert lesson.taught.sum() == len(notes.tokens)
    rows = np.flatnonzero(lesson.taught)
    best = lesson.teacher_ids[rows, lesson.teacher_probs[rows].argmax(1)]
    follows = lesson.tokens[rows + 1]
    # Greedy text: the likeliest first draft token is nearly always the one that the emitted token begins with.
    assert (best == follows).mean() > 0.9


@pytest.mark.parametrize("name", ["bpe3", "bpe1"])
def test_ngram_labels_are_the_text_that_follows(pairs: dict[str, Pair], prompts: list[Prompt], name: str) -> None:
    _, lesson = lesson_of(pairs[name], prompts[1].text)
    rows = np.flatnonzero(lesson.ngram)
    assert len(rows)
    np.testing.assert_array_equal(lesson.labels[rows], lesson.tokens[rows + 1])


def test_same_vocabulary_teaches_the_target_distribution_itself(pairs: dict[str, Pair]) -> None:
    """With equal vocabularies the projection is the identity on text tokens: the teacher is p itself."""
    pair = pairs["spm"]
    notes, lesson = lesson_of(pair, "import os\n\ndef")
    rows = np.concatenate(notes.rows).astype(np.float64)
    p = np.exp(rows - rows.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    for row, expected in zip(np.flatnonzero(lesson.taught), p, strict=True):
        np.testing.assert_allclose(lesson.teacher_probs[row], expected[lesson.teacher_ids[row]], rtol=1e-4)
    assert not lesson.ngram.any()


def test_prefix_mass_is_the_sum_over_tokens_that_begin_so(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    pair = pairs["bpe3"]
    notes, lesson = lesson_of(pair, prompts[2].text)
    row = int(np.flatnonzero(lesson.taught)[0])
    logits = notes.rows[0][0].astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    for first, mass in zip(lesson.teacher_ids[row], lesson.teacher_probs[row], strict=True):
        assert mass == pytest.approx(sum(p[t] for t in pair.trie if pair.trie.path(t)[0] == first), rel=1e-4)


def test_direct_map_judges_mapped_tokens_only(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    pair = pairs["bpe3"]
    notes, lesson = lesson_of(pair, prompts[2].text, "direct")
    assert lesson.taught.sum() == sum(len(pair.trie.path(t)) == 1 for t in notes.tokens)


def test_limit_keeps_the_end(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    _, whole = lesson_of(pairs["bpe1"], prompts[3].text)
    _, cut = lesson_of(pairs["bpe1"], prompts[3].text, limit=20)
    np.testing.assert_array_equal(cut.tokens, whole.tokens[-20:])
    np.testing.assert_array_equal(cut.taught, whole.taught[-20:])
