"""fleetdraft compare: which rows belong together, what an interval says, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetdraft.client.evaluation.comparison import Evaluated, compare_rows, paired_methods
from fleetdraft.client.evaluation.method import Method
from fleetdraft.client.evaluation.positions import Positions
from fleetdraft.client.evaluation.row import PromptCounts, Row
from fleetdraft.client.evaluation.sizes import Sizes
from fleetdraft.common.cli import main
from fleetdraft.common.errors import UserError
from fleetdraft.common.metrics import DraftCounters

SIZES = Sizes(drafter_parameters=1, drafter_bytes=4, drafter_kv_bytes=0)
SAME = {"none": "none"}


def row(accepted: list[int], *, method: str = "none", first: int = 0, **other: Any) -> Row:
    """Of each prompt, so many of 20 proposals in 5 blocks are accepted; the more, the sooner it is done."""
    prompts = tuple(
        PromptCounts(
            prompt=f"prompt {first + number}",
            alone=DraftCounters(prompts=1, tokens=20, seconds=4.0),
            drafted=DraftCounters(
                prompts=1,
                tokens=20,
                target_calls=25 - count,
                blocks=5,
                drafted=20,
                accepted=count,
                drafter_calls=20,
                seconds=40 / (10 + count),
            ),
        )
        for number, count in enumerate(accepted)
    )
    place = {"target": "large", "task": "math", "temperature": 0.0} | other
    return Row(**place, method=Method(name=method), prompts=prompts, positions=Positions(), sizes=SIZES)


RNG = np.random.default_rng(0)
MANY = [int(n) for n in RNG.integers(2, 12, size=40)]
NOISE = [int(n) for n in RNG.integers(-2, 3, size=40)]


def verdicts(before: Row, after: Row) -> dict[str, str]:
    [cell] = compare_rows([before], [after], SAME).cells
    return {change.figure: change.verdict for change in cell.changes}


def test_what_is_better_for_almost_every_prompt_is_better_and_the_other_way_round_worse() -> None:
    more = [count + 3 + noise for count, noise in zip(MANY, NOISE, strict=True)]
    assert set(verdicts(row(MANY), row(more)).values()) == {"better"}
    assert set(verdicts(row(more), row(MANY)).values()) == {"worse"}


def test_noise_shows_no_difference() -> None:
    other = [max(0, count + noise) for count, noise in zip(MANY, NOISE, strict=True)]
    assert set(verdicts(row(MANY), row(other)).values()) == {"no difference shown"}


def test_pairing_sees_a_small_gain_that_unlike_prompts_would_hide() -> None:
    """Every prompt gains one; prompts differ by ten. In another order, so that nothing hangs on it."""
    [cell] = compare_rows([row(MANY)], [row([count + 1 for count in MANY])], SAME).cells
    low, high = cell.changes[0].bounds or (0.0, 0.0)
    assert low == pytest.approx(1 / 20)
    assert high == pytest.approx(1 / 20)
    mixed = row([count + 1 for count in MANY])
    shuffled = Row(**{**vars(row(MANY)), "prompts": tuple(reversed(mixed.prompts))})
    assert compare_rows([row(MANY)], [shuffled], SAME) == compare_rows([row(MANY)], [mixed], SAME)


def test_differences_are_of_the_whole_and_the_interval_holds_them() -> None:
    more = [min(20, count + 2 * (number % 3)) for number, count in enumerate(MANY)]
    [cell] = compare_rows([row(MANY)], [row(more)], SAME).cells
    acceptance = cell.changes[0]
    assert acceptance.before == pytest.approx(sum(MANY) / 800)
    assert acceptance.after == pytest.approx(sum(more) / 800)
    assert acceptance.bounds is not None
    assert acceptance.bounds[0] < acceptance.after - acceptance.before < acceptance.bounds[1]


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others() -> None:
    pair = [row(MANY)], [row([count + number % 5 for number, count in enumerate(MANY)])]
    assert compare_rows(*pair, SAME, seed=1) == compare_rows(*pair, SAME, seed=1)
    assert compare_rows(*pair, SAME, seed=1) != compare_rows(*pair, SAME, seed=2)


def test_prompts_that_only_one_has_are_counted_and_left_out() -> None:
    [cell] = compare_rows([row(MANY)], [row(MANY, first=10)], SAME).cells
    assert (cell.prompts, cell.left_out) == (30, 20)
    assert cell.changes[0].before == pytest.approx(sum(MANY[10:]) / 600)


def test_few_prompts_show_nothing() -> None:
    assert set(verdicts(row([1] * 5), row([20] * 5)).values()) == {"no difference shown"}
    assert set(verdicts(row([1] * 6), row([20] * 6)).values()) == {"better"}


def test_cells_that_only_one_has_are_listed() -> None:
    ours = [row(MANY), row(MANY, task="code"), row(MANY, temperature=1.0), row(MANY, target="small")]
    theirs = [row(MANY), row(MANY, task="news"), row(MANY, first=99, temperature=1.0), row(MANY, method="other")]
    found = compare_rows(ours, theirs, SAME)
    assert [cell.task for cell in found.cells] == ["math"]
    assert found.unmatched == (
        "large, code, temperature 0, none is in the first only",
        "large, math, temperature 1, none has no prompt in common",
        "small, math, temperature 0, none is in the first only",
        "large, news, temperature 0, none is in the second only",
    )


def test_methods_pair_by_name_or_as_the_only_ones_or_as_given() -> None:
    one, two, three = (row(MANY, method=name) for name in ("none", "direct", "hybrid"))
    assert paired_methods([one, two], [two, three], []) == {"direct": "direct"}
    assert paired_methods([one], [three], []) == {"none": "hybrid"}
    assert paired_methods([one, two], [one, two], ["none=direct", "direct"]) == {"none": "direct", "direct": "direct"}
    with pytest.raises(UserError, match=r"no method is in both \(none, direct; hybrid\); name two with --method"):
        paired_methods([one, two], [three], [])
    with pytest.raises(UserError, match="no method 'x' in the second, expected one of hybrid"):
        paired_methods([one], [three], ["none=x"])


# --- the command ----------------------------------------------------------------------------------------------------


def whole(*rows: Row, **settings: Any) -> dict[str, Any]:
    """The content of an evaluation's file."""
    asked = {"max_new_tokens": 20, "sampling": {}, "seed": 0, "threads": 1, "runtime": None} | settings
    results = [each.to_json() for each in rows]
    return {"schema": 2, "settings": asked, "machine": {"cpu": "a processor"}, "results": results}


def written(path: Path, *rows: Row, **settings: Any) -> str:
    path.write_text(json.dumps(whole(*rows, **settings)))
    return str(path)


def test_the_command_says_what_is_better_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path / "a.json", row(MANY), row(MANY, task="code"))
    after = written(tmp_path / "b.json", row([count + 3 for count in MANY]))
    assert main(["compare", before, after, "--json", str(tmp_path / "c.json")]) == 0
    out = capsys.readouterr().out
    assert "large, math, temperature 0, none: 40 prompts" in out
    assert out.count("better") == 3
    assert "not compared: large, code, temperature 0, none is in the first only" in out
    assert "a speed-up's does not cover what else the machine did" in out
    told = json.loads((tmp_path / "c.json").read_text())
    assert [change["verdict"] for change in told["cells"][0]["changes"]] == ["better"] * 3


def test_fail_if_worse_looks_at_the_named_figures_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [count + 3 for count in MANY]
    slow = row(MANY)
    fast = Row(
        **{
            **vars(slow),
            "prompts": tuple(
                PromptCounts(**{**vars(p), "alone": DraftCounters(tokens=20, seconds=9.0)}) for p in slow.prompts
            ),
        }
    )
    before, after = written(tmp_path / "a.json", fast), written(tmp_path / "b.json", row(MANY))
    assert main(["compare", before, after, "--fail-if-worse", "acceptance", "--fail-if-worse", "efficiency"]) == 0
    assert main(["compare", before, after, "--fail-if-worse", "speedup"]) == 1
    assert "error: worse in 1 of 1 cells: speedup" in capsys.readouterr().err
    assert main(["compare", written(tmp_path / "c.json", row(more)), after, "--fail-if-worse", "acceptance"]) == 1


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ([row(MANY, task="renamed")], "large, math, temperature 0, none is in the first only (1 such in all)"),
        ([row(MANY, first=99)], "large, math, temperature 0, none has no prompt in common"),
        ([row(MANY[:5])], "large, math, temperature 0, none -> none has 5 prompts in both, expected at least 6"),
    ],
)
def test_what_could_not_be_judged_is_not_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], after: list[Row], reason: str
) -> None:
    files = [written(tmp_path / "a.json", row(MANY)), written(tmp_path / "b.json", *after)]
    assert main(["compare", *files, "--fail-if-worse", "acceptance"]) == 1
    assert f"error: --fail-if-worse could not be judged: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("after", [row(MANY, task="renamed"), row(MANY, first=99)])
def test_where_nothing_is_in_both_there_is_no_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], after: Row
) -> None:
    files = [written(tmp_path / "a.json", row(MANY)), written(tmp_path / "b.json", after)]
    assert main(["compare", *files]) == 2
    told = capsys.readouterr()
    assert "error: nothing was compared: " in told.err
    assert "not compared: large, math, temperature 0, none" in told.out


def test_a_folder_that_eval_wrote_stands_for_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        written(tmp_path / name / "eval.json", row(MANY))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "τ (efficiency)" in capsys.readouterr().out
    (tmp_path / "b" / "eval.json").unlink()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert f"cannot read {tmp_path / 'b' / 'eval.json'}" in capsys.readouterr().err


def test_more_than_the_first_has_is_passed(tmp_path: Path) -> None:
    files = [written(tmp_path / "a.json", row(MANY)), written(tmp_path / "b.json", row(MANY), row(MANY, task="new"))]
    assert main(["compare", *files, "--fail-if-worse", "acceptance"]) == 0


FORGED = {
    "counter": [("per_prompt", 0, "drafted", "accepted"), "4", None, [1], True, float("nan"), -1, 10**400, 1.5, 21],
    "seconds": [("per_prompt", 0, "alone", "seconds"), "4", None, [1], True, float("nan"), -1.0, float("inf")],
    "prompt": [("per_prompt", 0, "prompt"), ["a"], None, 3],
    "target": [("target",), ["a"], None, {}],
    "temperature": [("temperature",), "0", None, float("nan"), -1],
    "method": [("method", "name"), ["a"], None, "", "a=b"],
    "paths": [("method", "paths"), ["full"], "half"],
    "positions": [("per_step_judged",), 3, ["1"]],
    "memory": [("memory", "drafter_bytes"), None, "4"],
    "seed": [("seed",), -1, "0", 0.5],
}


@pytest.mark.parametrize("case", FORGED)
def test_a_value_of_another_kind_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, whither = written(tmp_path / "a.json", row(MANY)), tmp_path / "b.json"
    (*steps, last), *values = FORGED[case]
    for value in values:
        content = whole(row(MANY))
        place = content["results"][0]
        for step in steps:
            place = place[step]
        assert last in place
        place[last] = value
        whither.write_text(json.dumps(content))
        assert main(["compare", good, str(whither)]) == 2, value
        err = capsys.readouterr().err
        assert f"{whither} is no evaluation: " in err
        assert len(err.strip().splitlines()) == 1


WRONG = {
    "missing": (["none.json", "a.json"], "cannot read none.json"),
    "not JSON": (["torn.json", "a.json"], "torn.json is not valid JSON"),
    "older": (["old.json", "a.json"], "old.json: schema is 1, expected 2"),
    "something else": (["list.json", "a.json"], "list.json: schema is None, expected 2"),
    "damaged": (["a.json", "damaged.json"], "damaged.json is no evaluation: KeyError('per_prompt')"),
    "empty": (["a.json", "empty.json"], "empty.json holds no results"),
    "no such figure": (["a.json", "a.json", "--fail-if-worse", "speed"], "--fail-if-worse is 'speed', expected one of"),
    "negative seed": (["a.json", "a.json", "--seed", "-1"], "--seed is -1, expected a number >= 0"),
    "no such method": (["a.json", "a.json", "--method", "x"], "no method 'x' in the first, expected one of none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_exits_2_with_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("a.json"), row(MANY))
    damaged = row(MANY).to_json()
    del damaged["per_prompt"]
    Path("torn.json").write_text("{")
    for name, value in {
        "old": {"schema": 1, "results": []},
        "list": [],
        "damaged": whole() | {"results": [damaged]},
        "empty": whole(),
    }.items():
        Path(f"{name}.json").write_text(json.dumps(value))
    words, message = WRONG[case]
    assert main(["compare", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(MANY), row(MANY, method="other")]
    assert Evaluated.read(Path(written(tmp_path / "a.json", *rows))).rows == rows


def test_settings_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path / "a.json", row(MANY))
    assert main(["compare", before, written(tmp_path / "b.json", row(MANY), seed=1, threads=2)]) == 0
    told = capsys.readouterr().out
    assert "seed is 0 in A and 1 in B" in told
    assert "threads is 1 in A and 2 in B" in told
    other = row(MANY)
    other = Row(**{**vars(other), "method": Method(draft_tokens=8, paths="direct")})
    moved = written(tmp_path / "c.json", other, repeats=3, base="ff", bundle="there")
    assert main(["compare", before, moved]) == 0
    told = capsys.readouterr().out
    for line in ("repeats is None in A and 3", "base is None in A and ff", "bundle is None in A and there"):
        assert line in told
    assert "draft_tokens of method none is 4 in A and 8 in B" in told
    assert "paths of method none is full in A and direct in B" in told
    assert main(["compare", before, before]) == 0
    assert " in A and " not in capsys.readouterr().out


def test_of_a_setting_with_parts_the_parts_that_differ_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path / "a.json", row(MANY), weights={"spm": "aa", "bpe1": "bb"}, sampling={"top_p": 1.0})
    other = {"weights": {"spm": "aa", "bpe1": "cc", "bpe3": "dd"}, "sampling": {"top_p": 0.9}}
    assert main(["compare", before, written(tmp_path / "b.json", row(MANY), **other)]) == 0
    told = capsys.readouterr().out
    for line in (
        "weights of bpe1 is bb in A and cc in B\n",
        "only B has weights of bpe3\n",
        "sampling of top_p is 1.0 in A and 0.9 in B\n",
    ):
        assert line in told
    assert "{" not in told
    assert "spm" not in told
    assert main(["compare", before, written(tmp_path / "c.json", row(MANY), sampling={"top_p": 1.0})]) == 0
    assert "only A tells its weights\n" in capsys.readouterr().out


def test_only_the_adapters_that_differ_are_told_and_an_older_file_tells_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = row(MANY), row(MANY, task="code"), row(MANY, task="news")
    first = {"none · large · math": "aa", "none · large · code": "bb", "none · large · news": "bb"}
    before = written(tmp_path / "a.json", *rows, adapters=first)
    after = written(tmp_path / "b.json", *rows, adapters=first | {"none · large · code": "cc"})
    assert main(["compare", before, after]) == 0
    assert "adapter digest of method none is bb in A and cc in B\n" in capsys.readouterr().out
    assert main(["compare", written(tmp_path / "c.json", *rows), after]) == 0
    assert "adapter digest of method none is untold in A and aa, cc, bb in B\n" in capsys.readouterr().out
    assert main(["compare", before, written(tmp_path / "d.json", *rows, adapters=["aa"])]) == 2
    assert "d.json is no evaluation" in capsys.readouterr().err
