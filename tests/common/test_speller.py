"""Canonical paths of target tokens."""

import pytest

from fleetdraft.client.spelling.trie import Trie
from fleetdraft.common.speller import Speller, canonical_paths
from fleetdraft.common.vocabulary import Vocabulary


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


def test_path_is_the_drafters_own_segmentation_in_the_middle_of_a_text() -> None:
    drafter = vocabulary("\n", " ", "a", "b", "ab", dummy_prefix=True)
    target = vocabulary("abb", " a")
    assert canonical_paths(target, drafter, longest_match(drafter, dummy_prefix=True)) == {0: (4, 3), 1: (1, 2)}


def test_segmentation_that_swallows_the_lead_is_taken_again_without_it() -> None:
    drafter = vocabulary("\n", "\n\n", "a", "b", "ab")
    segmentation = {"\n\nab": [1, 2, 3], "\nab": [0, 2, 3]}
    assert canonical_paths(vocabulary("\nab"), drafter, segmentation.__getitem__) == {0: (0, 2, 3)}


def test_segmentation_with_a_token_that_spells_nothing_is_replaced_by_longest_match() -> None:
    drafter = vocabulary("\n", "a", "b", "", "ab")
    assert canonical_paths(vocabulary("ab"), drafter, encode=lambda text: [0, 1, 3, 2]) == {0: (4,)}


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


def test_one_token_at_a_time_gives_what_all_together_give() -> None:
    drafter = vocabulary("a", "b", "", "", eos=(2, 3))
    target = vocabulary("", "ab", "z", "a", "a", "", b"\xc3", eos=(5,))
    spell = Speller(target, drafter, encode=lambda text: [])
    each = {token: path for token in range(target.width) if (path := spell(token))}
    assert each == canonical_paths(target, drafter, encode=lambda text: []) == {1: (0, 1), 3: (0,), 5: (2,)}


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
