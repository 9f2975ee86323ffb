"""The budget of the next block follows what was measured. Times come from a model of a device, not from a clock."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fleetdraft.client.generation import DrafterSide, Generator
from fleetdraft.client.options import Options
from fleetdraft.client.pace import BlockCost, FixedPace, MeasuredPace, Pace
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt


@dataclass(frozen=True)
class Device:
    """Milliseconds: a target call over one token takes ``single``, over k ``batch + k * more``, a draft ``draft``."""

    acceptance: float
    single: float = 10.0
    batch: float = 12.0
    more: float = 0.5
    draft: float = 1.0

    def block(self, budget: int, rng: np.random.Generator) -> BlockCost:
        refused = np.flatnonzero(rng.random(budget) >= self.acceptance)
        target = self.batch + self.more * (budget + 1) if budget else self.single
        return BlockCost(
            draft_tokens=budget,
            proposed=budget,
            accepted=int(refused[0]) if len(refused) else budget,
            target_s=target / 1e3,
            rest_s=(0.3 + self.draft * budget) / 1e3,
        )

    def tokens_per_s(self, pace: Pace, blocks: int, rng: np.random.Generator, most: int = 8) -> float:
        tokens = seconds = 0.0
        for _ in range(blocks):
            block = self.block(pace.budget(most), rng)
            pace.note(block)
            tokens, seconds = tokens + block.accepted + 1, seconds + block.target_s + block.rest_s
        return tokens / seconds

    def best(self) -> float:
        """Of all fixed budgets, none included."""
        rng = np.random.default_rng(1)
        return max(self.tokens_per_s(FixedPace(), 3000, rng, most) for most in range(9))


@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("draft", [0.3, 1.0, 3.0])
def test_speed_comes_close_to_the_best_fixed_budget(acceptance: float, draft: float) -> None:
    device = Device(acceptance=acceptance, draft=draft)
    pace, rng = MeasuredPace(), np.random.default_rng(0)
    device.tokens_per_s(pace, 100, rng)
    assert device.tokens_per_s(pace, 2000, rng) > 0.88 * device.best()


def test_drafting_that_does_not_pay_costs_little() -> None:
    device, pace, rng = Device(acceptance=0.05, draft=3.0), MeasuredPace(), np.random.default_rng(0)
    alone = device.tokens_per_s(FixedPace(), 500, rng, most=0)
    device.tokens_per_s(pace, 50, rng)
    assert device.tokens_per_s(pace, 1000, rng) > 0.96 * alone
    assert device.tokens_per_s(FixedPace(), 1000, rng, most=8) < 0.5 * alone


def test_drafting_that_pays_again_is_found_again() -> None:
    pace, rng = MeasuredPace(), np.random.default_rng(0)
    useless, useful = Device(acceptance=0.0), Device(acceptance=0.9)
    useless.tokens_per_s(pace, 300, rng)
    assert pace.budget(8) in (0, 1)
    useful.tokens_per_s(pace, 600, rng)
    assert useful.tokens_per_s(pace, 1000, rng) > 0.9 * useful.best()


def test_one_slow_block_changes_little() -> None:
    device, pace, rng = Device(acceptance=0.8), MeasuredPace(), np.random.default_rng(0)
    device.tokens_per_s(pace, 300, rng)
    pace.note(replace(device.block(pace.budget(8), rng), target_s=60.0, rest_s=60.0))
    assert device.tokens_per_s(pace, 100, rng) > 0.85 * device.best()


@pytest.mark.parametrize("most", range(9))
def test_budget_is_never_beyond_what_is_allowed(most: int) -> None:
    device, pace, rng = Device(acceptance=0.9), MeasuredPace(), np.random.default_rng(0)
    for _ in range(200):
        assert 0 <= pace.budget(most) <= most
        pace.note(device.block(pace.budget(most), rng))
    assert FixedPace().budget(most) == most


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9])
def test_a_clock_that_stands_still_or_jumps_breaks_nothing(seconds: float) -> None:
    pace, rng = MeasuredPace(), np.random.default_rng(0)
    for _ in range(100):
        block = Device(acceptance=0.5).block(pace.budget(8), rng)
        pace.note(replace(block, target_s=seconds, rest_s=seconds))
        assert 0 <= pace.budget(8) <= 8


@pytest.mark.parametrize("name", ["spm", "bpe3"])
def test_adaptive_greedy_text_is_the_targets_own(pairs: dict[str, Pair], prompts: list[Prompt], name: str) -> None:
    """Whatever the clock says, some blocks draft and some do not, and the text stays the same."""
    options = Options(max_new_tokens=40, draft_tokens=8, adaptive=True)
    for prompt in prompts[:8]:
        drafted = pairs[name].drafted.run(prompt.text, options)
        assert drafted.token_ids == pairs[name].alone.run(prompt.text, options).token_ids
        assert drafted.counters.tokens == drafted.counters.accepted + drafted.counters.blocks


def test_the_drafter_catches_up_after_blocks_that_did_not_draft(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    """A pace that skips blocks by turns: acceptance stays that of a drafter which has read the whole text."""

    class ByTurns:
        def __init__(self) -> None:
            self.blocks = 0

        def budget(self, most: int) -> int:
            return most if self.blocks % 3 == 0 else 0

        def note(self, block: BlockCost) -> None:
            self.blocks += 1

    pair = pairs["spm"]
    side = DrafterSide(decoder=pair.drafter.decoder, spelling=pair.spelling, paths=pair.paths)
    by_turns = Generator(pair.target, pair.target_codec, side, pace=ByTurns())
    options = Options(max_new_tokens=60, adaptive=True)
    texts = [by_turns.run(prompt.text, options) for prompt in prompts[:12]]
    always = [pair.drafted.run(prompt.text, replace(options, adaptive=False)) for prompt in prompts[:12]]
    assert [text.token_ids for text in texts] == [text.token_ids for text in always]

    def acceptance(generations: list) -> float:
        return sum(g.counters.accepted for g in generations) / sum(g.counters.drafted for g in generations)

    assert acceptance(texts) > 0.6 * acceptance(always)
