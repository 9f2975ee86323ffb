"""Studies of direct alignment: as data, on tiny models made here, and as tables."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from fleetdraft.client.prompts import read_prompts
from fleetdraft.common.cli import main
from fleetdraft.common.errors import ConfigError, UserError
from fleetdraft.common.machine import Machine
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.export.align.model import Shape
from fleetdraft.export.align.pretrain import PretrainConfig, pretrain
from fleetdraft.export.align.schedule import Schedule
from fleetdraft.simulations.study import alignment, alignment_charts
from fleetdraft.simulations.study.alignment import AlignmentStudy, ArmTable, DrafterTable, all_seeded, seeded
from fleetdraft.simulations.study.alignment_arm import AlignmentBench
from fleetdraft.simulations.study.alignment_findings import AlignmentFindings
from fleetdraft.simulations.study.alignment_report import document
from fleetdraft.simulations.study.alignment_result import AlignmentResult, TargetFacts
from fleetdraft.simulations.study.alignment_run import AlignmentRun

HERE = Path(alignment.__file__).parent
STORIES = [f"The {n}th fox saw {n * 7} hens, and ran to the {'red' if n % 2 else 'green'} barn." for n in range(80)]
HEAD = """
title = "tiny"
kind = "alignment"
texts = ["text.jsonl"]
tokenizer = "one"
seeds = [0, 1]
train_prompts = 3
answer_temperatures = [0.0]
answer_tokens = 6
text_share = 0.25
longest = 64
eval_steps = 3
stop_prompts = 1
unseen_prompts = 2
max_new_tokens = 6
[pretraining]
steps = 3
batch_rows = 2
row_tokens = 16
warmup_steps = 1
[finetuning]
steps = 6
batch_rows = 2
row_tokens = 16
warmup_steps = 1
[[drafters]]
name = "first"
layers = 1
hidden = 16
intermediate = 24
heads = 2
peak_rate = 1e-2
[[drafters]]
name = "second"
layers = 1
hidden = 8
intermediate = 8
heads = 1
[[targets]]
directory = "one"
[[targets]]
directory = "two"
[[tasks]]
name = "foxes"
train = "foxes.train.jsonl"
unseen = "foxes.unseen.jsonl"
[[tasks]]
name = "hens"
train = "hens.train.jsonl"
unseen = "hens.unseen.jsonl"
"""
NONE = '[[arms]]\nname = "none"\n'
KL = '[[arms]]\nname = "KL"\ndivergence = "forward-kl"\n'
LORA = '[[arms]]\nname = "LoRA"\ndivergence = "tvd++"\nlora_rank = 2\npeak_rate = 1e-2\nseeds = [0]\n'
FOXES = '[[arms]]\nname = "foxes only"\ndivergence = "tvd"\nwithout = ["hens"]\nseeds = [1]\n'
SECOND = '[[arms]]\nname = "second"\ndrafter = "second"\n'
WHOLE = HEAD + NONE + KL + LORA + FOXES + SECOND


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two targets of other vocabularies, text, and prompts of two tasks."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in STORIES))
    shape = Shape(
        hidden_size=16, num_hidden_layers=1, intermediate_size=24, head_dim=8,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    for name, kind in (("one", "llama3"), ("two", "qwen2")):
        config = PretrainConfig(
            texts=(folder / "text.jsonl",), out=folder / name, shape=shape, tokenizer_kind=kind, vocab_size=512,
            context=96, held_out=0.2, schedule=Schedule(steps=2, batch_rows=2, row_tokens=16, warmup_steps=1),
        )  # fmt: skip
        pretrain(config, lambda report: None)
    for first, task in enumerate(("foxes", "hens")):
        for part, stories in (("train", STORIES[first:40:2]), ("unseen", STORIES[40 + first :: 2])):
            lines = (json.dumps({"prompt": story[:14], "task": task}) for story in stories)
            (folder / f"{task}.{part}.jsonl").write_text("\n".join(lines))
    return folder


def read(folder: Path, text: str, name: str = "study") -> AlignmentStudy:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return AlignmentStudy.read(path)


@pytest.fixture(scope="module")
def study(material: Path) -> AlignmentStudy:
    return read(material, WHOLE)


@pytest.fixture(scope="module")
def bench(study: AlignmentStudy, tmp_path_factory: pytest.TempPathFactory) -> AlignmentBench:
    bench = AlignmentBench(study=study, folder=tmp_path_factory.mktemp("run"))
    bench.check()
    return bench


@pytest.fixture(scope="module")
def results(bench: AlignmentBench) -> dict[str, AlignmentResult]:
    """Of every arm, done in this process."""
    return {arm.key: bench.run(arm) for arm in all_seeded(bench.study)}


# --- as data ------------------------------------------------------------------------------------------------------


def test_the_shipped_study_reads_and_every_arm_of_it_has_a_file_of_its_own() -> None:
    study = AlignmentStudy.read(HERE / "alignment.toml")
    assert {"", "forward-kl", "tvd", "tvd++", "lk"} == {arm.divergence for arm in study.arms}
    assert len({arm.key for arm in all_seeded(study)}) == len(all_seeded(study))
    assert all(study.untuned(arm) for arm in study.arms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE.replace("stop_prompts = 1", "stop_prompts = 0"), "stop_prompts is 0, expected at least 1"),
        (WHOLE.replace("[0, 1]", "[]"), "seeds is empty"),
        (WHOLE.replace("[0, 1]", "[-1]"), "seeds holds -1, expected numbers >= 0"),
        (WHOLE.replace('"alignment"', '"table"'), "kind is 'table', expected 'alignment'"),
        (WHOLE.replace("text_share = 0.25", "text_share = 1.0"), "text_share is 1, expected 0 or more and below 1"),
        (WHOLE.replace("steps = 6", "steps = 0"), "finetuning: steps is 0, expected at least 1"),
        (WHOLE.replace('"forward-kl"', '"kl"'), "divergence is 'kl', expected one of forward-kl"),
        (WHOLE.replace('["hens"]', '["hen"]'), "arm 'foxes only': without holds 'hen', expected of foxes, hens"),
        (WHOLE.replace('["hens"]', '["hens", "foxes"]'), "without holds every task"),
        (WHOLE.replace('drafter = "second"', 'drafter = "third"'), "drafter is 'third', expected one of first, second"),
        (WHOLE.replace("heads = 1", "heads = 3"), "hidden is 8, expected an even multiple of heads, which is 3"),
        (WHOLE + NONE, "arms: the name 'none' is used twice"),
        (
            WHOLE + NONE.replace("none", "idle") + "seeds = [0]",
            "seeds is .* expected none where no divergence is given",
        ),
        (HEAD, "key 'arms' is missing"),
    ],
)
def test_bad_studies_are_refused_in_one_line(material: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(material, text, "bad")
    assert "\n" not in str(caught.value)


def test_arms_come_in_the_order_of_the_file_and_what_is_not_tuned_comes_once(study: AlignmentStudy) -> None:
    keys = [arm.key for arm in all_seeded(study)]
    assert keys == ["none_s0", "kl_s0", "kl_s1", "lora_s0", "foxes-only_s1", "second_s0"]


# --- arms ---------------------------------------------------------------------------------------------------------


def test_every_arm_decodes_the_same_unseen_prompts_with_each_target(results: dict[str, AlignmentResult]) -> None:
    for result in results.values():
        assert list(result.targets) == ["one", "two"]
        counters = [facts.tasks[task] for facts in result.targets.values() for task in ("foxes", "hens")]
        assert [each.prompts for each in counters] == [2, 2, 2, 2]
        assert all(each.blocks > 0 and each.drafted > 0 for each in counters)
        assert result.step_ms > 0


def test_what_is_measured_of_an_untuned_drafter_is_the_drafter_itself(
    bench: AlignmentBench, results: dict[str, AlignmentResult]
) -> None:
    parameters = sum(
        array.size for array in load_file(bench.folder / "drafters" / "first" / "model.safetensors").values()
    )
    assert results["none_s0"].parameters == results["kl_s0"].parameters == parameters
    assert results["second_s0"].parameters < parameters
    assert results["none_s0"].measures == ()
    assert not (bench.folder / "models" / "none_s0").exists()


def test_seeds_decide_the_fine_tuning_and_nothing_else(bench: AlignmentBench, results: object) -> None:
    folder = bench.folder
    assert sorted(path.name for path in (folder / "drafters").iterdir() if path.is_dir()) == ["first", "second"]
    assert sorted(path.name for path in (folder / "answers").iterdir() if path.is_dir()) == ["foxes", "hens"]
    logs = [json.loads(line) for seed in (0, 1) for line in _metrics(folder / "models" / f"kl_s{seed}")[:1]]
    assert logs[0] != logs[1]


def test_an_arm_gives_the_same_figures_again(study: AlignmentStudy, results: Any, tmp_path: Path) -> None:
    arm = next(arm for arm in all_seeded(study) if arm.key == "kl_s1")
    again = AlignmentBench(study=study, folder=tmp_path).run(arm)
    assert timeless(again) == timeless(results["kl_s1"])


def test_a_task_left_out_is_not_asked_and_decides_nothing(study: AlignmentStudy, tmp_path: Path) -> None:
    (arm,) = seeded(study, study.arms[3])
    found = AlignmentBench(study=study, folder=tmp_path).run(arm)
    assert {path.name for path in (tmp_path / "answers").iterdir() if path.is_dir()} == {"foxes"}
    assert all(set(measure["by_name"]) == {"one/foxes", "two/foxes"} for measure in found.measures)
    assert found.targets["one"].tasks["hens"].prompts == 2  # it is reported all the same


def test_a_model_that_other_figures_chose_is_not_taken(bench: AlignmentBench, results: object) -> None:
    arm = next(arm for arm in all_seeded(bench.study) if arm.key == "kl_s0")
    for other in ({"max_new_tokens": 7}, {"draft_tokens": 3}, {"stop_prompts": 2}):
        changed = AlignmentBench(study=replace(bench.study, **other), folder=bench.folder)
        with pytest.raises(UserError, match="holds the result of other settings"):
            changed.run(arm)


def test_lora_trains_by_its_own_rate_and_leaves_an_adapter_where_it_is_best(
    bench: AlignmentBench, results: dict[str, AlignmentResult]
) -> None:
    model = bench.folder / "models" / "lora_s0"
    assert (model / "adapter").is_dir() == (results["lora_s0"].best_step > 0)
    job = json.loads((model / "training.json").read_text())
    assert job["objective"]["divergence"] == "tvd++"


def test_no_prompt_that_is_reported_was_distilled_or_decided_when_to_stop(
    bench: AlignmentBench, results: object
) -> None:
    for task in ("foxes", "hens"):
        reported = {prompt.text for prompt in bench._unseen[task]}
        stopped = {prompt.text for prompt in bench._stop((task,))[task]}
        asked = {prompt.text for prompt in read_prompts(bench.folder / "prompts" / f"{task}.jsonl")}
        assert (len(reported), len(stopped), len(asked)) == (2, 1, 3)
        assert not reported & stopped
        assert not asked & (reported | stopped)


def test_what_an_arm_found_survives_its_file(results: dict[str, AlignmentResult]) -> None:
    for result in results.values():
        assert AlignmentResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def timeless(result: AlignmentResult) -> dict[str, object]:
    targets = {
        name: replace(facts, step_ms=0.0, tasks={task: replace(own, seconds=0.0) for task, own in facts.tasks.items()})
        for name, facts in result.targets.items()
    }
    return vars(replace(result, targets=targets, step_ms=0.0, seconds=0.0, cpu_seconds=0.0))


def _metrics(model: Path) -> list[str]:
    return (model / "training" / "metrics.jsonl").read_text().splitlines()


# --- a run --------------------------------------------------------------------------------------------------------

COMMAND = """
import sys
from fleetdraft.client.prompts import read_prompts
from fleetdraft.common.cli import main
if __name__ == "__main__":
    sys.exit(main(["study", sys.argv[1], "--out", sys.argv[2]]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_figures_of_a_whole_one(
    material: Path, study: AlignmentStudy, results: dict[str, AlignmentResult], tmp_path: Path
) -> None:
    out, script = tmp_path / "run", tmp_path / "command.py"
    script.write_text(COMMAND)
    file = material / "killed.toml"
    file.write_text(HEAD + NONE + KL)
    process = subprocess.Popen([sys.executable, str(script), str(file), str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "models" / "kl_s0").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(workers, timeout=10)  # they end themselves
    assert {path.name for path in (out / "arms").iterdir()} == {"none_s0.json"}
    run = AlignmentRun(study=AlignmentStudy.read(file), folder=out)
    assert main(["study", str(file), "--out", str(out), "--resume"]) == 0
    assert {key: timeless(found) for key, found in run.arms.results().items()} == {
        key: timeless(results[key]) for key in ("none_s0", "kl_s0", "kl_s1")
    }


def test_the_command_writes_the_three_files_and_a_resumed_run_does_nothing_again(
    material: Path, results: dict[str, AlignmentResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = AlignmentRun(study=read(material, WHOLE, "again"), folder=tmp_path / "run")
    run.open(resume=False)
    (run.folder / "arms").mkdir()
    for key, result in results.items():
        (run.folder / "arms" / f"{key}.json").write_text(json.dumps(result.to_json()))
    times = {path: path.stat().st_mtime_ns for path in (run.folder / "arms").iterdir()}
    assert main(["study", str(material / "again.toml"), "--out", str(run.folder), "--resume"]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in (run.folder / "arms").iterdir()}
    assert "Block efficiency" in capsys.readouterr().out
    assert json.loads((run.folder / "study.json").read_text())["kind"] == "alignment"
    assert {path.name for path in run.folder.glob("study.*")} == {"study.json", "study.md", "study.html"}


def test_a_kind_that_there_is_not_is_told_with_all_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.toml").write_text('title = "?"\nkind = "aligning"\n')
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "kind is 'aligning', expected one of table, " in told
    assert "federation, alignment" in told


def test_a_study_that_is_refused_writes_nothing(material: Path, tmp_path: Path) -> None:
    study = read(material, WHOLE.replace('unseen = "hens.unseen.jsonl"', 'unseen = "nowhere.jsonl"'), "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        AlignmentRun(study=study, folder=tmp_path / "run").open(resume=False)
    assert not (tmp_path / "run").exists()


def test_tasks_with_fewer_prompts_than_asked_for_are_told(material: Path, tmp_path: Path) -> None:
    assert AlignmentBench(study=read(material, WHOLE), folder=tmp_path).shortages() == ()
    study = read(material, WHOLE.replace("unseen_prompts = 2", "unseen_prompts = 30"), "short")
    told = AlignmentBench(study=study, folder=tmp_path).shortages()
    assert told[0] == "foxes has 20 unseen prompts, not 31: all of them are used"


# --- tables -------------------------------------------------------------------------------------------------------


def result(key: str, accepted: int, *, parameters: int = 100, **facts: Any) -> AlignmentResult:
    """``accepted`` of a hundred proposals in fifty blocks with ``one``, half as many with ``two``."""
    targets = {
        name: TargetFacts(
            tasks={
                task: DraftCounters(
                    tokens=50 + accepted // share, target_calls=50, blocks=50, drafted=100, accepted=accepted // share
                )
                for task in ("foxes", "hens")
            },
            parameters=1000 * share,
            step_ms=2.0,
        )
        for name, share in (("one", 1), ("two", 2))
    }
    return AlignmentResult(key=key, targets=targets, parameters=parameters, step_ms=0.5, **facts)


@pytest.fixture
def table(study: AlignmentStudy) -> AlignmentFindings:
    kept = {"best_step": 6, "measures": ({"step": 6, "mean": 2.0, "by_name": {}},)}
    values = {
        "none_s0": result("none_s0", 20, validation=4.5),
        "kl_s0": result("kl_s0", 60, **kept),
        "kl_s1": result("kl_s1", 80, **kept),
        "foxes-only_s1": result("foxes-only_s1", 40, **kept),
        "second_s0": result("second_s0", 10, parameters=50),
    }
    machine = Machine(cpu="a processor", cores=2, threads=1)
    return AlignmentFindings(
        study=study, results=values, failures={}, started="2026-01-01", seconds=1.0, machine=machine
    )


def test_targets_and_tasks_count_once_each_in_the_mean(table: AlignmentFindings) -> None:
    none, kl, _, _ = table.rows
    assert none.mean.values == pytest.approx(((1.4 + 1.2) / 2,))
    assert kl.mean.values == pytest.approx(((2.2 + 1.6) / 2, (2.6 + 1.8) / 2))
    assert kl.acceptance.values == pytest.approx((0.45, 0.6))
    assert kl.efficiency["two", "hens"].values == pytest.approx((1.6, 1.8))


def test_the_gain_is_over_the_same_drafter_untuned(table: AlignmentFindings) -> None:
    none, kl, _, second = table.rows
    assert (none.gain, second.gain) == (None, None)
    assert kl.gain is not None
    assert kl.gain.values == pytest.approx((1.9 / 1.3, 2.2 / 1.3))


def test_the_memory_bound_speed_up_is_of_relative_size(table: AlignmentFindings) -> None:
    kl = table.rows[1]
    assert (kl.targets["one"].cost, kl.targets["two"].cost) == (0.1, 0.05)
    assert kl.targets["one"].mbsu.values == pytest.approx((2.2 / 1.4, 2.6 / 1.4))
    assert kl.targets["two"].mbsu.values == pytest.approx((1.6 / 1.2, 1.8 / 1.2))


def test_a_task_not_taught_is_marked_where_it_was_not(table: AlignmentFindings) -> None:
    lines = document(table).to_markdown().splitlines()
    foxes = next(line for line in lines if line.startswith("| foxes only"))
    assert foxes == "| foxes only | 1.80 | 1.80 * | 1.40 | 1.40 * | 1.60 |"
    assert "*" not in next(line for line in lines if line.startswith("| none"))


def test_sizes_are_compared_in_what_every_drafter_was_given(table: AlignmentFindings) -> None:
    sizes = next(part for part in document(table).parts if part.title == "Size and speed")
    assert [row[:4] for row in sizes.rows] == [
        ("second", "one", "0.00 M", "–"),
        ("second", "two", "0.00 M", "–"),
        ("none", "one", "0.00 M", "4.500"),
        ("none", "two", "0.00 M", "4.500"),
    ]
    assert sizes.rows[3][4:] == ("0.50", "2.00", "0.050", "1.20", "1.00")


def test_page_markdown_and_json_agree_and_the_page_loads_nothing(table: AlignmentFindings) -> None:
    shown = document(table)
    html, markdown = shown.to_html(), shown.to_markdown()
    for figure in ("2.05 ± 0.21", "1.58 ± 0.16×", "0.525 ± 0.106", "1.900", "2.200"):
        assert figure in html
        assert figure in markdown
    assert html.count("<svg") == 2
    assert not [word for word in ("src=", 'href="http', "@import", "url(http") if word in html]
    value = json.loads(json.dumps(table.to_json(), allow_nan=False, default=str))
    assert value["rows"][1]["mean"]["mean"] == pytest.approx(2.05)
    assert [row["arm"] for row in value["rows"]] == ["none", "KL", "foxes only", "second"]


def test_failures_and_arms_without_a_result_are_told_and_left_out(table: AlignmentFindings) -> None:
    partial = replace(table, results={}, failures={"none_s0": "ModelError: torn"})
    assert partial.rows == ()
    assert "failed: none_s0: ModelError: torn" in document(partial).to_markdown()


def test_each_arm_has_its_row_in_the_chart(table: AlignmentFindings) -> None:
    axes = Figure().add_subplot()
    alignment_charts._arms(axes, table.rows)
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.arm.name for row in table.rows]
    means = axes.containers[-1].lines[0].get_xdata()
    assert list(means) == pytest.approx([row.mean.mean for row in table.rows])


@pytest.mark.parametrize("table", [AlignmentStudy, ArmTable, DrafterTable])
def test_each_key_of_a_study_is_documented(table: type) -> None:
    document = Path(__file__).parents[2] / "docs" / "align.md"
    rows = [line for line in document.read_text(encoding="utf-8").split("\n") if line.startswith("| ")]
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {field.name for field in fields(table)} - {"drafters", "targets", "tasks", "arms"} <= told
