"""Canonical paths and the trie over them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.client.trie import ROOT, Trie, canonical_paths
from fleetdraft.common.errors import ModelError
from fleetdraft.common.vocabulary import Vocabulary

paths_of = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple), max_size=20, unique=True).map(
    lambda paths: {3 * t + 1: path for t, path in enumerate(paths)}
)


def vocabulary(*texts: str | bytes, **fields: object) -> Vocabulary:
    return Vocabulary(token_bytes=tuple(t if isinstance(t, bytes) else t.encode() for t in texts), **fields)


def longest_match(vocabulary: Vocabulary, dummy_prefix: bool = False):
    """An encoder of the drafter's own, as a tokenizer would be."""

    def encode(text: str) -> list[int]:
        rest, tokens = (b" " if dummy_prefix else b"") + text.encode(), []
        while rest:
            piece = max((p for p in vocabulary.ids if rest.startswith(p)), key=len)
            tokens.append(vocabulary.ids[piece])
            rest = rest[len(piece) :]
        return tokens

    return encode


# --- canonical paths ------------------------------------------------------------------------------------------


def test_path_is_the_drafters_own_segmentation_in_the_middle_of_a_text() -> None:
    drafter = vocabulary("\n", " ", "a", "b", "ab", dummy_prefix=True)
    target = vocabulary("abb", " a")
    assert canonical_paths(target, drafter, longest_match(drafter, dummy_prefix=True)) == {0: (4, 3), 1: (1, 2)}


def test_segmentation_that_swallows_the_lead_is_taken_again_without_it() -> None:
    drafter = vocabulary("\n", "\n\n", "a")
    assert canonical_paths(vocabulary("\n", "\na"), drafter, longest_match(drafter)) == {0: (0,), 1: (0, 2)}


def test_encoder_that_spells_other_bytes_is_replaced_by_longest_match() -> None:
    drafter = vocabulary("a", "b", "ab")
    assert canonical_paths(vocabulary("aba"), drafter, encode=lambda text: [1, 1]) == {0: (2, 0)}


def test_half_a_character_is_spelled_in_bytes() -> None:
    drafter = vocabulary(b"\xc3", b"\xa9", "a", byte_pieces=frozenset({0, 1}))
    assert canonical_paths(vocabulary(b"\xc3", "é"), drafter, encode=lambda text: []) == {0: (0,), 1: (0, 1)}


def test_bytes_that_the_drafter_lacks_have_no_path() -> None:
    assert canonical_paths(vocabulary("a", "z"), vocabulary("a"), encode=lambda text: []) == {0: (0,)}


def test_one_id_of_equal_bytes_gets_the_path_and_byte_pieces_come_last() -> None:
    target = vocabulary(b"a", b"a", b"a", byte_pieces=frozenset({0}))
    drafter = vocabulary(b"a", b"a", byte_pieces=frozenset({0}))
    assert canonical_paths(target, drafter, encode=lambda text: [0]) == {1: (1,)}


def test_special_tokens_map_by_role_only() -> None:
    target = vocabulary("", "a", "", "", eos=(2, 0))
    drafter = vocabulary("a", "", "", eos=(1,))
    assert canonical_paths(target, drafter, encode=lambda text: []) == {1: (0,), 2: (1,)}


def test_a_vocabulary_maps_to_itself_even_where_its_encoder_would_not() -> None:
    same = vocabulary("a", "b", "ab", "", eos=(3,))
    assert canonical_paths(same, same, encode=lambda text: [0, 1]) == {0: (0,), 1: (1,), 2: (2,), 3: (3,)}


# --- the trie -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(paths_of)
def test_path_is_what_was_put_in(paths: dict[int, tuple[int, ...]]) -> None:
    trie = Trie.from_paths(paths)
    assert {t: trie.path(t) for t in trie} == paths
    assert len(trie) == len(paths)


@settings(deadline=None)
@given(paths_of)
def test_children_are_consecutive_and_terminal_ones_come_first(paths: dict[int, tuple[int, ...]]) -> None:
    trie = Trie.from_paths(paths)
    for node in range(len(trie.target)):
        children = [trie.first_child(node) + i for i in range(len(trie.child_tokens(node)))]
        terminal = [trie.target[child] >= 0 for child in children]
        assert terminal == sorted(terminal, reverse=True)
        assert sum(terminal) == len(trie.terminal_children(node))
        spelled = [trie.spelling(child) for child in children]
        assert spelled == [(*trie.spelling(node), token) for token in trie.child_tokens(node)]


@settings(deadline=None)
@given(paths_of)
def test_reachable_means_that_once_terminal_stays_terminal(paths: dict[int, tuple[int, ...]]) -> None:
    trie, ends = Trie.from_paths(paths), set(paths.values())
    for t, path in paths.items():
        shortest = next(n for n in range(1, len(path) + 1) if path[:n] in ends)
        assert trie.reachable(t) == all(path[:n] in ends for n in range(shortest, len(path) + 1))


@settings(deadline=None)
@given(paths_of)
def test_claimed_roots_are_the_terminal_children_that_are_roots_too(paths: dict[int, tuple[int, ...]]) -> None:
    trie = Trie.from_paths(paths)
    for node in range(1, len(trie.target)):
        both = set(trie.roots.tolist()) & set(trie.terminal_children(node).tolist())
        assert set(trie.roots[trie.claimed(node)].tolist()) == both
    assert len(trie.claimed(ROOT)) == 0


@settings(deadline=None)
@given(paths_of)
def test_arrays_restore_the_trie(paths: dict[int, tuple[int, ...]]) -> None:
    arrays = Trie.from_paths(paths).to_arrays()
    again = Trie.from_arrays(arrays)
    assert {t: again.path(t) for t in again} == paths
    assert all(array.dtype == np.int32 for array in arrays.values())


def test_a_target_without_a_path_is_unreachable() -> None:
    trie = Trie.from_paths({0: (0,)})
    assert trie.path(5) == ()
    assert not trie.reachable(5)


GOOD = {"targets": [0, 1], "offsets": [0, 1, 3], "tokens": [4, 4, 5]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": [0, 0]},
        {"targets": [-1, 0]},
        {"tokens": [4, 4, -5]},
        {"tokens": [4, 4]},
        {"offsets": [0, 0, 3]},
        {"offsets": [0, 3]},
        {"offsets": [0, 2, 1]},
        {"tokens": [[4, 4, 5]]},
        {"offsets": [0, 1, 2], "tokens": [4, 4]},
    ],
    ids=str,
)
def test_arrays_that_are_no_paths_are_refused(wrong: dict[str, list[int]]) -> None:
    Trie.from_arrays({name: np.array(values) for name, values in GOOD.items()})
    with pytest.raises(ModelError):
        Trie.from_arrays({name: np.array(values) for name, values in (GOOD | wrong).items()})


def test_missing_array_is_refused() -> None:
    with pytest.raises(ModelError, match="offsets"):
        Trie.from_arrays({"targets": np.array([0])})


@pytest.mark.shared
@pytest.mark.parametrize("drafter, target", [("stories260k", "stories3m"), ("drafter-spm8k", "target-bbpe12k")])
def test_real_pair_spells_every_usable_target_token(shared_dir, drafter: str, target: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    widths = {"stories260k": 512, "stories3m": 4096, "drafter-spm8k": 8000, "target-bbpe12k": 12000}
    d, t = (Vocabulary.from_directory(shared_dir / "models" / name, widths[name]) for name in (drafter, target))
    tokenizer = tokenizers.Tokenizer.from_file(str(shared_dir / "models" / drafter / "tokenizer.json"))
    paths = canonical_paths(t, d, lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    assert len(paths) == len(t.ids) + 1
    assert all(d.spell(path) == t.token_bytes[token] for token, path in paths.items() if token not in t.eos)
    assert len(Trie.from_paths(paths)) == len(paths)
