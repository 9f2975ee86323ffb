"""Generation on the shipped models: the drafter changes the speed and nothing else."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.decoding.processors import Tokens
from fleetdraft.client.decoding.sampling import Sampling
from fleetdraft.client.measurement import GreedyCheck, compare_greedy, measure
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.errors import ConfigError, ContextLimitError

TARGETS = ["spm", "bpe3", "bpe1"]


@pytest.mark.parametrize("name", TARGETS)
def test_greedy_text_is_the_targets_own_on_100_prompts(
    bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt], name: str
) -> None:
    """An argmax tie may split two texts; ties are counted apart and anything else is an error of the law."""
    assert len(prompts) >= 96
    chosen = [*prompts, *(Prompt(text=p.text[: len(p.text) // 2], task=p.task) for p in prompts)][:100]
    result = measure(pairs[name], chosen, Options(max_new_tokens=32), {"drafted": bundle.adapter()})
    assert result.alone.drafted == 0
    assert result.alone.target_calls == result.alone.tokens > 0
    greedy = result.drafted["drafted"].greedy
    assert greedy.different == 0
    assert greedy.identical + greedy.ties == 100
    assert greedy.identical >= 95


def test_a_different_text_is_told_from_a_tie(pairs: dict[str, Pair]) -> None:
    pair = pairs["spm"]
    prompt = pair.target_codec.prompt_tokens("def f(x):\n")
    alone = pair.alone.run("def f(x):\n", Options(max_new_tokens=8))
    wrong = pair.alone.run("class A:\n", Options(max_new_tokens=8))
    assert compare_greedy(pair.target, prompt, alone, wrong, ()) == GreedyCheck(different=1)


def test_a_text_cut_short_is_a_different_text(pairs: dict[str, Pair]) -> None:
    pair = pairs["spm"]
    prompt = pair.target_codec.prompt_tokens("def f(x):\n")
    whole = pair.alone.run("def f(x):\n", Options(max_new_tokens=8))
    short = replace(whole, token_ids=whole.token_ids[:-1])
    assert compare_greedy(pair.target, prompt, whole, whole, ()) == GreedyCheck(identical=1)
    assert compare_greedy(pair.target, prompt, whole, short, ()) == GreedyCheck(different=1)
    assert compare_greedy(pair.target, prompt, short, whole, ()) == GreedyCheck(different=1)


@pytest.mark.parametrize("name", TARGETS)
def test_sampling_is_deterministic_by_seed(pairs: dict[str, Pair], prompts: list[Prompt], name: str) -> None:
    def sample(seed: int) -> tuple[int, ...]:
        options = Options(sampling=Sampling(temperature=0.9, top_p=0.95), max_new_tokens=24, seed=seed)
        return pairs[name].drafted.run(prompts[0].text, options).token_ids

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("name", TARGETS)
def test_stream_joins_to_the_text(pairs: dict[str, Pair], prompts: list[Prompt], name: str) -> None:
    options = Options(max_new_tokens=24)
    pieces = list(pairs[name].drafted.stream(prompts[1].text, options))
    assert "".join(pieces) == pairs[name].drafted.run(prompts[1].text, options).text
    assert len(pieces) > 2


@pytest.mark.parametrize("name", TARGETS)
def test_text_ends_before_a_stop_string(pairs: dict[str, Pair], prompts: list[Prompt], name: str) -> None:
    pair, prompt = pairs[name], prompts[1].text
    whole = pair.alone.run(prompt, Options(max_new_tokens=40))
    middle = len(whole.text) // 2
    options = Options(max_new_tokens=40, stop=("never in a text of python", whole.text[middle : middle + 5]))
    expected = whole.text[: whole.text.find(options.stop[1])]
    for generator in (pair.alone, pair.drafted):
        stopped = generator.run(prompt, options)
        assert stopped.text == "".join(generator.stream(prompt, options)) == expected
        assert stopped.finish_reason == "stop"
        assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]
        assert stopped.counters.tokens == len(stopped.token_ids) < 40


def test_stop_string_that_never_comes_changes_nothing(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    whole = pairs["spm"].drafted.run(prompts[1].text, Options(max_new_tokens=24))
    stop = (whole.text[-1:] + "\0",)
    assert pairs["spm"].drafted.run(prompts[1].text, Options(max_new_tokens=24, stop=stop)).text == whole.text


def test_a_stream_whose_target_went_to_another_text_says_so(pairs: dict[str, Pair]) -> None:
    stream = pairs["spm"].drafted.stream("import os\n", Options())
    next(stream)
    pairs["spm"].alone.run("def f():\n", Options(max_new_tokens=2))
    with pytest.raises(ConfigError, match="open a second pair"):
        next(stream)


@pytest.mark.parametrize("way", ["alone", "drafted"])
def test_of_two_streams_begun_on_one_pair_the_newer_is_right_and_the_older_is_told(
    pairs: dict[str, Pair], way: str
) -> None:
    generator = getattr(pairs["spm"], way)
    expected = generator.run("def f():\n", Options(max_new_tokens=12)).text
    older, newer = (generator.stream(prompt, Options(max_new_tokens=12)) for prompt in ("import os\n", "def f():\n"))
    with pytest.raises(ConfigError, match="open a second pair"):
        next(older)
    assert "".join(newer) == expected


def test_two_threads_on_one_pair_are_told(pairs: dict[str, Pair]) -> None:
    pair, inside, done = pairs["spm"], threading.Event(), threading.Event()

    def slow(tokens: Tokens, logits: np.ndarray) -> np.ndarray:
        inside.set()
        done.wait(30)
        return logits

    thread = threading.Thread(target=lambda: pair.drafted.run("x", Options(max_new_tokens=1, processors=(slow,))))
    thread.start()
    assert inside.wait(30)
    try:
        with pytest.raises(ConfigError, match="another thread"):
            pair.drafted.run("y", Options())
    finally:
        done.set()
        thread.join()


def test_length_is_exact_and_no_draft_is_longer(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    for length in (1, 2, 3, 7):
        generation = pairs["bpe3"].drafted.run(prompts[0].text, Options(max_new_tokens=length, draft_tokens=8))
        assert len(generation.token_ids) == length
        assert generation.finish_reason == "length"
        assert generation.counters.tokens == length


def test_text_ends_where_the_context_ends(pairs: dict[str, Pair]) -> None:
    pair = pairs["bpe1"]
    prompt = "x = 1\n" * 20
    used = len(pair.target_codec.prompt_tokens(prompt))
    generation = pair.drafted.run(prompt, Options(max_new_tokens=pair.target.limit))
    assert generation.finish_reason in ("context", "eos")
    assert len(generation.token_ids) <= pair.target.limit - used


def test_prompt_beyond_the_context_is_an_error_of_one_line(pairs: dict[str, Pair]) -> None:
    with pytest.raises(ContextLimitError, match="the prompt has .* tokens, expected 1 to"):
        pairs["spm"].drafted.run("word " * 2000, Options())


@pytest.mark.parametrize("name", TARGETS)
def test_counters_add_up(pairs: dict[str, Pair], prompts: list[Prompt], name: str) -> None:
    """Every block emits what it accepted and one token more: no draft is longer than the room that is left."""
    texts = [pairs[name].drafted.run(p.text, Options(max_new_tokens=41, draft_tokens=7)) for p in prompts[:8]]
    full = [text.counters for text in texts if text.finish_reason == "length"]
    assert full
    for counters in full:
        assert counters.tokens == counters.accepted + counters.blocks == 41
        assert counters.target_calls == counters.blocks
        assert 0 < counters.accepted <= counters.drafted <= counters.draft_tokens
        assert counters.mean_acceptance_length == pytest.approx(counters.tokens / counters.blocks)


def test_alone_needs_one_target_call_a_token(pairs: dict[str, Pair]) -> None:
    counters = pairs["spm"].alone.run("def f():\n", Options(max_new_tokens=10)).counters
    assert counters.target_calls == counters.tokens == 10
    assert counters.drafted == counters.drafter_calls == counters.blocks == 0


@pytest.mark.parametrize("stop", [("",), ("a", ""), ("\ud800",), "ab", (3,)])
def test_stop_that_is_no_text_is_refused(stop: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="stop"):
        Options(stop=stop)


@pytest.mark.parametrize(("field", "value"), [("max_new_tokens", 0), ("draft_tokens", -1), ("draft_tokens", 65)])
def test_options_out_of_range(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}, expected"):
        Options(**{field: value})
