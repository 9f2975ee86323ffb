"""The account of a target's tokens: every id is counted once, for the right reason."""

import json
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.client.spelling.coverage import Coverage, coverage
from fleetdraft.client.spelling.ngrams import NgramCache
from fleetdraft.client.spelling.paths import DirectPaths, FullPaths
from fleetdraft.client.spelling.trie import Trie
from fleetdraft.common.speller import Speller, canonical_paths
from fleetdraft.common.vocabulary import Vocabulary

DRAFTER = Vocabulary(token_bytes=(b"a", b"b", b"c", b""), eos=(3,))
#: Direct, direct, n-gram of 2, n-gram of 3, duplicate, lacking, eos, second eos, special, padding, unspellable.
TARGET = Vocabulary(
    token_bytes=(b"a", b"b", b"ab", b"bab", b"ab", b"az", b"", b"", b"", b"", b""),
    eos=(6, 7),
    special=frozenset({6, 7, 8}),
    padding=frozenset({9}),
)
NONE = dict.fromkeys(Coverage.__dataclass_fields__, 0) | {"ngrams": {}}


def full(target: Vocabulary, drafter: Vocabulary) -> FullPaths:
    return FullPaths(Trie.from_paths(canonical_paths(target, drafter, encode=lambda text: [])))


def direct(target: Vocabulary, drafter: Vocabulary) -> DirectPaths:
    return DirectPaths(target, drafter, Speller(target, drafter, encode=lambda text: []))


def test_every_reason_is_counted() -> None:
    assert coverage(TARGET, full(TARGET, DRAFTER)) == Coverage(
        tokens=11,
        direct=2,
        ends=1,
        ngrams={2: 1, 3: 1},
        unlearned=0,
        special=2,
        padding=1,
        unspellable=1,
        duplicate=1,
        lacking=1,
    )


def test_ngrams_that_are_not_drafted_yet_are_unlearned() -> None:
    counted = coverage(TARGET, direct(TARGET, DRAFTER))
    assert asdict(counted) == asdict(coverage(TARGET, full(TARGET, DRAFTER))) | {
        "ngrams": {},
        "unlearned": 2,
    }


def test_a_cache_covers_what_it_has_learned() -> None:
    ngrams = NgramCache(direct(TARGET, DRAFTER), TARGET, DRAFTER)
    ngrams.observe([2, 4, 5, 6, 9])
    counted = coverage(TARGET, ngrams)
    assert (counted.ngrams, counted.unlearned, counted.drafted) == ({2: 1}, 1, 4)


def test_the_same_vocabulary_is_all_direct() -> None:
    counted = coverage(DRAFTER, full(DRAFTER, DRAFTER))
    assert asdict(counted) == NONE | {"tokens": 4, "direct": 3, "ends": 1}


def test_without_a_single_path_every_token_has_a_reason() -> None:
    empty = Vocabulary(token_bytes=(b"",))
    counted = coverage(TARGET, full(TARGET, empty))
    assert (counted.drafted, counted.lacking, counted.special, counted.duplicate) == (0, 5, 3, 1)


texts = st.lists(st.binary(max_size=3).map(lambda text: bytes(b"abcz"[byte % 4] for byte in text)), max_size=12)


@settings(deadline=None)
@given(texts, texts, st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.sampled_from([full, direct]))
def test_reasons_count_every_id_once(target_texts, drafter_texts, special, padding, paths) -> None:
    silent = special | padding
    target = Vocabulary(
        token_bytes=tuple(b"" if t in silent else text for t, text in enumerate(target_texts)),
        eos=tuple(sorted(t for t in special if t < len(target_texts))),
        special=frozenset(special),
        padding=frozenset(padding - special),
    )
    drafter = Vocabulary(token_bytes=(*drafter_texts, b"", b""), eos=(len(drafter_texts), len(drafter_texts) + 1))
    c = coverage(target, paths(target, drafter))
    without = (c.unlearned, c.special, c.padding, c.unspellable, c.duplicate, c.lacking)
    assert c.drafted + sum(without) == c.tokens == len(target_texts)
    assert c.ends == min(2, len(target.eos))


def test_the_counts_are_json() -> None:
    counted = coverage(TARGET, full(TARGET, DRAFTER))
    again = json.loads(json.dumps(counted.to_json()))
    assert again == asdict(counted) | {"ngrams": {"2": 1, "3": 1}}
