"""The n-gram cache: what it holds after any text, that drafting from it is exact, and what its file survives."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.client.decoding.block import draft_block, verify_block
from fleetdraft.client.decoding.chooser import Chooser, enumerate_outcomes
from fleetdraft.client.decoding.sampling import Sampling, target_probabilities
from fleetdraft.client.runtimes.decoder import TableDecoder
from fleetdraft.client.spelling.ngrams import NgramCache, NgramConfig
from fleetdraft.client.spelling.paths import DirectPaths
from fleetdraft.common.errors import ConfigError, FingerprintError, ModelError, UserError
from fleetdraft.common.speller import Speller
from fleetdraft.common.vocabulary import Vocabulary

DRAFTER = Vocabulary(token_bytes=(b"a", b"b", b"c", b""), eos=(3,), fingerprint="drafter")
#: Ids 0-1 are the drafter's tokens, 2-7 are n-grams, 8 cannot be spelled, 9 spells nothing, 10 ends a text.
TARGET = Vocabulary(
    token_bytes=(b"a", b"b", b"ab", b"ba", b"aa", b"bb", b"abc", b"cab", b"z", b"", b""),
    eos=(10,),
    fingerprint="target",
)
DIRECT = {0: (0,), 1: (1,), 10: (3,)}
NGRAMS = {2: (0, 1), 3: (1, 0), 4: (0, 0), 5: (1, 1), 6: (0, 1, 2), 7: (2, 0, 1)}
texts = st.lists(st.integers(0, TARGET.width - 1), max_size=40)


def cache(
    capacity: int = 6, policy: str = "lfu", target: Vocabulary = TARGET, drafter: Vocabulary = DRAFTER
) -> NgramCache:
    direct = DirectPaths(target, drafter, Speller(target, drafter, encode=lambda text: []))
    return NgramCache(direct, target, drafter, NgramConfig(capacity=capacity, policy=policy))


def learned(*tokens: int, **settings: object) -> NgramCache:
    ngrams = cache(**settings)
    ngrams.observe(tokens)
    return ngrams


def drafted(ngrams: NgramCache) -> dict[int, tuple[int, ...]]:
    trie = ngrams.trie
    return {t: trie.path(t) for t in trie}


# --- what is held ---------------------------------------------------------------------------------------------------


def test_an_empty_cache_drafts_the_direct_map() -> None:
    assert drafted(cache()) == DIRECT


def test_an_emitted_token_of_several_drafter_tokens_enters_with_its_canonical_path() -> None:
    assert drafted(learned(0, 6, 8, 9, 10, 2, 6)) == DIRECT | {6: (0, 1, 2), 2: (0, 1)}


def test_paths_are_canonical_whether_held_or_not() -> None:
    ngrams = learned(2)
    assert {t: ngrams.path(t) for t in range(TARGET.width)} == DIRECT | NGRAMS | {8: (), 9: ()}


def test_capacity_zero_learns_nothing() -> None:
    assert drafted(learned(2, 3, capacity=0)) == DIRECT


def test_lfu_evicts_the_least_often_used_and_among_equals_the_least_recent() -> None:
    ngrams = learned(2, 2, 3, 4, 3, 5, capacity=3)  # 2 and 3 twice, 4 once: 5 takes the place of 4
    assert list(ngrams) == [5, 2, 3]
    ngrams.observe([5, 6])  # all twice, 2 the longest ago
    assert list(ngrams) == [6, 3, 5]
    ngrams.observe([7])
    assert list(ngrams) == [7, 3, 5]


def test_lru_evicts_the_least_recent_however_often_it_was_used() -> None:
    ngrams = learned(2, 2, 2, 3, 4, 3, 5, capacity=3, policy="lru")
    assert list(ngrams) == [4, 3, 5]
    ngrams.observe([4, 6])
    assert list(ngrams) == [5, 4, 6]


def test_a_token_evicted_begins_anew() -> None:
    ngrams = learned(2, 2, 3, 3, 4, 4, capacity=2)
    assert list(ngrams) == [3, 4]
    ngrams.observe([2])
    assert list(ngrams) == [2, 4]


class NaiveCache:
    """The same promises by brute force: (uses, time of last use) of each n-gram, the smallest leaves."""

    def __init__(self, capacity: int, policy: str) -> None:
        self.capacity, self.policy, self.held, self.now = capacity, policy, {}, 0

    def rank(self, token: int) -> tuple[int, int]:
        uses, last = self.held[token]
        return (uses, last) if self.policy == "lfu" else (0, last)

    def observe(self, token: int) -> None:
        self.now += 1
        if token not in NGRAMS or not self.capacity:
            return
        if token not in self.held and len(self.held) == self.capacity:
            del self.held[min(self.held, key=self.rank)]
        self.held[token] = (self.held.get(token, (0, 0))[0] + 1, self.now)


@settings(deadline=None)
@given(texts, st.integers(0, 6), st.sampled_from(["lfu", "lru"]), st.data())
def test_holds_what_a_naive_cache_holds_after_every_text(tokens, capacity, policy, data) -> None:
    ngrams, naive = cache(capacity, policy), NaiveCache(capacity, policy)
    for token in tokens:
        ngrams.observe([token])
        naive.observe(token)
        assert list(ngrams) == sorted(naive.held, key=naive.rank)
        if data.draw(st.booleans()):  # asking for the trie is not part of any text
            assert drafted(ngrams) == DIRECT | {t: NGRAMS[t] for t in naive.held}
    assert len(ngrams) == len(naive.held) <= capacity


# --- snapshots ------------------------------------------------------------------------------------------------------


def test_a_snapshot_stays_as_it_was_while_the_cache_learns_and_evicts() -> None:
    ngrams = learned(2, capacity=1)
    before = ngrams.trie
    ngrams.observe([3])
    assert {t: before.path(t) for t in before} == DIRECT | {2: (0, 1)}
    assert drafted(ngrams) == DIRECT | {3: (1, 0)}


def test_the_trie_is_built_anew_only_where_ngrams_came_or_went() -> None:
    ngrams = learned(2, capacity=1)
    before = ngrams.trie
    ngrams.observe([0, 2, 8, 2])
    assert ngrams.trie is before
    ngrams.observe([3])
    assert ngrams.trie is not before


BEGIN, EXACT = 0, 1e-12


def table(width: int, depth: int, seed: int) -> dict[tuple[int, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    contexts = [(BEGIN, *rest) for n in range(depth + 1) for rest in product(range(width), repeat=n)]
    return {context: (1.5 * rng.standard_normal(width)).astype(np.float32) for context in contexts}


SMALL = Vocabulary(token_bytes=(b"a", b"ab", b"ba", b"bb"))


@pytest.mark.parametrize("policy", ["lfu", "lru"])
def test_output_law_is_the_targets_while_the_cache_learns_between_and_within_blocks(policy: str) -> None:
    """A cache of one n-gram learns from what each block emits, and from another session in the middle of each block."""
    sampling, rows, tries = Sampling(temperature=1), table(SMALL.width, 4, seed=1), set()
    drafter, target = TableDecoder(table(DRAFTER.width, 6, seed=2)), TableDecoder(rows)

    def block(emitted: tuple[int, ...], chooser: Chooser) -> tuple[int, ...]:
        ngrams = cache(capacity=1, policy=policy, target=SMALL)
        ngrams.observe([1, *emitted])
        drafter.rewind(0)
        target.rewind(0)
        tries.add(tuple(ngrams))
        spelled = (BEGIN, *(d for t in emitted for d in ngrams.path(t)))
        draft = draft_block(drafter, drafter.score(spelled)[-1], ngrams.trie, 3, sampling, chooser)
        ngrams.observe([3, 3])
        target_rows = target.score((BEGIN, *emitted, *draft.tokens))[len(emitted) :]
        return verify_block(draft, target_rows, drafter, sampling, chooser).tokens

    law: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for tokens, mass in enumerate_outcomes(lambda chooser: block((), chooser)).items():
        following = {tokens[1:]: 1.0} if len(tokens) > 1 else law_after(block, tokens)
        for more, share in following.items():
            law[tokens[0], more[0]] += mass * share
    p = {key: target_probabilities(rows[BEGIN, *key], sampling) for key in [(), *((t,) for t in range(SMALL.width))]}
    expected = {(a, b): p[()][a] * p[a,][b] for a, b in product(range(SMALL.width), repeat=2)}
    assert sum(abs(law[key] - mass) for key, mass in expected.items()) / 2 <= EXACT
    assert tries == {(1,), (2,), (3,)}  # the blocks did not all draft from the same n-grams


def law_after(block, emitted: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    return enumerate_outcomes(lambda chooser: block(emitted, chooser))


# --- the file -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(texts, texts, st.integers(0, 6), st.sampled_from(["lfu", "lru"]))
def test_a_restored_cache_goes_on_as_the_saved_one(tmp_path_factory, before, after, capacity, policy) -> None:
    path = tmp_path_factory.mktemp("cache") / "ngrams"
    saved, restored = learned(*before, capacity=capacity, policy=policy), cache(capacity, policy)
    saved.save(path)
    assert restored.restore(path) == ""
    assert drafted(restored) == drafted(saved)
    for token in after:
        saved.observe([token])
        restored.observe([token])
        assert list(restored) == list(saved)


def test_restoring_replaces_what_was_held(tmp_path: Path) -> None:
    learned(2).save(tmp_path / "ngrams")
    ngrams = learned(3, 4)
    ngrams.restore(tmp_path / "ngrams")
    assert list(ngrams) == [2]
    assert ngrams.restore(tmp_path / "absent") == ""
    assert drafted(ngrams) == DIRECT


def test_a_smaller_cache_restores_the_ngrams_of_most_worth(tmp_path: Path) -> None:
    learned(2, 2, 3, 4, 4, 5).save(tmp_path / "ngrams")
    ngrams = cache(capacity=3)
    ngrams.restore(tmp_path / "ngrams")
    assert list(ngrams) == [5, 2, 4]
    ngrams.observe([6, 7])
    assert list(ngrams) == [7, 2, 4]


def test_a_full_restored_cache_makes_room_though_nothing_in_it_was_used_only_once(tmp_path: Path) -> None:
    learned(2, 2, 2, 3, 3).save(tmp_path / "ngrams")
    ngrams = cache(capacity=2)
    ngrams.restore(tmp_path / "ngrams")
    ngrams.observe([4])
    assert list(ngrams) == [4, 2]


def test_the_file_depends_on_nothing_but_what_is_held(tmp_path: Path) -> None:
    learned(2, 3, 3, 2).save(tmp_path / "one")
    other = learned(2, 2, 3)
    other.trie  # noqa: B018
    other.observe([3, 0, 8])
    other.save(tmp_path / "two")
    again = cache()
    again.restore(tmp_path / "one")
    again.save(tmp_path / "three")
    learned(2, 2, 3, 3).save(tmp_path / "four")
    assert len({(tmp_path / name).read_bytes() for name in ("two", "four")}) == 1
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes() != (tmp_path / "two").read_bytes()


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    learned(2).save(tmp_path / "ngrams")
    assert (tmp_path / "ngrams").stat().st_mode & 0o777 == 0o600


def assert_set_aside(path: Path, reason: str) -> None:
    """``path`` is not read but kept under another name, and the cache works as an empty one."""
    content, ngrams = path.read_bytes(), learned(5)
    notice = ngrams.restore(path)
    assert reason in notice
    assert "ngrams.unusable" in notice
    assert "\n" not in notice
    assert not path.exists()
    assert path.with_name("ngrams.unusable").read_bytes() == content
    assert drafted(ngrams) == DIRECT
    path.with_name("ngrams.unusable").unlink()


def assert_left_alone(path: Path, message: str) -> None:
    """``path`` is refused in one line, and nothing beside it has changed."""
    before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    with pytest.raises(UserError, match=message):
        cache().restore(path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before


def test_a_file_torn_anywhere_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "ngrams"
    learned(2, 3).save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_set_aside(path, reason="torn")


def test_a_file_with_any_byte_changed_behind_its_name_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "ngrams"
    learned(2, 3).save(path)
    whole = path.read_bytes()
    for at in range(len(b"fleetdraft n-grams "), len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert_set_aside(path, reason=str(path))


@pytest.mark.parametrize("side, own", [("target", TARGET), ("drafter", DRAFTER)])
def test_a_file_of_another_pair_is_left_alone(tmp_path: Path, side: str, own: Vocabulary) -> None:
    path = tmp_path / "ngrams"
    learned(2, **{side: replace(own, fingerprint="another")}).save(path)
    assert_left_alone(path, message="another target or drafter; each pair needs its own file")


@pytest.mark.parametrize("content", [b"garbage", b'{"prompt": "mine"}\n', b"fleetdraft\n"])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    assert_left_alone(path, message="no file of n-grams")


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/full"), Path("/dev/null")):
        with pytest.raises(UserError, match="no file of n-grams"):
            cache().restore(path)


def test_two_files_set_aside_have_two_names(tmp_path: Path) -> None:
    path = tmp_path / "ngrams"
    for _ in range(2):
        learned(2).save(path)
        path.write_bytes(path.read_bytes()[:-1])
        cache().restore(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ngrams.unusable", "ngrams.unusable1"]


def test_a_file_of_another_version_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "ngrams"
    learned(2).save(path)
    path.write_bytes(path.read_bytes().replace(b"n-grams 1 ", b"n-grams 2 "))
    assert_set_aside(path, reason="not in the format 'fleetdraft n-grams 1'")


def test_the_file_holds_ids_and_no_text(tmp_path: Path) -> None:
    learned(2, 6, 6).save(tmp_path / "ngrams")
    body = json.loads((tmp_path / "ngrams").read_bytes().split(b"\n", 1)[1])
    assert body == {"target": "target", "drafter": "drafter", "tokens": [2, 6], "uses": [1, 2]}


@settings(deadline=None)
@given(texts, texts, st.integers(0, 6), st.sampled_from(["lfu", "lru"]))
def test_a_cache_restored_from_bytes_goes_on_as_the_one_they_are_of(before, after, capacity, policy) -> None:
    first, second = learned(*before, capacity=capacity, policy=policy), learned(5, capacity=capacity, policy=policy)
    second.restore_bytes(first.to_bytes())
    assert drafted(second) == drafted(first)
    for token in after:
        first.observe([token])
        second.observe([token])
        assert list(second) == list(first)


def test_bytes_torn_or_changed_anywhere_are_refused_and_nothing_is_held() -> None:
    whole = learned(2, 3).to_bytes()
    torn = [whole[:length] for length in range(len(whole))]
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for data in torn + changed:
        ngrams = learned(5)
        with pytest.raises(ModelError, match="the state is torn or not in the format 'fleetdraft n-grams 1'"):
            ngrams.restore_bytes(data)
        assert drafted(ngrams) == DIRECT


def test_bytes_of_another_pair_are_refused() -> None:
    data = learned(2, target=replace(TARGET, fingerprint="another")).to_bytes()
    with pytest.raises(FingerprintError, match="^ngrams/spm holds n-grams of another target or drafter"):
        cache().restore_bytes(data, source="ngrams/spm")


@pytest.mark.parametrize(
    "wrong, reason", [({"capacity": -1}, "capacity is -1"), ({"policy": "fifo"}, "policy is 'fifo'")]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        NgramConfig(**wrong)
