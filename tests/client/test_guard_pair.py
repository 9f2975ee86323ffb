"""The guard on the shipped pair: a poisoned adapter is rolled back while texts are generated, which stay the same."""

from collections.abc import Iterator

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.decoding.sampling import Sampling
from fleetdraft.client.guarding.guard import Guard, GuardConfig
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.lora import LoraAdapter

SAMPLINGS = {"greedy": Sampling(temperature=0), "sampled": Sampling(temperature=1)}


@pytest.fixture
def good(bundle: Bundle) -> Iterator[LoraAdapter]:
    adapter = bundle.adapter()
    bundle.drafter.model.adapt(adapter)
    yield adapter
    bundle.drafter.model.adapt(adapter)


def poisoned(adapter: LoraAdapter, scale: float) -> LoraAdapter:
    rng = np.random.default_rng(0)
    return adapter.plus({n: rng.normal(0, scale, v.shape).astype(np.float32) for n, v in adapter.arrays.items()})


def generate(
    pair: Pair, guard: Guard[LoraAdapter], sampling: Sampling, prompts: list[Prompt], blocks: int
) -> list[str]:
    """Whole texts, until the guard has seen so many more blocks."""
    texts, end = list[str](), guard.status()["blocks"] + blocks
    for seed, prompt in enumerate(prompts):
        if guard.status()["blocks"] >= end:
            break
        texts.append(
            pair.drafted.run(prompt.text, Options(sampling=sampling, max_new_tokens=48, seed=seed), guard).text
        )
    return texts


@pytest.mark.parametrize(
    ("sampling", "scale"), [(SAMPLINGS["greedy"], 0.2), (SAMPLINGS["sampled"], 1.0)], ids=["greedy", "sampled"]
)
def test_a_poisoned_adapter_is_rolled_back_within_50_blocks(
    bundle: Bundle, good: LoraAdapter, prompts: list[Prompt], sampling: Sampling, scale: float
) -> None:
    pair, back = bundle.pair("spm"), list[LoraAdapter]()
    guard = Guard(GuardConfig(), good, pair.adapt, back.append)
    generate(pair, guard, sampling, prompts[:12], 80)
    level, begun = guard.level.acceptance, guard.status()["blocks"]
    guard.changed(poisoned(good, scale))
    generate(pair, guard, sampling, prompts[12:24], 60)
    assert level > 0.4
    assert [decision.what for decision in guard.decisions] == ["rolled back"]
    assert guard.decisions[0].at_block - begun <= 50
    assert back == [good]
    assert guard.newest is good


def test_a_guard_at_work_changes_no_greedy_text(bundle: Bundle, good: LoraAdapter, prompts: list[Prompt]) -> None:
    pair = bundle.pair("spm")
    guard = Guard(GuardConfig(), good, pair.adapt, lambda adapter: None)
    guard.changed(poisoned(good, 1.0))  # of an unknown reference: on trial from the first block
    assert guard.on_trial
    texts = generate(pair, guard, SAMPLINGS["greedy"], prompts[:4], 1000)
    alone = [pair.alone.run(prompt.text, Options(max_new_tokens=48)).text for prompt in prompts[:4]]
    assert guard.decisions
    assert texts == alone


def test_a_turn_to_harder_texts_is_no_fault_of_the_adapter(
    bundle: Bundle, good: LoraAdapter, prompts: list[Prompt]
) -> None:
    """First the texts of which most is accepted, then, with an equal adapter as the newest, those with the least."""
    pair, back, options = bundle.pair("spm"), list[LoraAdapter](), Options(max_new_tokens=24)
    found = {prompt: pair.drafted.run(prompt.text, options).counters.draft_acceptance_rate for prompt in prompts[:18]}
    hardest = sorted(found, key=lambda prompt: found[prompt])
    guard = Guard(GuardConfig(), good, pair.adapt, back.append)
    generate(pair, guard, SAMPLINGS["greedy"], hardest[:-7:-1], 60)
    guard.changed(LoraAdapter(layout=good.layout, arrays=good.arrays))
    generate(pair, guard, SAMPLINGS["greedy"], hardest[:-6], 120)
    assert {decision.what for decision in guard.decisions} == {"kept"}
    assert not back
