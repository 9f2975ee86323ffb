"""The test of sampled text: silent where the law holds, an alarm where it does not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.client.decoding import block
from fleetdraft.client.decoding.generation import Generator
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.decoding.sampling import Sampling
from fleetdraft.client.evaluation.law_check import ALARM, law_values, uniform_p_value
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.cli import main

OPTIONS = Options(sampling=Sampling(temperature=1.0), max_new_tokens=32)
PROMPTS = 8


def values(pair: Pair, prompts: list[Prompt], generator: Generator, options: Options = OPTIONS) -> np.ndarray:
    def each() -> Iterator[np.ndarray]:
        for seed, prompt in enumerate(prompts[:PROMPTS]):
            own = replace(options, seed=seed)
            text = generator.run(prompt.text, own)
            tokens = pair.target_codec.prompt_tokens(prompt.text)
            yield law_values(pair.target, tokens, text.token_ids, own, np.random.default_rng([seed, 1]))

    return np.concatenate(list(each()))


@pytest.mark.parametrize(("distance", "p_value"), [(1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01)])
def test_p_values_are_those_of_kolmogorovs_table(distance: float, p_value: float) -> None:
    """As many values as the correction for their number vanishes; all steps but one are in their place."""
    count = 1_000_000
    shift = (distance - 0.0) / np.sqrt(count)
    ordered = np.maximum((np.arange(count) + 0.5) / count - shift, 0.0)
    assert uniform_p_value(ordered) == pytest.approx(p_value, rel=0.02)


def test_uniform_numbers_give_small_p_values_as_seldom_as_they_should() -> None:
    rng = np.random.default_rng(5)
    found = np.array([uniform_p_value(rng.random(40)) for _ in range(2000)])
    for level in (0.5, 0.1, 0.02):
        assert abs((found < level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 2000) + 0.01


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1.0), Sampling(temperature=0.7, top_p=0.9, top_k=50, repetition_penalty=1.3)],
)
def test_drafted_text_passes(pairs: dict[str, Pair], prompts: list[Prompt], sampling: Sampling) -> None:
    pair = pairs["bpe3"]
    found = values(pair, prompts, pair.drafted, replace(OPTIONS, sampling=sampling))
    assert len(found) > 200
    assert uniform_p_value(found) > ALARM


def test_text_of_the_target_alone_passes(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    pair = pairs["bpe3"]
    assert uniform_p_value(values(pair, prompts, pair.alone)) > ALARM


def test_one_prompt_given_often_is_no_alarm(tmp_path: Path) -> None:
    """One token of one law each: a test that spread tokens by the numbers that drew them would see a pattern."""
    (tmp_path / "same.jsonl").write_text('{"prompt": "import os\\n"}\n' * 400)
    words = ["eval", "--prompts", str(tmp_path / "same.jsonl"), "--max-new-tokens", "1", "--temperature", "1"]
    assert main(words) == 0


def everything_accepted(draft, rows, sampling, chooser):
    count = len(draft.positions)
    return count, chooser.choose(block.target_weights(rows[count], sampling)), [1.0] * count


def own_law_behind_a_refusal(p, share, position, chooser):
    return chooser.choose(p)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [("_sampled", everything_accepted), ("_residual", own_law_behind_a_refusal)],
)
def test_a_wrong_law_is_an_alarm(
    pairs: dict[str, Pair], prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch, name: str, mutant: object
) -> None:
    monkeypatch.setattr(block, name, mutant)
    pair = pairs["bpe3"]
    assert uniform_p_value(values(pair, prompts, pair.drafted)) < ALARM


def test_text_of_another_temperature_is_an_alarm(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    pair, said = pairs["bpe3"], replace(OPTIONS, sampling=Sampling(temperature=0.6))
    found = []
    for seed, prompt in enumerate(prompts[:PROMPTS]):
        text = pair.drafted.run(prompt.text, replace(said, seed=seed))
        tokens = pair.target_codec.prompt_tokens(prompt.text)
        found.append(law_values(pair.target, tokens, text.token_ids, OPTIONS, np.random.default_rng([seed, 1])))
    assert uniform_p_value(np.concatenate(found)) < ALARM
