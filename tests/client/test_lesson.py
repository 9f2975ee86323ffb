"""Lessons: what a target decided, in the drafter's tokens."""

import numpy as np
import pytest

from fleetdraft.client.lesson import Lesson, LessonWriter, Projection
from fleetdraft.client.options import Options
from fleetdraft.client.outcome import Outcome
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt

TARGETS = ["spm", "bpe3", "bpe1"]


class Notes:
    """Keeps what a witness sees."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.rows: list[np.ndarray] = []

    def observe(self, outcome: Outcome) -> None:
        tokens, rows = outcome.tokens, outcome.rows
        self.tokens += tokens
        self.rows.append(rows.copy())


def lesson_of(pair: Pair, prompt: str, projection: Projection = "prefix", limit: int = 500) -> tuple[Notes, Lesson]:
    notes = Notes()
    pair.alone.run(prompt, Options(max_new_tokens=40), notes)
    writer = LessonWriter(pair.spelling, pair.trie, projection)
    tokens = pair.target_codec.prompt_tokens(prompt)
    return notes, writer.write(tokens, notes.tokens, np.concatenate(notes.rows), limit)


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
