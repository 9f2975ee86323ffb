"""How many tokens a block drafts: within what is allowed, near the best there is, and never a change of the text."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from device import STATE, Device, boundary, outcome_of
from safetensors.numpy import save

from fleetdraft.client.decoding.generation import Generator
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.decoding.steps import DrafterSide
from fleetdraft.client.pacing.boundary import Boundary
from fleetdraft.client.pacing.controllers import CONTROLLERS, Controllers
from fleetdraft.client.pacing.head_learner import HeadConfig, HeadLearner
from fleetdraft.client.pacing.head_pace import CostAware, HeadPace, Threshold
from fleetdraft.client.pacing.logistic_head import LogisticHead
from fleetdraft.client.pacing.outcome import Outcome
from fleetdraft.client.pacing.pace import FixedPace, Pace
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.runtimes.decoder import Hidden
from fleetdraft.common.errors import ConfigError, FingerprintError, ModelError

best_fixed = cache(Device.best)


def pace_of(name: str) -> Pace:
    return Controllers(hidden_size=len(STATE))(name)


@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("draft", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", ["measured", "head"])
def test_speed_comes_close_to_the_best_fixed_budget(name: str, acceptance: float, draft: float) -> None:
    device = Device(acceptance=acceptance, draft=draft)
    pace, rng = pace_of(name), np.random.default_rng(0)
    device.tokens_per_s(pace, 200, rng)
    assert device.tokens_per_s(pace, 600, rng) > 0.88 * best_fixed(device)


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("most", [0, 1, 3, 8])
def test_budget_is_never_beyond_what_is_allowed(name: str, most: int) -> None:
    device, pace, rng = Device(acceptance=0.9), pace_of(name), np.random.default_rng(0)
    for _ in range(100):
        assert 0 <= pace.budget(most) <= most
        assert device.step(pace, rng, most).draft_tokens <= most


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9])
def test_a_clock_that_stands_still_or_jumps_breaks_nothing(name: str, seconds: float) -> None:
    pace, rng = pace_of(name), np.random.default_rng(0)
    for _ in range(100):
        budget = pace.budget(8)
        assert 0 <= budget <= 8
        assert 0 <= pace.limit(boundary(1)) <= 8
        block = Device(acceptance=0.5).block(budget, rng)
        pace.note(outcome_of(replace(block, target_s=seconds, rest_s=seconds, reading_s=seconds)))


def test_an_unknown_controller_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="expected one of fixed, ewma, measured, threshold, head"):
        Options(controller="fastest")


def test_a_head_without_states_is_refused() -> None:
    with pytest.raises(ConfigError, match="this drafter's graph gives no states"):
        Controllers(hidden_size=0)("head")


# --- rules on the head's probability ------------------------------------------------------------------------------


def test_threshold_stops_where_a_refusal_is_likelier_than_it_says() -> None:
    rule = Threshold(0.3)
    assert rule.gain(0.9, 0.8, 1, 8, 8) >= 0
    assert rule.gain(0.8, 0.8, 1, 8, 8) < 0


def test_cost_aware_proposes_what_is_worth_its_time_and_nothing_else() -> None:
    """At 100 tokens/s a proposal of 2 ms has to bring 0.2 tokens."""
    rule, rng = CostAware(), np.random.default_rng(0)
    device = Device(acceptance=0.0, single=10.0, batch=10.0, more=0.0, draft=2.0, reading=0.0)
    for drafted in (0, 1, 2, 4, 8) * 20:
        rule.note(outcome_of(replace(device.block(drafted, rng), target_s=0.01 - 0.002 * drafted, reading_s=1e-6)))
    assert rule.gain(1.0, 0.25, 0, 8, 8) >= 0
    assert rule.gain(1.0, 0.15, 0, 8, 8) < 0
    assert rule.gain(0.5, 0.25, 1, 8, 8) < 0


def test_head_drafts_where_proposals_are_accepted_and_stops_where_they_are_not() -> None:
    """Two kinds of boundary that only the state tells apart; a fixed length cannot."""
    good, bad = STATE, np.roll(STATE, 1)
    pace, rng = Controllers(hidden_size=len(STATE))("head"), np.random.default_rng(0)
    drafted: dict[bool, list[int]] = {True: [], False: []}
    for n in range(800):
        is_good = bool(rng.random() < 0.7)
        device, state = Device(acceptance=0.95 if is_good else 0.02), good if is_good else bad
        budget = pace.budget(8)
        count = next((k for k in range(budget) if not pace.limit(boundary(k, state, budget))), budget)
        pace.note(outcome_of(device.block(count, rng, reads=budget > 0)))
        if n > 400 and budget:
            drafted[is_good].append(count)
    assert np.mean(drafted[True]) > 4
    assert np.mean(drafted[False]) < 0.5


def test_head_learns_within_a_text_what_its_states_do_not_tell() -> None:
    """Texts by turns of two kinds with one state: after ten blocks of a text, it drafts by the text's kind."""
    pace, rng = HeadPace(LogisticHead(len(STATE)), CostAware()), np.random.default_rng(0)
    drafted: dict[bool, list[int]] = {True: [], False: []}
    for text in range(40):
        device = Device(acceptance=0.95 if text % 2 else 0.05)
        pace.begin()
        for n in range(30):
            block = device.step(pace, rng)
            if text >= 20 and n >= 10:
                drafted[text % 2 == 1].append(block.draft_tokens)
    assert np.mean(drafted[True]) > 5
    assert np.mean(drafted[False]) < 1


def test_a_position_is_limited_where_only_the_short_token_is_accepted() -> None:
    """Without a limit nothing is accepted, with one nearly everything."""
    pace = HeadPace(LogisticHead(len(STATE)), CostAware(), single=LogisticHead(len(STATE)))
    device, rng, limits = Device(acceptance=0.0), np.random.default_rng(0), []
    for _ in range(200):
        pace.begin()
        pace.budget(8)
        limits.append(pace.limit(boundary(0)))
        block = replace(device, acceptance=0.9 if limits[-1] == 1 else 0.0).block(min(limits[-1], 1), rng)
        pace.note(outcome_of(block))
    assert limits[100:].count(1) > 80


# --- heads of the two controllers ---------------------------------------------------------------------------------

HEADS = ("head", "threshold")


def used(*names: str, trains_head: bool = True) -> Controllers:
    """Controllers that were asked for the paces of these names, each of which has seen a hundred blocks."""
    controllers, rng = Controllers(hidden_size=len(STATE), trains_head=trains_head), np.random.default_rng(0)
    for pace in map(controllers, names):
        for _ in range(100):
            Device(acceptance=0.5).step(pace, rng)
    return controllers


def said(controllers: Controllers) -> dict[str, float]:
    """By the head of each name."""
    heads = {name: controllers._head_of(name) for name in HEADS}
    return {name: head(head.see(boundary(0))) for name, head in heads.items()}


UNTRAINED = said(Controllers(hidden_size=len(STATE)))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_trained_between_blocks_or_by_the_schedule_alone(name: str) -> None:
    assert said(used(name))[name] != UNTRAINED[name]
    controllers = used(name, trains_head=False)
    assert said(controllers) == UNTRAINED
    controllers.train()
    assert {other for other, p in said(controllers).items() if p != UNTRAINED[other]} == {name}


@pytest.mark.parametrize("names", [HEADS[:1], HEADS[1:], HEADS])
def test_all_heads_go_on_from_what_was_kept_and_what_is_not_used_stays(names: tuple[str, ...]) -> None:
    before, after = used(*names), Controllers(hidden_size=len(STATE))
    data = before.to_bytes()
    assert data is not None
    after.restore_bytes(data)
    assert after.to_bytes() == data
    assert said(after) == said(before)
    after("threshold")
    after.train()
    assert said(after)["head"] == said(before)["head"]


def test_no_head_leaves_nothing_to_keep() -> None:
    assert used("fixed", "measured").to_bytes() is None


def test_heads_that_are_torn_or_none_are_refused_and_change_nothing() -> None:
    data, controllers = used(*HEADS).to_bytes(), Controllers(hidden_size=len(STATE))
    assert data is not None
    foreign = save({"other": np.zeros(1, np.uint8)})
    for wrong in (
        b"",
        data[:30],
        data[:-1],
        foreign,
        data[:-700] + bytes(700),
        HeadLearner(8, HeadConfig(), 0).to_bytes(),
    ):
        with pytest.raises(ModelError, match="acceptance head"):
            controllers.restore_bytes(wrong)
    with pytest.raises(FingerprintError, match="hidden size 8, expected 9"):
        Controllers(hidden_size=9).restore_bytes(data)
    assert controllers.to_bytes() is None


# --- on the shipped models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("controller", [name for name in CONTROLLERS if name != "fixed"])
def test_greedy_text_is_the_targets_own_under_every_controller(
    pairs: dict[str, Pair], prompts: list[Prompt], controller: str
) -> None:
    """Whatever the clock says, some blocks draft and some do not, and the text stays the same."""
    pair = replace(pairs["bpe3"])
    options = Options(max_new_tokens=40, draft_tokens=8, controller=controller)
    for prompt in prompts[:6]:
        drafted = pair.drafted.run(prompt.text, options)
        assert drafted.token_ids == pair.alone.run(prompt.text, options).token_ids
        assert drafted.counters.tokens == drafted.counters.accepted + drafted.counters.blocks


class Notes:
    """A witness that keeps what it sees, and a fixed pace that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Outcome] = []
        self.whole: list[Outcome] = []
        self.begin, self.budget = FixedPace().begin, FixedPace().budget
        self.states: list[list[tuple[tuple[int, ...], Hidden]]] = [[]]
        """Of each block, and of the one under way: what was proposed at a boundary, and the drafter's state there."""

    def limit(self, boundary: Boundary) -> int:
        self.states[-1].append((boundary.proposed, boundary.hidden.copy()))
        return boundary.left

    def observe(self, outcome: Outcome) -> None:
        self.seen.append(replace(outcome, rows=outcome.rows.copy()))
        self.states.append([])

    def note(self, outcome: Outcome) -> None:
        self.whole.append(outcome)


def by_pace(pair: Pair, pace: Pace) -> Generator:
    side = DrafterSide(decoder=pair.drafter.decoder, spelling=pair.spelling, paths=pair.paths)
    return Generator(pair.target, pair.target_codec, side, paces=lambda name: pace)


@pytest.mark.parametrize("length", [1, 5, 30])
def test_outcomes_are_trimmed_to_what_became_text(pairs: dict[str, Pair], prompts: list[Prompt], length: int) -> None:
    pair, notes = pairs["spm"], Notes()
    text = by_pace(pair, notes).run(prompts[0].text, Options(max_new_tokens=length, draft_tokens=6), notes)
    assert tuple(token for outcome in notes.seen for token in outcome.tokens) == text.token_ids
    for outcome in notes.seen:
        judged = min(outcome.accepted + 1, len(outcome.proposed))
        assert outcome.rows.shape == (len(outcome.tokens), pair.target.vocab_size)
        assert outcome.proposed[: outcome.accepted] == outcome.tokens[: outcome.accepted]
        assert len(outcome.acceptance) == judged
        assert outcome.acceptance[: outcome.accepted].all()
        assert (outcome.rejected is None) == (outcome.accepted == len(outcome.proposed))


def test_hidden_states_are_those_the_drafter_has_at_the_boundaries(
    pairs: dict[str, Pair], prompts: list[Prompt]
) -> None:
    """Scored again in one go: the spelled text up to each boundary, whose last state it is."""
    pair, notes = pairs["spm"], Notes()
    by_pace(pair, notes).run(prompts[0].text, Options(max_new_tokens=20, draft_tokens=4), notes)
    text, decoder = list(pair.target_codec.prompt_tokens(prompts[0].text)), pair.drafter.decoder
    compared = 0
    for outcome, states in zip(notes.seen, notes.states, strict=False):
        for proposed, state in states:
            decoder.rewind(0)
            decoder.score(pair.spelling.context([*text, *proposed]), 1)
            np.testing.assert_allclose(state, decoder.hidden[-1], atol=2e-3)
            compared += 1
        text += outcome.tokens
    assert compared > 10


def test_a_text_cut_within_a_block_still_teaches_the_pace_all_of_it(pairs: dict[str, Pair]) -> None:
    pair, notes = pairs["spm"], Notes()
    whole = pair.alone.run("def f(self):\n", Options(max_new_tokens=30)).text
    by_pace(pair, notes).run("def f(self):\n", Options(stop=(whole[9:12],), draft_tokens=8), notes)
    assert len(notes.seen) == len(notes.whole)
    assert sum(len(o.tokens) for o in notes.seen) <= sum(len(o.tokens) for o in notes.whole)


def test_the_drafter_catches_up_after_blocks_that_did_not_draft(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    """A pace that skips blocks by turns: acceptance stays that of a drafter which has read the whole text."""

    class ByTurns(FixedPace):
        def __init__(self) -> None:
            self.blocks = 0

        def budget(self, most: int) -> int:
            return most if self.blocks % 3 == 0 else 0

        def note(self, outcome: Outcome) -> None:
            self.blocks += 1

    pair, options = pairs["spm"], Options(max_new_tokens=60)
    by_turns = by_pace(pair, ByTurns())
    texts = [by_turns.run(prompt.text, options) for prompt in prompts[:8]]
    always = [pair.drafted.run(prompt.text, options) for prompt in prompts[:8]]
    assert [text.token_ids for text in texts] == [text.token_ids for text in always]

    def acceptance(generations: list) -> float:
        return sum(g.counters.accepted for g in generations) / sum(g.counters.drafted for g in generations)

    assert acceptance(texts) > 0.6 * acceptance(always)
