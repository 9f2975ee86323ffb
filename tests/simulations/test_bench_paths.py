"""The comparison of ways to hold draft paths: every way in the table, what it holds, mistakes in one line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetdraft.client.spelling.ngrams import NgramConfig
from fleetdraft.client.spelling.tokenizer_pair import TokenizerPair
from fleetdraft.client.spelling.trie import Trie
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.simulations.bench import paths
from fleetdraft.simulations.bench.paths import Way, bounds, costs, every_way, ratio_error
from fleetdraft.simulations.bench.setting import Setting, open_setting
from fleetdraft.simulations.bench.table import run


@pytest.fixture(scope="module")
def setting() -> Setting:
    return open_setting(EMBEDDED, None, None, threads=1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    file = tmp_path_factory.mktemp("paths") / "rows.json"
    words = ["--quick", "--capacity", "5000", "--json", str(file)]
    assert run(paths.main, "paths", words) == 0
    found = json.loads(file.read_text())
    assert found["schema"] == 1
    return list(found["rows"])


def ngrams_of(pair: TokenizerPair, count: int) -> list[int]:
    """The first target tokens of several drafter tokens."""
    found = [token for token in pair.trie if len(pair.trie.path(token)) > 1]
    return found[:count]


# --- the rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heat", [0, 1])
def test_every_way_has_a_row_at_every_temperature(rows: list[dict[str, Any]], heat: int) -> None:
    found = [row for row in rows if row["temperature"] == heat]
    names = [row["name"] for row in found]
    assert (names[0], names[-1]) == ("full", "direct")
    assert {"online, lfu 5000, empty", "online, lfu 5000, warm"} <= set(names)
    assert len(names) == len(set(names)) == 8  # of a quarter of what was learned there are four
    for row in found:
        assert row["tokens"] >= row["target_calls"] > 0
        assert 1 <= row["value"] <= 5
        assert row["tokens_per_s"] > 0
        assert row["memory_bytes"] > 0
        assert row["ratio"] == (None if row["name"] == "full" else row["value"] / found[0]["value"])


def test_greedy_texts_are_the_targets_own_whatever_is_held(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        expected = (2, 0) if row["temperature"] == 0 else (None, None)
        identical, ties = row["greedy_identical"], row["greedy_ties"]
        assert (identical if ties is None else identical + ties, row["greedy_different"]) == expected


def test_a_warm_cache_begins_with_ngrams_and_an_empty_one_without(rows: list[dict[str, Any]]) -> None:
    warm, empty = ([row for row in rows if row["name"] == f"online, lfu 5000, {start}"] for start in ("warm", "empty"))
    assert [row["ngrams_before"] for row in empty] == [0, 0]
    assert all(row["ngrams_before"] > 0 for row in warm)
    assert all(row["ngrams_after"] > 0 for row in (*warm, *empty))


# --- ways -------------------------------------------------------------------------------------------------------


def test_capacities_that_never_evict_are_measured_once_and_others_under_both_policies() -> None:
    found = [(config.policy, config.capacity) for config in bounds([20_000, 300, 150], learned=120)]
    assert found == [("lfu", 300), ("lfu", 150), ("lru", 150), ("lfu", 30), ("lru", 30)]


def test_nothing_learned_needs_no_quarter() -> None:
    assert [config.capacity for config in bounds([20_000], learned=0)] == [20_000]


def test_warm_caches_hold_what_their_policy_keeps_of_the_texts_before(setting: Setting, tmp_path: Path) -> None:
    pair = setting.pair.tokenizers
    often, once, last = ngrams_of(pair, 3)
    configs = [NgramConfig(capacity=2, policy="lfu"), NgramConfig(capacity=2, policy="lru")]
    ways = {way.name: way for way in every_way(pair, configs, [[often, often], [once], [last]], tmp_path)}
    for policy, kept in (("lfu", {often, last}), ("lru", {once, last})):
        warm, empty = (ways[f"online, {policy} 2, {start}"].open(pair).trie for start in ("warm", "empty"))
        assert set(warm) - set(empty) == kept


# --- errors -----------------------------------------------------------------------------------------------------


def counters(blocks: int, accepted: int) -> DraftCounters:
    return DraftCounters(prompts=1, tokens=blocks + accepted, target_calls=blocks, blocks=blocks, accepted=accepted)


def test_the_error_of_a_ratio_is_that_of_resampled_texts() -> None:
    rng = np.random.default_rng(3)
    rates = rng.uniform(0.2, 1.0, 200)
    ours, theirs = ([counters(30, int(rng.binomial(60, rate / 2))) for rate in rates] for _ in range(2))

    def length(texts: Sequence[DraftCounters], chosen: np.ndarray) -> float:
        return sum((texts[i] for i in chosen), DraftCounters()).mean_acceptance_length

    drawn = rng.integers(0, len(rates), (400, len(rates)))
    resampled = np.std([length(ours, chosen) / length(theirs, chosen) for chosen in drawn])
    assert ratio_error(ours, theirs) == pytest.approx(resampled, rel=0.15)


def test_the_same_counts_have_no_error_and_one_text_has_none_to_tell() -> None:
    texts = [counters(10, 3), counters(12, 9), counters(7, 0)]
    assert ratio_error(texts, texts) == 0
    assert ratio_error(texts[:1], texts[:1]) is None


# --- costs ------------------------------------------------------------------------------------------------------


def test_costs_say_what_is_held_before_and_after_the_texts(setting: Setting, tmp_path: Path) -> None:
    pair = setting.pair.tokenizers
    tokens, config = ngrams_of(pair, 300), NgramConfig(capacity=250)
    full, empty, warm, direct = (
        costs(way, pair.target, pair.drafter, [tokens[:200], tokens[200:]], repeats=1)
        for way in every_way(pair, [config], [tokens[:5]], tmp_path)
    )
    ngrams = len(pair.trie) - len(pair.direct.trie)
    assert (full.ngrams_before, full.ngrams_after) == (ngrams, ngrams)
    assert (empty.ngrams_before, empty.ngrams_after) == (0, 250)
    assert (warm.ngrams_before, warm.ngrams_after) == (5, 250)
    assert (direct.ngrams_before, direct.ngrams_after, direct.file_bytes) == (0, 0, 0)
    assert direct.memory_bytes < empty.memory_bytes
    assert full.file_bytes > empty.file_bytes > 1000
    assert (empty.open_ms, direct.open_ms) == (None, None)
    assert full.open_ms is not None
    assert warm.open_ms is not None


def test_costs_are_those_of_tokenizers_that_nobody_has_used(setting: Setting) -> None:
    target, drafter = setting.bundle.codec(setting.pair.name), setting.pair.drafter.codec
    costs(Way(name="direct", kind="direct"), target, drafter, [[1]], repeats=1)
    assert "ids" not in vars(target.vocabulary)
    assert target.vocabulary.ids == setting.pair.target_codec.vocabulary.ids
    assert "ids" in vars(target.vocabulary)


def array_bytes(trie: Trie) -> int:
    return sum(array.nbytes for array in trie.to_arrays().values())


def test_memory_counts_the_trie_that_is_held(setting: Setting) -> None:
    pair = setting.pair.tokenizers
    held = costs(Way(name="full", kind="full"), pair.target, pair.drafter, [[1]], repeats=1).memory_bytes
    assert array_bytes(pair.trie) < held < 10 * array_bytes(pair.trie)


def test_memory_counts_the_trie_that_a_cache_builds_once_it_has_learned(setting: Setting) -> None:
    pair, way = setting.pair.tokenizers, Way(name="online", kind="online")
    texts: tuple[list[int], ...] = ([], ngrams_of(pair, 1))
    nothing, one = (costs(way, pair.target, pair.drafter, [text], repeats=1).memory_bytes for text in texts)
    assert one - nothing > array_bytes(pair.direct.trie)


# --- the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--bundle", "nowhere"], "nowhere"),
        (["--target", "nobody"], "nobody"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--count", "1"], "--count"),
        (["--capacity", "-1"], "capacity is -1"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--draft-tokens", "0"], "Invalid value for '--draft-tokens': 0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--threads", "0"], "--threads"),
        (["--json", "."], "is a directory"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(paths.main, "paths", words) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert named in shown.err


def test_one_prompt_cannot_be_halved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"prompt": "def one():"}))
    assert run(paths.main, "paths", ["--prompts", str(file)]) == 2
    assert "holds 1 prompt, expected at least 2" in capsys.readouterr().err
