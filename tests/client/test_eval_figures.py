"""The figures of an evaluation, on numbers that a person can check."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetdraft.client.evaluation.bootstrap import DRAWS, interval, resampled
from fleetdraft.client.evaluation.law_check import LawCheck
from fleetdraft.client.evaluation.method import Method
from fleetdraft.client.evaluation.positions import PositionCount, Positions
from fleetdraft.client.evaluation.report import Findings, span
from fleetdraft.client.evaluation.row import FIGURES, PromptCounts, Row
from fleetdraft.client.evaluation.sizes import Sizes
from fleetdraft.client.measurement import GreedyCheck
from fleetdraft.client.pacing.outcome import BlockCost, Outcome
from fleetdraft.common.errors import ConfigError
from fleetdraft.common.machine import Machine
from fleetdraft.common.metrics import DraftCounters

SIZES = Sizes(drafter_parameters=10, drafter_bytes=40, drafter_kv_bytes=8, target_parameters=100, target_bytes=400)


def counts(prompt: str, accepted: int, seconds: float) -> PromptCounts:
    """10 tokens, 8 proposals in 4 blocks of 4 drafter calls; the target alone takes 2 seconds."""
    drafted = DraftCounters(
        prompts=1, tokens=10, target_calls=4, blocks=4, drafted=8, accepted=accepted, drafter_calls=16, seconds=seconds
    )
    return PromptCounts(prompt=prompt, alone=DraftCounters(prompts=1, tokens=10, seconds=2.0), drafted=drafted)


def row(*prompts: PromptCounts, temperature: float = 0.0, law: LawCheck | None = None) -> Row:
    return Row(
        target="large",
        task="math",
        temperature=temperature,
        method=Method(adapter="a", paths="direct"),
        prompts=prompts,
        positions=Positions(judged=(4, 2), accepted=(2, 1)),
        sizes=SIZES,
        greedy=GreedyCheck(identical=len(prompts)),
        law=law,
        seed=3,
    )


TWO = row(counts("a", 6, 1.0), counts("b", 2, 4.0))


def test_figures_are_ratios_of_sums() -> None:
    assert TWO.figure("draft_acceptance_rate") == (6 + 2) / 16
    assert TWO.figure("mean_acceptance_length") == 20 / 8
    assert TWO.figure("speedup") == pytest.approx((20 / 5) / (20 / 4))
    assert TWO.speedup_quartiles == pytest.approx((0.875, 1.25, 1.625))  # of 0.5 and 2


def test_figures_agree_with_the_counters() -> None:
    assert TWO.figure("draft_acceptance_rate") == TWO.drafted.draft_acceptance_rate
    assert TWO.figure("mean_acceptance_length") == TWO.drafted.mean_acceptance_length
    assert TWO.figure("speedup") == pytest.approx(TWO.drafted.tokens_per_s / TWO.alone.tokens_per_s)


def test_memory_bound_speed_up_divides_by_what_is_read() -> None:
    """tau = 2.5; 4 drafter calls a block, each of a tenth of the target's bytes."""
    assert TWO.mbsu == pytest.approx(2.5 / (1 + 0.1 * 4))


def test_a_token_that_is_never_emitted_is_not_counted_where_a_text_ends() -> None:
    """One block with both proposals accepted, the second of which ends the text: two tokens of one call, not three."""
    ended = DraftCounters(prompts=1, tokens=2, target_calls=1, blocks=1, drafted=2, accepted=2, drafter_calls=2)
    told = row(PromptCounts(prompt="a", alone=DraftCounters(tokens=2, seconds=1.0), drafted=ended))
    assert told.figure("mean_acceptance_length") == 2.0
    assert told.mbsu == pytest.approx(2.0 / (1 + 0.1 * 2))


def test_memory_bound_speed_up_is_unknown_where_the_target_tells_no_size() -> None:
    unknown = Row(
        **{**vars(row(counts("a", 6, 1.0))), "sizes": Sizes(drafter_parameters=1, drafter_bytes=4, drafter_kv_bytes=0)}
    )
    assert unknown.mbsu is None
    assert unknown.to_json()["mbsu"] is None


def test_a_row_that_drafted_nothing_has_no_acceptance() -> None:
    nothing = DraftCounters(prompts=1, tokens=10, target_calls=10, seconds=2.0)
    told = row(PromptCounts(prompt="a", alone=nothing, drafted=nothing))
    assert told.figure("draft_acceptance_rate") == 0.0
    assert told.figure("mean_acceptance_length") == 1.0


def test_the_file_keeps_what_readers_of_the_first_schema_read() -> None:
    told = TWO.to_json()
    assert {name: told[name] for name in FIRST} == {
        "target": "large",
        "task": "math",
        "temperature": 0.0,
        "prompts": 2,
        "tokens": 20,
        "draft_acceptance_rate": 0.5,
        "mean_acceptance_length": 2.5,
        "tokens_per_s": 4.0,
        "baseline_tokens_per_s": 5.0,
        "speedup": pytest.approx(0.8),
        "greedy_identical": 2,
        "greedy_ties": 0,
        "greedy_different": 0,
        "counters": TWO.drafted.to_json(),
    }


FIRST = (
    "target", "task", "temperature", "prompts", "tokens", "draft_acceptance_rate", "mean_acceptance_length", "speedup",
    "tokens_per_s", "baseline_tokens_per_s", "greedy_identical", "greedy_ties", "greedy_different", "counters",
)  # fmt: skip


def test_a_sampled_row_says_nothing_of_greedy_text() -> None:
    told = row(counts("a", 6, 1.0), temperature=0.7).to_json()
    assert [told[f"greedy_{name}"] for name in ("identical", "ties", "different")] == [None] * 3


@pytest.mark.parametrize("law", [None, LawCheck(tokens=20, p_value=0.5)])
def test_a_row_is_the_same_after_a_round_trip(law: LawCheck | None) -> None:
    whole = row(counts("a", 6, 1.0), counts("b", 2, 4.0), law=law)
    assert Row.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def outcome(proposed: int, accepted: int) -> Outcome:
    cost = BlockCost(draft_tokens=proposed, proposed=proposed, accepted=accepted, target_s=0.0, rest_s=0.0)
    tokens = tuple(range(accepted + 1))
    return Outcome(
        tokens=tokens,
        rows=np.zeros((len(tokens), 8), np.float32),
        cost=cost,
        proposed=tuple(range(proposed)),
        accepted=accepted,
    )


def test_positions_count_what_was_judged_and_what_of_it_was_accepted() -> None:
    seen = PositionCount()
    for proposed, accepted in ((3, 3), (3, 1), (3, 0), (1, 1), (0, 0)):
        seen.observe(outcome(proposed, accepted))
    assert seen.positions == Positions(judged=(4, 2, 1), accepted=(3, 1, 1))
    assert seen.positions.rates == pytest.approx((3 / 4, 1 / 2, 1.0))


positions = st.lists(st.integers(0, 9), max_size=4).map(lambda n: Positions(judged=tuple(n), accepted=tuple(n)))


@given(positions, positions, positions)
def test_positions_are_a_commutative_monoid(one: Positions, two: Positions, three: Positions) -> None:
    assert (one + two) + three == one + (two + three)
    assert one + two == two + one
    assert one + Positions() == one


def test_an_interval_holds_95_in_100_of_the_resamples_and_narrows_with_more_prompts() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (25, 400):
        rows = np.stack([rng.random(count), np.ones(count)], axis=1)
        means = resampled(rows, 0)[:, 0] / resampled(rows, 0)[:, 1]
        low, high = interval(means)
        assert np.mean((means >= low) & (means <= high)) == pytest.approx(0.95, abs=2 / DRAWS)
        widths.append(high - low)
        # of the mean of uniform numbers: 1.96 standard deviations to either side
        assert high - low == pytest.approx(2 * 1.96 * rows[:, 0].std() / np.sqrt(count), rel=0.1)
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.2)


def test_the_same_seed_gives_the_same_intervals() -> None:
    again = row(counts("a", 6, 1.0), counts("b", 2, 4.0))
    assert again.intervals == TWO.intervals
    assert again.intervals.keys() == FIGURES.keys()


def test_of_fewer_than_six_different_prompts_there_is_no_interval() -> None:
    few = row(*(counts(str(number % 5), 6, 1.0 + number) for number in range(10)))
    assert set(few.intervals.values()) == {None}
    told = few.to_json()
    assert (told["prompts"], told["speedup_interval"]) == (5, None)
    assert span(few.intervals["speedup"], ".2f") == "–"
    six = row(*(counts(str(number), 6, 1.0 + number) for number in range(6)))
    low, high = six.intervals["speedup"] or (0.0, 0.0)
    assert low < six.figure("speedup") < high


@pytest.mark.parametrize(
    ("prompts", "told"),
    [(5, "In 1 of 2 rows drafting was slower, on too few prompts"), (6, "Drafting does not pay in 1 of 2 rows.")],
)
def test_rows_where_drafting_is_slower_are_counted_by_whether_that_is_sure(prompts: int, told: str) -> None:
    rows = [row(*(counts(str(number), 4, seconds) for number in range(prompts))) for seconds in (1.0, 3.0)]
    machine = Machine(cpu="a processor", cores=2, threads=1)
    notes = Findings(rows=rows, settings={}, started="", seconds=0.0, machine=machine).notes
    assert [note for note in notes if "rafting" in note] == [note for note in notes if told in note]
    assert len([note for note in notes if told in note]) == 1


def test_a_prompt_that_is_given_twice_is_one_prompt() -> None:
    once = [counts(str(number), number % 3, 1.0 + number) for number in range(8)]
    assert row(*once, *once).intervals == row(*once).intervals


def test_a_method_is_read_from_its_name_and_settings() -> None:
    shared = Method(paths="direct", draft_tokens=6)
    told = Method.parse("mine:adapter=a/{target}-{task},controller=head,draft-tokens=8", shared)
    assert told == Method(name="mine", adapter="a/{target}-{task}", paths="direct", controller="head", draft_tokens=8)
    assert str(told.adapter_for("large", "math")) == "a/large-math"
    assert Method.parse("plain:", shared) == Method(name="plain", paths="direct", draft_tokens=6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":paths=full", "a method has no name"),
        ("direct", "--method is 'direct', expected NAME:KEY=VALUE,…; to draft as in the options, give 'direct:'"),
        ("m:path=full", "'path=full' is no setting, expected adapter, paths, controller, draft-tokens with =VALUE"),
        ("m:paths", "'paths' is no setting"),
        ("m:adapter=", "--method m:adapter=: adapter is empty, expected a value"),
        (
            "mine=/no/such/dir",
            "a method's name is 'mine=/no/such/dir', expected no '='; did you mean --adapter NAME=DIR?",
        ),
        ("m:paths=half", "--method m:paths=half: paths is 'half'"),
        ("m:controller=x", "controller is 'x'"),
        ("m:draft-tokens=four", "draft-tokens is 'four', expected a number"),
        ("m:draft-tokens=0", "draft_tokens is 0, expected 1 to"),
    ],
)
def test_a_method_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Method.parse(text, Method())
