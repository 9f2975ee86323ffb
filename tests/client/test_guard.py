"""The guard: harm is rolled back, a new subject is not, nothing is decided without evidence, and its state survives."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetdraft.client.guarding.guard import Guard, GuardConfig
from fleetdraft.client.guarding.trial import Tally, Trial, chance_of_fewer, chance_of_more
from fleetdraft.client.pacing.outcome import Outcome
from fleetdraft.client.pacing.pace import BlockCost
from fleetdraft.common.errors import ConfigError, ModelError

ROW = np.zeros((1, 2), np.float32)


def block(accepted: int, proposed: int, draft_tokens: int = 4, seconds: float = 0.1) -> Outcome:
    cost = BlockCost(
        draft_tokens=draft_tokens, proposed=proposed, accepted=accepted, target_s=0.75 * seconds, rest_s=0.25 * seconds
    )
    return Outcome(tokens=(1,) * (accepted + 1), rows=ROW, cost=cost, proposed=(1,) * proposed, accepted=accepted)


class Device:
    """A guard on a device whose adapters are names, each accepted with a probability that may change with the text."""

    def __init__(
        self,
        rates: dict[str, float],
        seed: int = 0,
        judge: Callable[[str], Sequence[float]] | None = None,
        config: GuardConfig | None = None,
        unusable: Callable[[str], str] = lambda _: "",
    ) -> None:
        self.rates, self.in_force, self.rolled_back = rates, "good", list[int]()
        self.rng, self.blocks = np.random.default_rng(seed), 0
        self.guard = Guard(config or GuardConfig(), "good", self._put, self._on_rollback, judge, unusable)

    def _put(self, name: str) -> None:
        self.in_force = name

    def _on_rollback(self, name: str) -> None:
        assert self.in_force == name
        self.rolled_back.append(self.blocks)

    def run(self, blocks: int) -> None:
        """Blocks of four proposals, of what is in force."""
        for _ in range(blocks):
            misses = np.flatnonzero(self.rng.random(4) >= self.rates[self.in_force])
            self.blocks += 1
            self.guard.observe(block(int(misses[0]) if len(misses) else 4, 4))

    def decided(self) -> list[str]:
        return [decision.what for decision in self.guard.decisions]


# --- harm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("level", [0.6, 0.7, 0.9])
def test_an_adapter_of_which_nothing_is_accepted_is_rolled_back_within_50_blocks(level: float, seed: int) -> None:
    device = Device({"good": level, "bad": 0.0}, seed)
    device.run(64)
    device.guard.changed("bad")
    assert device.in_force == "bad"
    device.run(50)
    assert len(device.rolled_back) == 1
    assert device.in_force == device.guard.good == device.guard.newest == "good"
    assert device.decided() == ["rolled back"]


@pytest.mark.parametrize("level", [0.4, 0.5, 0.7])
@pytest.mark.parametrize("lessons", [0, 5])
def test_a_release_that_no_lesson_can_judge_is_on_trial_at_once(level: float, lessons: int) -> None:
    """Of a hundred that are poisoned at most five draft for more than fifty blocks, of as many good ones five go."""
    late = gone = 0
    for seed in range(100):
        device = Device({"good": level, "bad": 0.0, "as good": level}, seed, lambda _: [0.5] * lessons)
        device.run(64)
        device.guard.supersede("bad")
        assert device.guard.on_trial
        device.run(50)
        late += not device.rolled_back
        device.guard.supersede("as good")
        known = len(device.rolled_back)
        device.run(96)
        gone += len(device.rolled_back) > known
    assert late <= 5
    assert gone <= 5


def test_a_release_is_watched_without_a_trial_where_lessons_judge_or_nothing_is_accepted() -> None:
    judged = Device({"good": 0.7, "release": 0.7}, 0, lambda _: [0.5] * 6)
    hopeless = Device({"good": 0.02, "release": 0.02})
    itself = Device({"good": 0.7})
    for device, name in ((judged, "release"), (hopeless, "release"), (itself, "good")):
        device.run(64)
        device.guard.supersede(name)
        assert not device.guard.on_trial
        assert device.in_force == name


@pytest.mark.parametrize("level", [0.02, 0.3, 0.9])
def test_with_six_lessons_an_adapter_that_keeps_no_drafts_never_drafts(level: float) -> None:
    device = Device({"good": level, "bad": 0.0}, 0, lambda name: [1 - device.rates[name]] * 6)
    device.run(64)
    device.in_force = "untouched"
    device.guard.changed("bad")
    assert device.rolled_back == [64]
    why = "worse on 6 of 6 lessons than the last good adapter; found before it drafted"
    assert [decision.why for decision in device.guard.decisions] == [why]
    assert (device.in_force, device.guard.newest) == ("good", "good")


def test_a_judge_that_finds_a_little_worse_says_so_only_when_drafts_fail_too() -> None:
    device = Device({"good": 0.7, "bad": 0.0}, 0, lambda name: [{"good": 0.5, "bad": 0.6}[name]] * 6)
    device.run(64)
    device.guard.changed("bad")
    assert device.in_force == "bad"
    device.run(20)
    assert device.rolled_back
    assert device.guard.decisions[0].why.endswith(", and worse on 6 of 6 lessons than the last good adapter")


@pytest.mark.parametrize("losses", [[0.9] * 6, [1.0 + 1e-6] * 6, [math.inf] * 6])
def test_a_judge_that_finds_both_alike_stops_nothing(losses: list[float]) -> None:
    device = Device({"good": 0.7, "new": 0.7}, 0, lambda _: losses)
    device.run(64)
    device.guard.changed("new")
    assert device.in_force == "new"


def test_an_adapter_that_cannot_be_used_is_rolled_back_before_it_drafts() -> None:
    device = Device({"good": 0.7, "broken": 0.0}, unusable=lambda name: "its logits break" * (name == "broken"))
    device.guard.changed("broken")  # of an unknown reference: no trial
    assert (device.in_force, device.rolled_back) == ("good", [0])
    assert device.guard.decisions[0].why == "its logits break; found before it drafted"


def test_an_adapter_that_cannot_be_used_is_not_restored() -> None:
    device = Device({"good": 0.7, "broken": 0.7})
    device.run(64)
    device.guard.changed("broken")
    other = Device(device.rates, unusable=lambda name: "its logits break" * (name == "broken"))
    other.guard.restore(device.guard.checkpoint(str.encode), bytes.decode)
    assert (other.in_force, other.rolled_back) == ("good", [0])


def test_what_supersedes_ends_a_trial_and_is_watched_itself() -> None:
    device = Device({"good": 0.7, "new": 0.7, "release": 0.0})
    device.guard.changed("new")
    device.guard.changed("newer")
    assert device.guard.on_trial
    device.run(16)
    device.guard.supersede("release")
    assert device.guard.newest == "release"
    device.run(50)
    assert device.guard.good == device.guard.newest == device.in_force == "good"


def test_a_trial_for_want_of_a_level_is_no_doubt_until_the_newest_fails_in_it() -> None:
    device = Device({"good": 0.7, "bad": 0.0})
    device.guard.changed("bad")  # of an unknown reference: on trial
    assert device.guard.on_trial
    assert not device.guard.doubts
    while not device.guard.doubts:
        device.run(1)
    assert device.guard.on_trial


def test_a_trial_after_a_fall_is_a_doubt_from_its_beginning() -> None:
    device = Device({"good": 0.7, "bad": 0.0})
    device.run(64)
    device.guard.changed("bad")
    while not device.guard.on_trial:
        assert not device.guard.doubts
        device.run(1)
    assert device.guard.doubts


def test_a_judge_with_too_few_lessons_to_tell_leaves_it_to_a_trial() -> None:
    device = Device({"good": 0.7, "bad": 0.0}, 0, lambda name: [{"good": 0.3, "bad": 1.0}[name]] * 5)
    device.run(64)
    device.guard.changed("bad")
    while not device.guard.on_trial:
        device.run(1)
    assert not device.rolled_back


def test_slow_poison_is_found_against_the_adapter_before_it() -> None:
    """Each step lowers the acceptance by 0.03, which no comparison with the step before would show."""
    found = 0
    for seed in range(20):
        device = Device({"good": 0.7} | {f"step {i}": max(0.0, 0.7 - 0.03 * i) for i in range(1, 40)}, seed)
        device.run(64)
        for i in range(1, 25):
            device.guard.changed(f"step {i}")
            device.run(16)
            if device.rolled_back:
                break
        good = device.guard.good
        # Chance may have passed the reference on to an early step; what is left is near to where it began.
        found += bool(device.rolled_back) and device.rates[good] >= 0.5
    assert found >= 18


def test_a_fast_learner_is_on_trial_once_and_its_work_on_a_bad_adapter_is_forgotten() -> None:
    device = Device({"good": 0.7, "bad": 0.0, "bad 2": 0.0})
    device.run(64)
    device.guard.changed("bad")
    while not device.guard.on_trial:
        device.run(1)
    device.guard.changed("bad 2")
    assert device.in_force != "bad 2"
    device.run(40)
    assert device.in_force == "good"
    assert device.decided() == ["rolled back"]


def test_what_was_learnt_during_a_trial_waits_for_its_end() -> None:
    device, turns = Device(dict.fromkeys(["good", "new", "newer"], 0.7)), set[str]()
    device.guard.changed("new")  # of an unknown reference: on trial
    device.guard.changed("newer")
    while device.guard.on_trial:
        turns.add(device.in_force)
        device.run(1)
    assert turns == {"good", "new"}
    assert device.decided() == ["kept"]
    assert device.in_force == device.guard.newest == "newer"


# --- no harm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.05, 0.2, 0.35])
def test_a_new_subject_is_no_fault_of_the_adapter(level: float) -> None:
    """All adapters fall from 0.7 to the level: in one run of forty at most one is rolled back by chance."""
    rolled_back = 0
    for seed in range(40):
        device = Device({"good": 0.7, "new": 0.7}, seed)
        device.run(64)
        device.guard.changed("new")
        device.run(10)
        device.rates = {"good": level, "new": level}
        device.run(150)
        rolled_back += len(device.rolled_back)
        assert device.decided()
    assert rolled_back <= 2


def test_false_rollbacks_are_rare_on_steady_acceptance() -> None:
    """40,000 blocks, an adapter every 60."""
    rolled_back = 0
    for seed, level in product(range(10), (0.3, 0.5, 0.7, 0.9)):
        device = Device(dict.fromkeys(["good", *map(str, range(20))], level), seed)
        device.run(64)
        for i in range(16):
            device.guard.changed(str(i))
            device.run(60)
        rolled_back += len(device.rolled_back)
    assert rolled_back <= 4


def test_an_adapter_that_is_no_worse_becomes_the_last_good_one() -> None:
    device = Device({"good": 0.5, "better": 0.7})
    device.run(64)
    device.guard.changed("better")
    assert device.guard.good == "good"
    device.run(64)
    assert device.guard.good == device.in_force == "better"
    assert not device.guard.decisions


def test_the_adapter_that_began_a_window_becomes_the_last_good_one_not_what_came_last() -> None:
    device = Device({"good": 0.5, "first": 0.8, "second": 0.8})
    device.run(64)
    device.guard.changed("first")
    device.run(60)
    device.guard.changed("second")
    device.run(4)
    assert (device.guard.good, device.in_force) == ("first", "second")


@pytest.mark.parametrize("luck", [0.0, 1.0])
def test_what_later_adapters_earned_makes_no_other_the_last_good_one(luck: float) -> None:
    """One that was in force for four blocks, and a better one after it."""
    device = Device({"good": 0.5, "bad": luck, "better": 0.7})
    device.run(64)
    device.guard.changed("bad")
    device.run(4)
    device.guard.changed("better")
    device.run(60)
    assert device.guard.good == "good"
    device.run(64)
    assert device.guard.good == "better"


def test_suspicion_ends_with_the_adapter_that_it_was_of() -> None:
    """Two poisoned ones, each in force for too few blocks to be heard; a better one between them."""
    config = GuardConfig(window_blocks=16)
    device = Device({"good": 0.5, "bad": 0.0, "better": 0.9}, config=config)
    device.run(64)
    device.guard.changed("bad")
    device.run(7)
    assert device.guard.suspects
    device.guard.supersede("better")
    assert not device.guard.suspects


def test_a_level_too_low_to_tell_raises_no_suspicion() -> None:
    device = Device({"good": 0.05, "bad": 0.0})
    device.run(64)
    device.guard.changed("bad")
    device.run(20)
    assert not device.guard.suspects


def test_the_level_forgets_a_trial_once_a_window_was_seen_since() -> None:
    device = Device({"good": 0.7, "worse": 0.68})
    device.guard.changed("worse")  # of an unknown reference: on trial
    while device.guard.on_trial:
        device.run(1)
    assert device.guard.level.blocks >= 32
    device.guard.supersede(device.guard.good)
    device.run(64)
    assert device.guard.level.blocks == 64


def test_a_worse_adapter_that_is_kept_never_becomes_the_last_good_one() -> None:
    device = Device({"good": 0.7, "worse": 0.6})
    device.run(64)
    device.guard.changed("worse")
    device.run(40)
    assert device.guard.good == "good"


def test_where_nothing_is_accepted_of_any_adapter_it_is_kept_and_said() -> None:
    device = Device({"good": 0.6, "new": 0.0})
    device.run(64)
    device.guard.changed("new")
    device.rates = {"good": 0.0, "new": 0.0}
    device.run(130)
    assert device.decided() == ["kept"]
    assert "too little is accepted to tell" in device.guard.decisions[0].why
    assert (device.guard.good, device.in_force) == ("good", "new")


def test_an_adapter_that_comes_before_anything_was_seen_is_tried_at_once() -> None:
    device = Device({"good": 0.7, "bad": 0.0})
    device.guard.changed("bad")
    assert device.guard.on_trial
    assert device.in_force == "good"
    device.run(32)
    assert device.decided() == ["rolled back"]


def test_blocks_without_a_draft_say_nothing() -> None:
    device = Device({"good": 0.7, "bad": 0.0})
    device.run(64)
    device.guard.changed("bad")
    before = device.guard.status()
    for _ in range(500):
        device.guard.observe(block(0, 0, draft_tokens=0))
    after = device.guard.status()
    assert after.pop("blocks") == before.pop("blocks") + 500
    assert after == before
    assert not device.guard.on_trial


def test_the_evidence_is_that_of_a_fall_to_a_quarter() -> None:
    """At a level of exactly 1/2 each refused block has odds of (7/8) / (1/2): 300 are passed by the eleventh."""
    guard, blocks = Guard(GuardConfig(), "good", lambda _: None, lambda _: None), 0
    for _ in range(64):
        guard.observe(block(1, 2))
    guard.changed("bad")
    while not guard.on_trial:
        guard.observe(block(0, 4))
        blocks += 1
    assert blocks == math.ceil(math.log(300) / math.log(7 / 4)) == 11


def test_drafts_that_spell_no_token_count_as_rejected() -> None:
    device = Device({"good": 0.7, "bad": 0.0})
    device.run(64)
    device.guard.changed("bad")
    for _ in range(10):
        device.guard.observe(block(0, 0, draft_tokens=4))
    assert device.guard.on_trial


def test_status_has_figures_a_person_can_check() -> None:
    device = Device({})
    device.guard.observe(block(2, 4, seconds=0.5))
    device.guard.observe(block(4, 4, seconds=0.3))
    status = device.guard.status()
    # 3 and 4 judged, 2 and 4 accepted; 3 and 5 tokens in 0.8 s.
    assert status["good"] == {
        "blocks": 2,
        "judged": 7,
        "accepted": 6,
        "acceptance": pytest.approx(6 / 7),
        "mean_acceptance_length": 4.0,
        "tokens_per_s": pytest.approx(10.0),
    }
    assert (status["newest"], status["trial"], status["decisions"]) == (None, None, [])


# --- trials ---------------------------------------------------------------------------------------------------------


def tally(accepted: int, judged: int) -> Tally:
    return Tally(blocks=1, judged=judged, accepted=accepted)


def test_the_chance_of_so_few_is_fishers() -> None:
    """3 of 4 and 1 of 4 accepted: 4 of 8, of which the suspect has 0 or 1 in 1 + 16 of 70 ways."""
    assert chance_of_fewer(tally(1, 4), tally(3, 4)) == pytest.approx(17 / 70)
    assert chance_of_fewer(Tally(), Tally()) == chance_of_fewer(tally(0, 9), tally(0, 9)) == 1


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 24), st.floats(0.001, 0.5))
def test_equal_adapters_are_found_worse_no_oftener_than_stated(suspect: int, other: int, accepted: int, level: float):
    """Over all ways to deal the accepted proposals."""
    accepted = min(accepted, suspect + other)
    shares = range(max(0, accepted - other), min(suspect, accepted) + 1)
    chances = [chance_of_fewer(tally(k, suspect), tally(accepted - k, other)) for k in shares]
    below = [chance for chance in chances if chance <= level]
    assert max(below, default=0.0) <= level  # the largest is the probability of all of them together
    assert chances == sorted(chances)
    assert chances[-1] == pytest.approx(1)


def test_the_sign_test_counts_tosses() -> None:
    assert [chance_of_more(k, 6) for k in (6, 5, 0)] == [1 / 64, 7 / 64, 1]
    assert chance_of_more(0, 0) == 1


def test_turns_change_after_so_many_blocks_that_drafted() -> None:
    trial, turns = Trial(turn_blocks=2, turns=2), list[bool]()
    for _ in range(8):
        turns.append(trial.is_suspects_turn)
        trial.add(tally(1, 1))
    assert turns == [False, False, True, True] * 2
    assert trial.good == trial.suspect == Tally(blocks=4, judged=4, accepted=4)
    assert trial.is_even


def test_a_trial_that_cannot_tell_takes_longer_and_then_ends() -> None:
    trial, blocks = Trial(turn_blocks=1, turns=4), 0
    while not trial.is_over(0.02):
        trial.add(tally(0, 1))
        blocks += 1
    assert blocks == 3 * 8


@pytest.mark.parametrize(("suspect", "over"), [(5, True), (1, False)])
def test_a_trial_near_to_a_verdict_goes_on(suspect: int, over: bool) -> None:
    """Of 8 judged each, 5 accepted of the good one; 1 of the suspect's has a chance of 0.06: no clear answer."""
    trial = Trial(turn_blocks=1, turns=8)
    for block_number in range(16):
        accepted = suspect if trial.is_suspects_turn else 5
        trial.add(tally(int(block_number // 2 < accepted), 1))
    assert trial.is_over(0.02) is over
    assert (trial.chance > 0.2) is over


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6))
def test_tallies_add_in_any_order(blocks: list[tuple[int, int]]) -> None:
    tallies = [Tally.of(block(min(a, p), p)) for a, p in blocks]
    forward, backward = sum(tallies, Tally()), sum(reversed(tallies), Tally())
    assert replace(forward, seconds=0.0) == replace(backward, seconds=0.0)
    assert forward + Tally() == forward


# --- state ----------------------------------------------------------------------------------------------------------


def restored(device: Device) -> Device:
    other = Device(device.rates)
    other.guard.restore(device.guard.checkpoint(str.encode), bytes.decode)
    other.rng.bit_generator.state, other.blocks = device.rng.bit_generator.state, device.blocks
    return other


@pytest.mark.parametrize("seen", [0, 30, 64, 69, 100, 132, 138, 142, 150])
def test_a_restored_guard_decides_as_the_one_that_was_stored(seen: int) -> None:
    """At any point, on trial too (from the 137th block on, in either adapter's turn)."""
    device = Device({"good": 0.7, "new": 0.72, "bad": 0.05})
    story = {64: "new", 130: "bad"}
    for at in range(seen):
        if at in story:
            device.guard.changed(story[at])
        device.run(1)
    assert device.guard.on_trial == (seen >= 138)
    other = restored(device)
    assert other.in_force == device.in_force
    for at in range(seen, 200):
        for each in (device, other):
            if at in story:
                each.guard.changed(story[at])
            each.run(1)
    assert other.guard.status() == device.guard.status()
    assert other.rolled_back == device.rolled_back != []


def test_what_was_learnt_during_a_trial_still_waits_for_its_end_after_a_restart() -> None:
    device = Device({"good": 0.7, "new": 0.7, "newer": 0.7})
    device.guard.changed("new")  # of an unknown reference: on trial
    device.guard.changed("newer")
    device.run(6)
    other = restored(device)
    assert other.in_force == "new"
    while other.guard.on_trial:
        other.run(1)
    assert other.in_force == other.guard.newest == "newer"


def test_equal_adapters_are_stored_once() -> None:
    device = Device({"good": 0.7, "new": 0.7})
    assert set(device.guard.checkpoint(str.encode)) == {"numbers.json", "adapter.good"}
    device.run(20)
    device.guard.changed("new")
    assert set(device.guard.checkpoint(str.encode)) == {"numbers.json", "adapter.good", "adapter.newest"}


@pytest.mark.parametrize("damage", ["missing part", "torn", "another type", "another format", "strange tally"])
def test_damaged_state_is_told_and_changes_nothing(damage: str) -> None:
    device = Device({"good": 0.7, "new": 0.7})
    device.run(20)
    device.guard.changed("new")
    parts = device.guard.checkpoint(str.encode)
    if damage == "missing part":
        del parts["adapter.newest"]
    elif damage == "torn":
        parts["numbers.json"] = parts["numbers.json"][:-9]
    elif damage == "another type":
        parts["numbers.json"] = b"[]"
    elif damage == "another format":
        parts["numbers.json"] = parts["numbers.json"].replace(b'"format": 3', b'"format": 4')
    else:
        parts["numbers.json"] = parts["numbers.json"].replace(b'"judged"', b'"jugded"')
    fresh = Device({"good": 0.7})
    before = fresh.guard.status()
    with pytest.raises(ModelError, match="the guard's state .*; delete it"):
        fresh.guard.restore(parts, bytes.decode)
    assert fresh.guard.status() == before
    assert fresh.guard.newest == "good"


@pytest.mark.parametrize(
    ("field", "value"), [("odds", 1.0), ("window_blocks", 0), ("turns", 0), ("turn_blocks", -1), ("significance", 1.0)]
)
def test_settings_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}, expected"):
        GuardConfig(**{field: value})
