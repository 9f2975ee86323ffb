"""The decoding benchmarks: the same models in both engines, everybody in the table, mistakes in one line."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleetdraft.client.decoding.continuation import Generation
from fleetdraft.client.decoding.options import Options
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.weights import read_weights
from fleetdraft.simulations.bench import context, decoding
from fleetdraft.simulations.bench.peers import PeerError, llama, open_tokenizers, translator
from fleetdraft.simulations.bench.race import Lap, Run, race
from fleetdraft.simulations.bench.setting import Setting, open_setting
from fleetdraft.simulations.bench.stopwatch import DRAFTER, TARGET, BlockTime, Call, block_times, own_share, stopwatch
from fleetdraft.simulations.bench.table import run

TOKENS = list(range(40, 60))


@pytest.fixture(scope="module")
def setting() -> Setting:
    return open_setting(EMBEDDED, None, None, threads=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits_of(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([TOKENS])).logits[0])


# --- the same models --------------------------------------------------------------------------------------------


def test_the_peers_drafter_with_the_adapter_merged_is_our_drafter_with_the_adapter(setting: Setting) -> None:
    rng, initial = np.random.default_rng(5), setting.adapter
    arrays = {name: rng.normal(0, 0.05, value.shape).astype(np.float32) for name, value in initial.arrays.items()}
    adapter, shape = LoraAdapter(layout=initial.layout, arrays=arrays), setting.bundle.manifest.shape
    weights = read_weights(setting.bundle.directory / "drafter", shape)
    pair = setting.bundle.pair(setting.pair.name)
    pair.adapt(adapter)
    pair.drafter.decoder.rewind(0)
    ours = pair.drafter.decoder.score(TOKENS).copy()
    pair.adapt(initial)
    assert np.abs(logits_of(llama(shape, adapter.merged(weights))) - ours).max() < 1e-3
    assert np.abs(logits_of(llama(shape, weights)) - ours).max() > 0.1


@pytest.mark.parametrize("widen_to", [None, 320])
def test_the_peers_target_is_our_target(widen_to: int | None) -> None:
    setting = open_setting(EMBEDDED, None, None, threads=1, widen_to=widen_to)
    ours = setting.pair.target.score(TOKENS)
    assert setting.shape.hidden_size == (widen_to or 128)
    assert np.abs(logits_of(llama(setting.shape, setting.weights)) - ours).max() < 1e-3


def test_tli_reads_the_logit_of_each_shared_token(setting: Setting) -> None:
    shape, folder = setting.bundle.manifest.shape, setting.bundle.directory / "drafter"
    target, drafter = open_tokenizers(setting.target_folder, folder)
    model = llama(shape, read_weights(folder, shape))
    found = translator(target, drafter, setting.shape.vocab_size, model)
    logits = torch.arange(shape.vocab_size, dtype=torch.float32)[None, None]
    mapped = found.get_target_logits(logits)[0, 0]
    shared = found.target_to_assistant_input_ids
    assert len(shared) > 1000
    assert all(mapped[token] == own for token, own in shared.items())


def test_the_default_pair_is_across_vocabularies(setting: Setting) -> None:
    assert not setting.same_vocabulary


def test_each_mode_drafts_by_its_own_paths_on_the_same_models(setting: Setting) -> None:
    full, online, direct = (decoding.with_paths(setting.pair, mode) for mode in decoding.MODES)
    assert full.target is online.target is direct.target
    assert len(direct.paths.trie) == len(online.paths.trie) < len(full.paths.trie)
    online.drafted.run("def read(self, size):\n", Options(max_new_tokens=40))
    assert len(direct.paths.trie) < len(online.paths.trie) < len(full.paths.trie)
    again = decoding.with_paths(setting.pair, "online")
    assert len(again.paths.trie) == len(direct.paths.trie)


# --- time -------------------------------------------------------------------------------------------------------


def calls(*spans: tuple[str, float, float]) -> list[Call]:
    return [Call(model=model, start_s=start, end_s=end) for model, start, end in spans]


def test_a_block_lasts_from_one_target_call_to_the_next_and_the_first_is_left_out() -> None:
    log = calls(
        (TARGET, 0, 5),  # reads the prompt
        (DRAFTER, 6, 8),  # reads the prompt
        (TARGET, 9, 10),
        (DRAFTER, 11, 12),
        (DRAFTER, 13, 15),
        (TARGET, 16, 20),
    )
    (block,) = block_times(log)
    assert block == BlockTime(wall_s=10, target_s=4, drafter_s=3)
    assert own_share([block]) == pytest.approx(0.3)


def test_the_stopwatch_sees_every_call_and_leaves_the_sessions_as_they_were(setting: Setting) -> None:
    pair = setting.pair
    sessions = pair.drafter.model.session, getattr(pair.target, "model").session  # noqa: B009 - not in the protocol
    with stopwatch(pair) as log:
        counters = pair.drafted.run("import os\n", Options(max_new_tokens=12)).counters
    assert sum(call.model == TARGET for call in log) == counters.target_calls + 1  # one reads the prompt
    assert sum(call.model == DRAFTER for call in log) == counters.drafter_calls
    assert len(block_times(log)) == counters.blocks - 1
    assert all(block.own_s > 0 for block in block_times(log))
    assert sessions == (pair.drafter.model.session, getattr(pair.target, "model").session)  # noqa: B009


# --- the race ---------------------------------------------------------------------------------------------------


def opened(log: list[str], name: str, stops_at: int = 99) -> Callable[[], Run]:
    def generate(prompt: str, options: Options) -> Lap:
        log.append(f"{name}{prompt}{options.seed}")
        if sum(entry.startswith(name) for entry in log) == stops_at:
            raise PeerError("no more")
        counters = DraftCounters(prompts=1, tokens=10, seconds=2.0)
        return Lap(generation=Generation(text="", token_ids=(), counters=counters, finish_reason="length"))

    return lambda: generate


def test_everybody_runs_every_prompt_in_turns_and_the_warm_up_does_not_count() -> None:
    log: list[str] = []
    results = race({"a": opened(log, "a"), "b": opened(log, "b")}, ["x", "y"], Options(seed=7), 2, lambda remark: None)
    turns = [log[at : at + 2] for at in range(0, len(log), 2)]
    assert [sorted(turn) for turn in turns] == [[f"a{x}", f"b{x}"] for x in ("x7", "x7", "y7", "x8", "y8")]
    assert [len(laps) for laps in results["a"].passes] == [2, 2]
    assert (results["a"].counters.tokens, results["a"].tokens_per_s) == (40, 5.0)


def test_who_begins_is_drawn_anew_for_each_prompt() -> None:
    log: list[str] = []
    race({"a": opened(log, "a"), "b": opened(log, "b")}, list("uvwxyz"), Options(), 2, lambda remark: None)
    assert {turn[0] for turn in log[2::2]} == {"a", "b"}


def test_a_peer_that_stops_is_out_with_its_message_and_the_others_go_on() -> None:
    log: list[str] = []
    contestants = {"a": opened(log, "a", stops_at=2), "b": opened(log, "b")}
    results = race(contestants, ["x", "y"], Options(), 2, lambda remark: None)
    assert (results["a"].failure, results["a"].passes, results["a"].tokens_per_s) == ("no more", [], 0.0)
    assert sum(entry.startswith("a") for entry in log) == 2
    assert results["b"].counters.prompts == 4


# --- the commands -----------------------------------------------------------------------------------------------


def test_decoding_writes_a_row_for_everybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    level = logging.getLogger("transformers").level
    words = ["--quick", "--threads", "1", "--max-new-tokens", "8", "--json", str(file)]
    assert run(decoding.main, "decoding", words) == 0
    found = json.loads(file.read_text())
    assert found["schema"] == 1
    greedy, sampled = ([row for row in found["rows"] if row["temperature"] == heat] for heat in (0, 1))
    everybody = {"ONNX Runtime alone", "transformers alone"}
    everybody |= {"fleetdraft, full", "fleetdraft, online", "fleetdraft, direct", "fleetdraft, full, measured"}
    assert {row["name"] for row in greedy} == everybody | {
        "transformers UAG, 4 draft tokens",
        "transformers UAG, its own budget",
    }
    assert {row["name"] for row in sampled} == everybody | {
        "transformers TLI, 4 draft tokens",
        "transformers TLI, its own budget",
    }
    for row in found["rows"]:
        assert not row["failure"]
        assert row["value"] > 0
        assert row["peer"] is None or row["ratio"] == pytest.approx(row["value"] / row["peer_value"])
        assert row["draft_acceptance_rate"] is None or 0 <= row["draft_acceptance_rate"] <= 1
        assert row["own_share"] is None or 0 < row["own_share"] < 1
    assert {row["greedy_different"] for row in greedy} == {0}
    assert {row["greedy_identical"] + row["greedy_ties"] for row in greedy} == {2}
    assert "outside" in capsys.readouterr().out
    assert logging.getLogger("transformers").level == level


def test_context_writes_a_row_for_each_length_that_fits(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert run(context.main, "context", ["--quick", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["context"], row["temperature"]) for row in rows] == [(100, 0), (250, 0), (100, 1), (250, 1)]
    assert all(row["own_low"] <= row["value"] <= row["own_high"] for row in rows)
    assert all(row["target_us"] > 0 and row["drafter_us"] > 0 for row in rows)


def test_an_ending_has_as_many_tokens_as_fit(setting: Setting) -> None:
    codec, text = setting.pair.target_codec, "def read(self, size):\n    return self._file.read(size)\n" * 20
    for length in (7, 30, 100):
        found = context.ending(codec, text, length)
        assert text.endswith(found)
        assert length - 4 <= len(codec.prompt_tokens(found)) <= length


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--bundle", "nowhere"], "nowhere"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--target", "nobody"], "nobody"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--draft-tokens", "0"], "Invalid value for '--draft-tokens': 0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--max-new-tokens", "510"], "tokens"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--threads", "0"], "--threads"),
        (["--json", "."], "is a directory"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
@pytest.mark.parametrize("main", [decoding.main, context.main])
def test_a_mistake_is_one_line(
    main: Callable[..., None], words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, "bench", words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert named in shown.err


def test_a_target_is_not_widened_to_less(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(decoding.main, "bench", ["--widen", "64"]) == 2
    assert "hidden_size of a widened target is 64" in capsys.readouterr().err
