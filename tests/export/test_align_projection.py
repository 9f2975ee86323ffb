"""A target's answers in drafter tokens: what the device's lesson writer sees, from whole rows and from cut ones."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fleetdraft.client.decoding.emission import Emission
from fleetdraft.client.learning.lesson_writer import LessonWriter
from fleetdraft.client.spelling.trie import Trie
from fleetdraft.common.errors import ConfigError
from fleetdraft.common.spelling import Spelling
from fleetdraft.common.vocabulary import Vocabulary
from fleetdraft.export.align.dataset import Text
from fleetdraft.export.align.projection import PROJECTIONS, DraftText, PathTable, Projector

LONGEST = 100
PATHS = {0: (0,), 1: (0, 2), 2: (1,), 3: (0, 2, 1), 4: (3, 3), 5: (2,), 6: (3, 3, 0)}
"""Tokens that begin others, one that ends within another's path, and the target token 7, which has no path."""
TARGET = Vocabulary(token_bytes=(b"a", b"ac", b"b", b"acb", b"dd", b"c", b"dda", b""))
DRAFTER = Vocabulary(token_bytes=(b"a", b"b", b"c", b"d", b""), bos=4)


def rows(count: int, seed: int) -> np.ndarray:
    """(count, 8) probabilities."""
    logits = np.random.default_rng(seed).normal(scale=2, size=(count, len(TARGET.token_bytes)))
    return (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)


def answer(prompt: list[int], tokens: list[int], p: np.ndarray, width: int = 8) -> Text:
    order = np.argsort(-p, axis=1, kind="stable")[:, :width]
    return Text(
        prompt=0, temperature=0.0, tokens=np.array([*prompt, *tokens], np.int32), start=len(prompt),
        teacher_ids=order.astype(np.int32), teacher_probs=np.take_along_axis(p, order, axis=1),
    )  # fmt: skip


def projected(text: Text, projection: str, width: int = 8, longest: int = LONGEST) -> DraftText:
    table = PathTable(PATHS, len(TARGET.token_bytes))
    return Projector(TARGET, DRAFTER, table, projection=projection, width=width, longest=longest)(text)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("seed", range(8))
def test_whole_rows_teach_what_the_devices_lessons_teach(projection: str, seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    prompt, tokens = rng.integers(8, size=3).tolist(), rng.integers(8, size=9).tolist()
    p = rows(len(tokens), seed)
    trie = Trie.from_paths(PATHS)
    writer = LessonWriter(Spelling(TARGET, DRAFTER, trie), trie, projection, 8, rejected=False)
    writing = writer.begin(prompt, LONGEST)
    writing.add([Emission(token=token) for token in tokens], np.log(p))
    lesson, found = writing.lesson(), projected(answer(prompt, tokens, p), projection)
    assert found.tokens.tolist() == lesson.tokens.tolist()
    assert found.rows.tolist() == np.flatnonzero(lesson.judged).tolist()
    assert found.taught.tolist() == lesson.taught[found.rows].tolist()
    assert found.ngram.tolist() == lesson.ngram[found.rows].tolist()
    assert found.labels.tolist() == lesson.labels[found.rows].tolist()
    np.testing.assert_allclose(found.label_probs, lesson.label_probs[found.rows], atol=1e-6)
    for row, at in enumerate(found.rows):
        assert by_token(found.teacher_ids[row], found.teacher_probs[row]) == by_token(
            lesson.teacher_ids[at], lesson.teacher_probs[at]
        )


def by_token(ids: np.ndarray, probs: np.ndarray) -> dict[int, object]:
    return {int(token): pytest.approx(float(p), abs=1e-6) for token, p in zip(ids, probs, strict=True) if p > 0}


@pytest.mark.parametrize("projection", ["direct", "prefix"])
def test_what_is_not_listed_is_left_to_the_tail(projection: str) -> None:
    p, tokens = rows(5, 0), [2, 1, 0, 3, 2]
    whole, cut = (projected(answer([2], tokens, p, width), projection) for width in (8, 3))
    lists = [
        dict(zip(map(tuple, (t.rows[:, None]).tolist()), t.teacher_probs.sum(-1), strict=True)) for t in (whole, cut)
    ]
    assert all(lists[1][row] <= lists[0][row] + 1e-6 for row in lists[1])
    assert sum(lists[1].values()) < sum(lists[0].values())


def test_a_long_text_loses_its_beginning() -> None:
    text = answer([2, 2], [1, 3, 0, 2], rows(4, 0))
    whole, cut = projected(text, "prefix"), projected(text, "prefix", longest=5)
    assert cut.tokens.tolist() == whole.tokens[-5:].tolist()
    kept = whole.rows >= len(whole.tokens) - 5
    assert (cut.rows + len(whole.tokens) - 5).tolist() == whole.rows[kept].tolist()
    np.testing.assert_array_equal(cut.teacher_probs, whole.teacher_probs[kept])


def test_the_likeliest_drafter_tokens_are_listed_first_and_the_rest_is_left_out() -> None:
    found = projected(answer([2], [0, 2], rows(2, 3)), "prefix", width=2)
    whole = projected(answer([2], [0, 2], rows(2, 3)), "prefix")
    assert (np.diff(found.teacher_probs, axis=1) <= 0).all()
    np.testing.assert_array_equal(found.teacher_probs, whole.teacher_probs[:, :2])


def test_an_unknown_projection_is_refused() -> None:
    with pytest.raises(ConfigError, match="projection is 'suffix', expected one of direct, prefix, law"):
        projected(answer([2], [0], rows(1, 0)), "suffix")


def test_paths_are_those_of_the_two_tokenizers(tmp_path: Path) -> None:
    for name, pieces in (("target", ["a", "b", "ab"]), ("drafter", ["a", "b"])):
        folder = tmp_path / name
        folder.mkdir()
        vocabulary = {piece: number for number, piece in enumerate(["<s>", "</s>", *pieces])}
        tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")] if "ab" in pieces else []))
        tokenizer.add_special_tokens(["<s>", "</s>"])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))
    projector = Projector.between(tmp_path / "target", 5, tmp_path / "drafter", 4, projection="prefix", width=4)
    text = Text(
        prompt=0, temperature=0.0, tokens=np.array([0, 2, 4, 1], np.int32), start=2,
        teacher_ids=np.array([[4, 3], [1, 2]], np.int32), teacher_probs=np.array([[0.7, 0.2], [0.9, 0.1]], np.float32),
    )  # fmt: skip
    found = projector(text)
    assert found.tokens.tolist() == [0, 2, 2, 3, 1]
    assert [by_token(*row) for row in zip(found.teacher_ids, found.teacher_probs, strict=True)] == [
        {2: 0.7, 3: 0.2}, {}, {1: 0.9, 2: 0.1},
    ]  # fmt: skip
    assert found.labels[:2].tolist() == [2, 3]
    assert found.label_probs[:2].tolist() == pytest.approx([0.7, 0.7])
