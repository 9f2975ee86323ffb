"""Studies as data, and what is made of arms' results: sharing, spread, gains, courses, tables."""

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fleetdraft.client.bundle import Bundle
from fleetdraft.common.document import markdown_table
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import ConfigError, PromptsError
from fleetdraft.common.machine import Machine
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.simulations.study import charts, plan
from fleetdraft.simulations.study.arm import ArmResult, Moment, after, arms, before
from fleetdraft.simulations.study.course import recovered, smooth
from fleetdraft.simulations.study.findings import Findings, Spread, settings
from fleetdraft.simulations.study.method import Method
from fleetdraft.simulations.study.plan import KINDS, Segment, Study, TargetTable
from fleetdraft.simulations.study.published import published
from fleetdraft.simulations.study.report import document
from fleetdraft.simulations.study.sources import TaskTable

DOCUMENT = Path(__file__).parents[2] / "docs" / "learning.md"
SHIPPED = sorted(Path(plan.__file__).parent.glob("*.toml"))
STUDIES = [path for path in SHIPPED if not path.name.startswith(("alignment", "federation", "published"))]
TARGET = '[[targets]]\ndirectory = "models/large"\npublished = "Llama3-8B"\n'
TASK = '[[tasks]]\nname = "math"\ntrain = "a.jsonl"\nunseen = "b.jsonl"\npublished = "GSM8K"\n'
NONE = '[[methods]]\nname = "none"\npaths = "direct"\nsteps = 0\npublished = ["direct map, no training"]\n'
DIRECT = '[[methods]]\nname = "direct"\npaths = "direct"\nprojection = "direct"\nngram_weight = 0.0\n'
HYBRID = '[[methods]]\nname = "hybrid"\npaths = "online"\nagainst = "direct"\npublished = ["hybrid with n-grams"]\n'
HEAD = 'title = "t"\nkind = "table"\ndrafter = "models/small"\nseeds = [3, 4]\n'
WHOLE = HEAD + TARGET + TASK + NONE + DIRECT + HYBRID


def read(folder: Path, text: str) -> Study:
    path = folder / "s.toml"
    path.write_text(text, encoding="utf-8")
    return Study.read(path)


def result(key: str, accepted: int, drafted: int = 100) -> ArmResult:
    counted = {"tokens": 50 + accepted, "target_calls": 50, "blocks": 50, "drafted": drafted, "accepted": accepted}
    return ArmResult(key=key, counters=DraftCounters(prompts=1, **counted))


def findings(study: Study, accepted: dict[str, int]) -> Findings:
    """Results of the arms named, each with its accepted proposals of a hundred."""
    results = {key: result(key, count) for key, count in accepted.items()}
    machine = Machine(cpu="a processor", cores=2, threads=1)
    failures = {arm.key: "TrainingError: diverged" for arm in arms(study) if arm.key not in accepted}
    return Findings(study=study, results=results, failures=failures, started="2026-01-01", seconds=1.0, machine=machine)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read(tmp_path, WHOLE)


@pytest.fixture
def found(study: Study) -> Findings:
    base = {"large_math_no-training-direct_s0_t0": 10, "large_math_no-training-online_s0_t0": 16}
    learned = {"direct_s3": 20, "direct_s4": 20, "hybrid_s3": 24, "hybrid_s4": 26}
    return findings(study, base | {f"large_math_{key}_t0": count for key, count in learned.items()})


def test_each_kind_of_study_is_shipped_and_reads() -> None:
    assert {Study.read(path).kind for path in STUDIES} == set(KINDS)


def test_the_documents_example_is_the_small_study() -> None:
    text = Path(plan.__file__).with_name("small.toml").read_text(encoding="utf-8")
    assert text.split("\n", 1)[1] in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [Study, Method, TargetTable, TaskTable, Segment])
def test_each_key_of_a_study_is_documented(table: type) -> None:
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").split("\n") if line.startswith("| ")]
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {field.name for field in fields(table)} - {"targets", "tasks", "methods", "segments"} <= told


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    study = read(tmp_path, WHOLE)
    assert study.drafter == tmp_path / "models/small"
    assert study.targets[0].directory == tmp_path / "models/large"
    assert study.tasks[0].train == tmp_path / "a.jsonl"


def test_defaults_hold_for_each_method_that_does_not_say_otherwise(tmp_path: Path) -> None:
    own = '[defaults]\nrank = 4\nsteps = 7\n[[methods]]\nname = "x"\nrank = 16\n'
    study = read(tmp_path, HEAD + TARGET + TASK + own + '[[methods]]\nname = "y"\n')
    assert [(method.rank, method.steps) for method in study.methods] == [(16, 7), (4, 7)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_promts = 3\n" + WHOLE, "unknown key 'train_promts'; did you mean 'train_prompts'"),
        (WHOLE.replace("[3, 4]", "[3, -4]"), "seeds holds -4"),
        (WHOLE.replace("[3, 4]", '[3, "x"]'), 'seeds 2 is "x", expected a whole number'),
        (WHOLE.replace("[3, 4]", "3"), "seeds is 3, expected a list in brackets"),
        (WHOLE.replace('"table"', '"chart"'), "kind is 'chart', expected one of table"),
        (WHOLE.replace("online", "on"), r"\[\[methods\]\] 3: paths is 'on', expected one of"),
        (
            WHOLE.replace('against = "direct"', 'against = "x"'),
            "'hybrid': against is 'x', expected one of none, direct",
        ),
        (
            WHOLE.replace('against = "direct"', 'against = "hybrid"'),
            "against is 'hybrid', expected one of none, direct$",
        ),
        (WHOLE.replace("ngram_weight = 0.0", "ngram_weight = -1.0"), "ngram_weight is -1.0"),
        (WHOLE.replace("steps = 0", "steps = -1"), "steps is -1, expected 0"),
        (WHOLE + DIRECT, "methods: the name 'direct' is used twice"),
        (WHOLE + DIRECT.replace('"direct"\npaths', '"Direct!"\npaths'), "methods: the name 'direct' is used twice"),
        (WHOLE.replace("a.jsonl", ""), "math has unseen, expected train and unseen"),
        (
            WHOLE + TASK.replace("math", "m").replace("train", 'source = "gsm8k"\ntrain'),
            "expected directory of the sou",
        ),
        (WHOLE.replace('"table"', '"stream"'), "segments: none in a study of the kind 'stream'"),
        (WHOLE + '[[segments]]\nstream = "s"\ntarget = "large"\ntask = "math"\nprompts = 0\n', "prompts is 0"),
        (WHOLE + "widen_to = 3\n", "unknown key 'widen_to'"),
        ("widen_to = 9\n" + WHOLE, "widen_to is 9, expected a hidden size where speed is measured"),
        (WHOLE + "[[", "is not valid TOML"),
        ("methods = 3\n" + HEAD + TARGET + TASK, r"methods is 3, expected \[\[methods\]\] tables"),
        (HEAD + TARGET + TASK, "key 'methods' is missing"),
    ],
)
def test_bad_studies_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_sources_make_the_prompts_that_the_targets_know(tmp_path: Path) -> None:
    rows = {
        "train.jsonl": [{"question": "1+1?", "answer": "2"}],
        "test.jsonl": [{"question": "2+2?", "answer": "4", "document": "d" * 1000, "summary": "s"}],
        "mbpp.jsonl": [{"task_id": number, "text": f"Task {number}."} for number in (10, 11, 510, 511, 600, 601)],
    }
    for name, values in rows.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    alpaca = [{"instruction": f"Do {number}.", "input": ""} for number in range(402)]
    (tmp_path / "alpaca_data_subset.json").write_text(json.dumps([*alpaca, {"instruction": "x", "input": "y"}]))

    def texts(source: str) -> list[list[str]]:
        task = TaskTable(name="t", source=source, directory=tmp_path)
        return [[prompt.text for prompt in part] for part in task.prompts()]

    assert texts("gsm8k") == [["Question: 1+1?\nAnswer:"], ["Question: 2+2?\nAnswer:"]]
    assert texts("mbpp") == [["# Task 601.\n"], ["# Task 11.\n", "# Task 510.\n"]]
    train, unseen = texts("alpaca")
    assert train == ["### Instruction:\nDo 0.\n\n### Response:\n", "### Instruction:\nDo 1.\n\n### Response:\n"]
    assert len(unseen) == 400
    documents = [json.dumps({"document": f"{number:03}" + "é" * 997}) for number in range(1, 803)]
    (tmp_path / "test.jsonl").write_text("\n".join(documents), encoding="utf-8")
    train, unseen = texts("xsum")
    assert (len(train), len(unseen)) == (780, 2)
    assert train[0] == f"Article: 001{'é' * 897}\nSummary:"
    assert unseen[0] == f"Article: 801{'é' * 897}\nSummary:"


def test_a_file_of_another_form_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mbpp.jsonl").write_text('{"question": "?"}')
    with pytest.raises(PromptsError, match=f"{tmp_path}/mbpp.jsonl is not mbpp as published: KeyError\\('task_id'\\)"):
        TaskTable(name="t", source="mbpp", directory=tmp_path).prompts()


@pytest.mark.shared
@pytest.mark.parametrize("source", ["gsm8k", "mbpp", "alpaca", "xsum"])
def test_no_unseen_prompt_is_trained_on(shared_dir: Path, source: str) -> None:
    train, unseen = TaskTable(name="t", source=source, directory=shared_dir / "data" / source).prompts()
    assert len(train) >= 300
    assert len(unseen) >= 200
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in unseen}


def test_what_is_not_trained_is_measured_once_for_methods_that_draft_alike(study: Study) -> None:
    assert [arm.key for arm in arms(study)] == [
        "large_math_no-training-direct_s0_t0",
        "large_math_no-training-online_s0_t0",
        "large_math_direct_s3_t0",
        "large_math_hybrid_s3_t0",
        "large_math_direct_s4_t0",
        "large_math_hybrid_s4_t0",
    ]
    none, direct, _ = study.methods
    assert before(study, direct, "large", "math", 0.0) == after(study, none, "large", "math", 3, 0.0)


def test_on_the_drafters_own_vocabulary_ways_to_join_vocabularies_are_one_arm(tmp_path: Path) -> None:
    models = Bundle.open(EMBEDDED).directory
    text = WHOLE.replace("models/small", f"{models}/drafter").replace("models/large", f"{models}/targets/{{}}")
    own, other = (read(tmp_path, text.format(name)) for name in ("spm", "bpe1"))
    keys = [[after(s, m, s.targets[0].name, "math", 3, 0.0).key for m in s.methods[1:]] for s in (own, other)]
    assert keys == [["spm_math_direct_s3_t0"] * 2, ["bpe1_math_direct_s3_t0", "bpe1_math_hybrid_s3_t0"]]


def test_methods_that_learn_differently_stay_apart_on_the_drafters_own_vocabulary(tmp_path: Path) -> None:
    models = Bundle.open(EMBEDDED).directory
    text = WHOLE.replace("models/small", f"{models}/drafter").replace("models/large", f"{models}/targets/spm")
    study = read(tmp_path, text.replace('against = "direct"', 'against = "direct"\nsteps = 9'))
    assert after(study, study.methods[2], "spm", "math", 3, 0.0).key == "spm_math_hybrid_s3_t0"


def test_arms_of_different_settings_never_share_a_file() -> None:
    for path in STUDIES:
        every = arms(Study.read(path))
        assert len({arm.key for arm in every}) == len(every), path.name


def test_spread_is_mean_and_sample_deviation() -> None:
    assert Spread(values=(1.0, 3.0)).mean == 2.0
    assert Spread(values=(1.0, 3.0)).deviation == pytest.approx(math.sqrt(2))
    assert Spread(values=(1.0,)).text(".1f") == "1.0"


def test_gains_are_over_the_method_without_training_and_the_one_named(found: Findings) -> None:
    hybrid = found.cells[2]
    assert hybrid.acceptance.mean == pytest.approx(0.25)
    assert hybrid.acceptance_before == pytest.approx(0.16)
    assert hybrid.length.mean == pytest.approx(1.5)
    assert hybrid.gain == pytest.approx(2.5)
    assert hybrid.against_gain == pytest.approx(1.25)
    assert hybrid.published_gain == pytest.approx(4.2)
    assert hybrid.published_against_gain is None  # the file names no row for the direct map


def test_a_cell_with_a_failed_seed_is_left_out_and_the_failure_is_told(study: Study, found: Findings) -> None:
    counts = {key: result.counters.accepted for key, result in found.results.items()}
    del counts["large_math_hybrid_s4_t0"]
    partial = findings(study, counts)
    assert [cell.method.name for cell in partial.cells] == ["none", "direct"]
    for text in (document(partial).to_html(), document(partial).to_markdown()):
        assert "failed: large_math_hybrid_s4_t0: TrainingError: diverged" in text


def test_the_three_files_agree_and_the_page_loads_nothing(found: Findings) -> None:
    html, markdown = document(found).to_html(), document(found).to_markdown()
    for figure in ("0.160 → 0.250 ± 0.014 [0.42]", "2.50× [4.20×]", "1.25×"):
        assert figure in html.replace("<br>", " ")
        assert figure in markdown
    assert "<svg" in html
    assert not [word for word in ("src=", 'href="http', "@import", "url(http") if word in html]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["schema"] == 1


def test_a_gain_over_nothing_is_no_number(study: Study, found: Findings) -> None:
    counts = {key: result.counters.accepted for key, result in found.results.items()}
    none = findings(study, counts | {"large_math_no-training-direct_s0_t0": 0})
    assert json.loads(json.dumps(none.to_json(), allow_nan=False))["cells"][2]["gain"] is None
    assert "| hybrid | none | – [4.20×] |" in document(none).to_markdown()


def test_a_comparison_with_the_method_without_training_is_one_row(tmp_path: Path, found: Findings) -> None:
    study = read(tmp_path, WHOLE.replace('against = "direct"', 'against = "none"'))
    counts = {key: result.counters.accepted for key, result in found.results.items()}
    assert document(findings(study, counts)).to_markdown().count("| hybrid | none |") == 1


def test_what_a_task_is_short_of_is_told_in_all_files(found: Findings) -> None:
    short = replace(found, shortages=("math has 3 training prompts, not 240",))
    for text in (document(short).to_html(), document(short).to_markdown(), json.dumps(short.to_json())):
        assert "math has 3 training prompts, not 240" in text


def test_settings_tell_what_methods_share_once_and_what_a_study_uses(found: Findings) -> None:
    told = document(found).to_markdown()
    assert told.count("learning rate 0.003") == 1
    assert "| direct | paths direct, projection direct, ngram weight 0.0 |" in told
    assert "widen_to" not in told
    assert {"window", "train_prompts"} & settings(found.study).keys() == {"train_prompts"}
    stream = Study.read(Path(plan.__file__).with_name("stream.toml"))
    assert {"window", "train_prompts"} & settings(stream).keys() == {"window"}


def test_before_and_after_are_both_seen_and_no_point_lies_on_the_edge(found: Findings) -> None:
    axes = Figure().add_subplot()
    charts._dumbbells(axes, found.cells, ["math"])
    before = next(each for each in axes.collections if each.get_label() == "before")
    points = axes.containers[0].lines[0]
    assert points.get_zorder() > before.get_zorder()
    assert before.get_sizes()[0] ** 0.5 > points.get_markersize()
    assert axes.get_xlim()[1] > max(cell.acceptance.mean + cell.acceptance.deviation for cell in found.cells)


def test_markdown_tables_escape_bars_and_keep_their_columns() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]], 1).split("\n") == ["| a | b |", "| --- | ---: |", r"| x\|y | 1 |"]


def test_smoothing_weighs_by_proposals_over_all_seeds() -> None:
    def course(*accepted: int) -> list[Moment]:
        return [Moment(segment=0, drafted=10, accepted=count, blocks=5) for count in accepted]

    assert smooth([course(0, 5, 10), course(0, 5, 0)], window=2) == [0.0, 0.25, 0.5]


def test_recovery_counts_the_prompts_before_the_course_stays_at_nine_tenths() -> None:
    assert recovered([0.1, 0.5, 0.3, 0.46, 0.5]) == 3
    assert recovered([0.5, 0.46, 0.5]) == 0


def test_only_what_learns_recovers(tmp_path: Path) -> None:
    segments = "".join(f'[[segments]]\nstream = "s"\ntarget = "large"\ntask = "math"\nprompts = {n}\n' for n in (1, 2))
    study = read(tmp_path, WHOLE.replace('"table"', '"stream"') + segments)
    moments = tuple(
        Moment(segment=min(i, 1), drafted=10, accepted=accepted, blocks=5) for i, accepted in enumerate((5, 1, 9))
    )
    results = {arm.key: replace(result(arm.key, 15), moments=moments) for arm in arms(study)}
    told = document(replace(findings(study, {}), results=results, failures={})).to_markdown()
    assert "| none | 0.500 | 0.500 |" in told
    assert "| direct | 0.500 (after 0) | 0.500 (after 1) |" in told


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (TARGET, TARGET.replace("Llama3-8B", "Llama3"), "target 'large': published is 'Llama3'"),
        (TASK, TASK.replace("GSM8K", "GSM"), "task 'math': published is 'GSM'"),
        (NONE, NONE.replace("direct map, no", "direct, no"), "method 'none': published is 'direct, no training'"),
    ],
)
def test_a_published_name_of_which_there_is_no_figure_is_refused(tmp_path: Path, old: str, new: str, what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what}, expected one of "):
        read(tmp_path, WHOLE.replace(old, new))


def test_published_ranks_are_there_and_missing_speed_ups_are_none() -> None:
    figures = [published().figure("Llama3-8B", [f"hybrid, LoRA r{rank}"], "GSM8K") for rank in (8, 16, 32, 64)]
    assert [figure.acceptance for figure in figures if figure] == [0.30, 0.34, 0.37, 0.38]
    assert figures[0] is not None
    assert figures[0].speedup is None
    assert published().figure("Vicuna-7B", ["no such row", "no training"], "XSum") is not None


@pytest.mark.parametrize(("field", "value"), [("controller", "no"), ("divergence", "kl"), ("schedule", "idle")])
def test_a_method_that_the_device_does_not_know_is_told_with_what_it_knows(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is '{value}', expected one of .*"):
        Method(name="odd", **{field: value})
