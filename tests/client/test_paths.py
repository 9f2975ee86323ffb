"""Ways to hold draft paths."""

import pytest

from fleetdraft.client.spelling.paths import DirectPaths, DraftPaths, FullPaths
from fleetdraft.client.spelling.trie import Trie
from fleetdraft.common.speller import Speller
from fleetdraft.common.vocabulary import Vocabulary

#: The drafter spells "ab" by one token or by two; its tokenizer chooses two.
DRAFTER = Vocabulary(token_bytes=(b"a", b"b", b"ab", b"", b""), eos=(3, 4))
TARGET = Vocabulary(token_bytes=(b"ab", b"ba", b"b", b"z", b"", b"b"), eos=(4,))
EVERY_PATH = {0: (0, 1), 1: (1, 0), 2: (1,), 4: (3,)}


def encode(text: str) -> list[int]:
    return [DRAFTER.ids.get(character.encode(), 3) for character in text.removeprefix("\n")]


def direct(asked: list[int] | None = None) -> DirectPaths:
    class Noted(Speller):
        def __call__(self, token: int) -> tuple[int, ...]:
            if asked is not None:
                asked.append(token)
            return super().__call__(token)

    return DirectPaths(TARGET, DRAFTER, Noted(TARGET, DRAFTER, encode))


def full() -> FullPaths:
    return FullPaths(Trie.from_paths(EVERY_PATH))


@pytest.mark.parametrize("paths", [direct(), full()], ids=["direct", "full"])
def test_a_drafted_token_is_spelled_by_its_draft_path(paths: DraftPaths) -> None:
    assert {t: paths.path(t) for t in paths.trie} == {t: paths.trie.path(t) for t in paths.trie}


@pytest.mark.parametrize("paths", [direct(), full()], ids=["direct", "full"])
def test_every_token_has_its_path_whether_it_may_be_drafted_or_not(paths: DraftPaths) -> None:
    assert {t: path for t in range(TARGET.width) if (path := paths.path(t))} == EVERY_PATH


@pytest.mark.parametrize("paths", [direct(), full()], ids=["direct", "full"])
def test_emitted_tokens_change_neither_trie_nor_paths(paths: DraftPaths) -> None:
    before = paths.trie
    paths.observe([1, 1, 3])
    assert paths.trie is before
    assert paths.path(1) == (1, 0)


def test_direct_paths_are_the_shared_byte_strings_that_the_drafter_does_not_split_and_eos() -> None:
    assert {t: direct().trie.path(t) for t in direct().trie} == {2: (1,), 4: (3,)}


def test_a_token_is_spelled_once() -> None:
    asked: list[int] = []
    paths = direct(asked)
    assert [paths.path(t) for t in (1, 1, 3, 3)] == [(1, 0), (1, 0), (), ()]
    assert asked[-2:] == [1, 3]
