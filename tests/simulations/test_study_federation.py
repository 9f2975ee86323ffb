"""Studies of federation: as data, on three shipped devices, and as tables."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.prompts import read_prompts
from fleetdraft.common.cli import main
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import ConfigError, UserError
from fleetdraft.common.machine import Machine
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.aggregation.rules import RULES
from fleetdraft.simulations.study import federation, federation_charts
from fleetdraft.simulations.study.federation import ArmTable, FederationStudy, all_seeded
from fleetdraft.simulations.study.federation_arm import (
    ClientFacts,
    FederationBench,
    FederationResult,
    RoundFacts,
)
from fleetdraft.simulations.study.federation_findings import FederationFindings
from fleetdraft.simulations.study.federation_report import document
from fleetdraft.simulations.study.federation_run import FederationRun

HERE = Path(federation.__file__).parent
PROMPTS = Bundle.open(EMBEDDED).directory / "prompts"
TARGETS = {"asyncio": "spm", "email": "bpe3", "http": "bpe1"}
FLEET = """
title = "three devices"
[generation]
draft_tokens = 3
[learning]
every_prompts = 2
steps = 1
[federation]
clip_norm = 3.0
""" + "".join(
    f'[[clients]]\nname = "{name}"\ntarget = "{target}"\n'
    f'prompts = "{PROMPTS}/{name}.train.jsonl"\nheld_out = "{PROMPTS}/{name}.heldout.jsonl"\n'
    for name, target in TARGETS.items()
)
HEAD = """
title = "tiny"
kind = "federation"
experiment = "fleet.toml"
seeds = [0, 1]
rounds = 2
prompts_per_round = 2
unseen_prompts = 1
max_new_tokens = 8
"""
NONE = '[[arms]]\nname = "none"\nway = "none"\n'
LOCAL = '[[arms]]\nname = "local"\nway = "local"\n'
CENTRAL = '[[arms]]\nname = "central"\nway = "centralised"\n'
FEDIT = '[[arms]]\nname = "fedit"\nway = "federated"\nrule = "fedit"\n'
HUGE = FEDIT.replace('"fedit"\nway', '"fedit, huge"\nway') + 'fault = "huge"\nshare = 0.3\nagainst = "fedit"\n'
WHOLE = HEAD + NONE + LOCAL + CENTRAL + FEDIT + HUGE


def read(folder: Path, text: str) -> FederationStudy:
    (folder / "fleet.toml").write_text(FLEET, encoding="utf-8")
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return FederationStudy.read(path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> FederationStudy:
    return read(tmp_path_factory.mktemp("plan"), WHOLE)


@pytest.fixture(scope="module")
def results(study: FederationStudy) -> dict[str, FederationResult]:
    """Of the first seed, done in this process."""
    bench = FederationBench(study=study)
    bench.check()
    return {each.key: bench.run(each) for each in all_seeded(study) if each.seed == 0}


def found(study: FederationStudy, results: dict[str, FederationResult]) -> FederationFindings:
    machine = Machine(cpu="a processor", cores=2, threads=1)
    return FederationFindings(
        study=study, results=results, failures={}, started="2026-01-01", seconds=1.0, machine=machine
    )


# --- as data ------------------------------------------------------------------------------------------------------


def test_the_shipped_studies_read_and_name_each_rule_and_each_way() -> None:
    studies = [FederationStudy.read(HERE / name) for name in ("federation.toml", "federation-small.toml")]
    assert {arm.rule for arm in studies[0].arms} == {"", *RULES}
    for each in studies:
        assert {arm.way for arm in each.arms} == set(federation.WAYS)
        assert len({arm.key for arm in all_seeded(each)}) == len(all_seeded(each))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE.replace("rounds = 2", "rounds = 0"), "rounds is 0, expected at least 1"),
        (WHOLE.replace("[0, 1]", "[]"), "seeds is empty"),
        (WHOLE.replace('way = "local"', 'way = "alone"'), "way is 'alone', expected one of none, local"),
        (WHOLE.replace('rule = "fedit"', 'rule = "fedavg"'), "rule is 'fedavg', expected one of fedit"),
        (WHOLE.replace('fault = "huge"', 'fault = "tired"'), "fault is 'tired', expected one of nan"),
        (WHOLE.replace("share = 0.3", "share = 1.0"), "share is 1 of fault 'huge', expected 0 < share < 1"),
        (WHOLE.replace("share = 0.3\n", ""), "share is 0 of fault 'huge', expected 0 < share < 1"),
        (WHOLE.replace('against = "fedit"', 'against = "fedavg"'), "against is 'fedavg', expected another arm's name"),
        (WHOLE + LOCAL, "the name 'local' is used twice"),
        (HEAD + LOCAL + 'rule = "fedit"\n', "rule is 'fedit', expected none unless way is 'federated'"),
        (HEAD + FEDIT.replace("fedit", "krum") + 'weights = "tokens"\n', "weights is 'tokens', expected 'equal'"),
        (HEAD, "key 'arms' is missing"),
    ],
)
def test_bad_studies_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_share_of_the_devices_is_rounded_up_and_drawn_by_the_seed(study: FederationStudy) -> None:
    arm = replace(study.arm("fedit, huge"), share=0.5)
    drawn = [[client.name for client in study.fleet(arm, seed).clients if client.fault] for seed in range(6)]
    assert {len(names) for names in drawn} == {2}
    assert len({tuple(names) for names in drawn}) > 1
    assert drawn[0] == [client.name for client in study.fleet(arm, 0).clients if client.fault]


def test_what_learns_nothing_is_measured_once_for_all_seeds(study: FederationStudy) -> None:
    keys = [arm.key for arm in all_seeded(study)]
    assert keys == ["none_s0", *(f"{name}_s{seed}" for seed in (0, 1) for name in LEARNED)]


LEARNED = ("local", "central", "fedit", "fedit-huge")

# --- arms ---------------------------------------------------------------------------------------------------------


def test_every_arm_trains_as_many_steps_and_measures_the_same_prompts(results: dict[str, FederationResult]) -> None:
    # 2 rounds of 2 prompts, a step for each 2: of each of three devices, of which one is turned away under attack.
    assert {key: result.steps for key, result in results.items()} == {
        "none_s0": 0, "local_s0": 6, "central_s0": 6, "fedit_s0": 6, "fedit-huge_s0": 4,
    }  # fmt: skip
    for result in results.values():
        assert list(result.clients) == list(TARGETS)
        assert len({facts.family for facts in result.clients.values()}) == 3
        assert [facts.counters.prompts for facts in result.clients.values()] == [1, 1, 1]
        assert sum(facts.counters.drafted for facts in result.clients.values()) > 0


def test_only_what_is_centralised_sends_text_and_only_rounds_send_tensors(
    study: FederationStudy, results: dict[str, FederationResult]
) -> None:
    assert [result.text_bytes > 0 for result in results.values()] == [False, False, True, False, False]
    assert [len(result.rounds) for result in results.values()] == [0, 0, 0, 2, 2]
    texts = {name: {p.text for p in read_prompts(PROMPTS / f"{name}.train.jsonl")} for name in TARGETS}
    assert results["central_s0"].text_bytes < sum(len(text.encode()) for own in texts.values() for text in own)


def test_bytes_of_a_round_are_those_of_the_adapter_for_each_device(
    study: FederationStudy, results: dict[str, FederationResult]
) -> None:
    layout = Bundle.open(EMBEDDED).manifest.layout
    size = sum(4 * rows * columns + 128 for rows, columns in layout.shapes.values())  # and a header a tensor
    assert {(facts.bytes_up, facts.bytes_down) for facts in results["fedit_s0"].rounds} == {(3 * size, 3 * size)}


def test_a_faulty_device_is_excluded_in_each_round_with_the_reason(results: dict[str, FederationResult]) -> None:
    result = results["fedit-huge_s0"]
    (attacker,) = (name for name, facts in result.clients.items() if facts.fault)
    for facts in result.rounds:
        assert sorted(facts.accepted) == sorted(set(TARGETS) - {attacker})
        assert facts.excluded == {attacker: "norm"}


def test_one_device_in_a_federation_of_one_round_learns_what_it_learns_alone(tmp_path: Path) -> None:
    """A mean of one update is that update: the ways differ by the exchange alone."""
    alone = FLEET[: FLEET.index('[[clients]]\nname = "email"')].replace("clip_norm = 3.0", "clip_norm = 1e6")
    study = read(tmp_path, HEAD.replace("rounds = 2", "rounds = 1") + LOCAL + FEDIT)
    (tmp_path / "fleet.toml").write_text(alone, encoding="utf-8")
    bench = FederationBench(study=study)
    local, fedit = (timeless(bench.run(arm))["clients"] for arm in all_seeded(study)[:2])
    assert local == fedit


def test_an_arm_gives_the_same_figures_whichever_arms_came_before(
    study: FederationStudy, results: dict[str, FederationResult]
) -> None:
    """First rounds are shared, with those that attack too; what attackers send is not."""
    bench = FederationBench(study=study)
    later, earlier = (next(arm for arm in all_seeded(study) if arm.key == key) for key in ("fedit_s0", "fedit-huge_s0"))
    bench.run(earlier)
    assert timeless(bench.run(later)) == timeless(results["fedit_s0"])
    assert len(bench._first_round) == len(TARGETS)


def timeless(result: FederationResult) -> dict[str, object]:
    clients = {name: replace(facts.counters, seconds=0.0) for name, facts in result.clients.items()}
    return {**vars(result), "clients": clients, "seconds": 0.0, "cpu_seconds": 0.0}


def test_what_an_arm_found_survives_its_file(results: dict[str, FederationResult]) -> None:
    for result in results.values():
        assert FederationResult.from_json(json.loads(json.dumps(result.to_json()))) == result


# --- a run --------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_three_files_and_a_resumed_run_does_nothing_again(
    tmp_path: Path, results: dict[str, FederationResult], capsys: pytest.CaptureFixture[str]
) -> None:
    study = read(tmp_path, WHOLE.replace("seeds = [0, 1]", "seeds = [0]"))
    run = FederationRun(study=study, folder=tmp_path / "run")
    run.open(resume=False)
    (run.folder / "arms").mkdir()
    for key, result in results.items():
        (run.folder / "arms" / f"{key}.json").write_text(json.dumps(result.to_json()))
    times = {path: path.stat().st_mtime_ns for path in (run.folder / "arms").iterdir()}
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(run.folder), "--resume"]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in (run.folder / "arms").iterdir()}
    assert "Under attack" in capsys.readouterr().out
    assert json.loads((run.folder / "study.json").read_text())["kind"] == "federation"
    assert {path.name for path in run.folder.glob("study.*")} == {"study.json", "study.md", "study.html"}


def test_a_run_whose_experiment_changed_is_another_one(tmp_path: Path) -> None:
    study = read(tmp_path, WHOLE)
    FederationRun(study=study, folder=tmp_path / "run").open(resume=False)
    (tmp_path / "fleet.toml").write_text(FLEET.replace("steps = 1", "steps = 2"))
    with pytest.raises(ConfigError, match="holds a study of other settings"):
        FederationRun(study=study, folder=tmp_path / "run").open(resume=True)


def test_a_study_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    study = read(tmp_path, WHOLE)
    (tmp_path / "fleet.toml").write_text(FLEET.replace("asyncio.train", "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        FederationRun(study=study, folder=tmp_path / "run").open(resume=False)
    assert not (tmp_path / "run").exists()


def test_clients_with_fewer_prompts_than_asked_for_are_told(tmp_path: Path) -> None:
    assert FederationBench(study=read(tmp_path, WHOLE)).shortages() == ()
    study = read(tmp_path, WHOLE.replace("unseen_prompts = 1", "unseen_prompts = 13"))
    assert FederationBench(study=study).shortages()[0] == "asyncio has 12 unseen prompts, not 13"


# --- tables -------------------------------------------------------------------------------------------------------


def result(key: str, accepted: dict[str, int], **fields: object) -> FederationResult:
    """Each client's accepted proposals of a hundred, in fifty blocks; ``ann`` and ``bob`` share a family."""
    clients = {
        name: ClientFacts(
            family="bpe" if name == "cyd" else "spm",
            counters=DraftCounters(tokens=50 + count, target_calls=50, blocks=50, drafted=100, accepted=count),
            fault="huge" if name in str(fields.get("attacker")) else "",
        )
        for name, count in accepted.items()
    }
    rounds = fields.get("rounds", ())
    return FederationResult(key=key, clients=clients, rounds=rounds, steps=0 if "none" in key else 1)  # type: ignore[arg-type]


@pytest.fixture
def table(study: FederationStudy) -> FederationFindings:
    taken = RoundFacts(accepted=("ann", "bob", "cyd"), excluded={}, bytes_up=300, bytes_down=600)
    turned = RoundFacts(accepted=("ann", "bob"), excluded={"cyd": "norm"}, bytes_up=300, bytes_down=600)
    values = {
        "none_s0": result("none_s0", {"ann": 10, "bob": 20, "cyd": 30}),
        "fedit_s0": result("fedit_s0", {"ann": 30, "bob": 50, "cyd": 40}, rounds=(taken, taken)),
        "fedit_s1": result("fedit_s1", {"ann": 30, "bob": 30, "cyd": 20}, rounds=(taken, taken)),
        "fedit-huge_s0": result("h", {"ann": 30, "bob": 38, "cyd": 40}, rounds=(taken, turned), attacker="cyd"),
    }
    return found(study, values)


def test_families_are_pooled_and_clients_count_once_each(table: FederationFindings) -> None:
    none, fedit, _ = table.cells
    assert none.families["spm"].mean == pytest.approx(0.15)
    assert none.mean.mean == pytest.approx(0.2)
    assert fedit.families["spm"].values == pytest.approx((0.4, 0.3))
    assert fedit.mean.values == pytest.approx((0.4, 0.8 / 3))
    assert fedit.worst.values == pytest.approx((0.3, 0.2))
    assert fedit.worst_clients == ("ann", "cyd")
    assert fedit.length.values == pytest.approx((1 + 120 / 150, 1 + 80 / 150))


def test_the_least_gain_is_of_the_client_that_lost_most_or_gained_least(table: FederationFindings) -> None:
    none, fedit, _ = table.cells
    assert fedit.least_gain is not None
    assert fedit.least_gain.values == pytest.approx((0.1, -0.1))
    assert fedit.least_gainers == ("cyd", "cyd")
    assert none.least_gain is not None
    assert none.least_gain.values == (0.0,)
    assert "0.000 ± 0.141 cyd" in document(table).to_markdown()


def test_what_is_compared_is_compared_seed_by_seed(table: FederationFindings) -> None:
    none, fedit, huge = table.cells
    assert none.over is None
    assert fedit.over is not None
    assert fedit.over.values == pytest.approx((2.0, 4 / 3))  # over what learns nothing, measured once
    assert huge.over is not None
    assert huge.over.values == pytest.approx((0.9,))  # over the same seed without attackers
    assert huge.compared is not None
    assert huge.compared.values == pytest.approx((0.4,))
    assert "| fedit | huge | 1 of 3 | 1 | 0.400 | 0.360 | 0.90 * | 0.300 |" in document(table).to_markdown()


def test_what_has_no_counterpart_of_its_seed_is_compared_with_nothing(table: FederationFindings) -> None:
    alone = replace(table, results={"fedit_s1": table.results["fedit_s1"], "fedit-huge_s0": table.results["fedit_s0"]})
    assert [cell.over for cell in alone.cells] == [None, None]


def test_traffic_is_of_one_device_and_round_and_updates_are_counted(table: FederationFindings) -> None:
    _, fedit, huge = table.cells
    assert (fedit.up, fedit.down) == (100, 200)
    assert (fedit.accepted, fedit.excluded, fedit.reasons) == (6, 0, ())
    assert (huge.accepted, huge.excluded, huge.reasons) == (5, 1, ("norm",))


def test_page_markdown_and_json_agree_and_the_page_loads_nothing(table: FederationFindings) -> None:
    shown = document(table)
    html, markdown = shown.to_html(), shown.to_markdown()
    for figure in ("0.350 ± 0.071", "1.67 ± 0.47×", "0.90 *", "norm", "0.1 kB"):
        assert figure in html
        assert figure in markdown
    assert html.count("<svg") == 2
    assert not [word for word in ("src=", 'href="http', "@import", "url(http") if word in html]
    value = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert value["cells"][1]["families"]["spm"]["mean"] == pytest.approx(0.35)
    assert [cell["arm"] for cell in value["cells"]] == ["none", "fedit", "fedit, huge"]


def test_failures_and_arms_without_a_result_are_told_and_left_out(table: FederationFindings) -> None:
    partial = replace(table, results={}, failures={"none_s0": "ModelError: torn"})
    assert partial.cells == ()
    assert "failed: none_s0: ModelError: torn" in document(partial).to_markdown()


def test_each_arm_has_its_row_in_the_chart(table: FederationFindings) -> None:
    axes = Figure().add_subplot()
    federation_charts._arms(axes, table.cells)
    assert [label.get_text() for label in axes.get_yticklabels()] == [cell.arm.name for cell in table.cells]
    points = axes.collections[0].get_offsets()
    assert [point[0] for point in points] == pytest.approx([cell.families["spm"].mean for cell in table.cells])


def test_an_arm_needs_a_name_with_letters() -> None:
    with pytest.raises(ConfigError, match="name is '!', expected one with letters or digits"):
        ArmTable(name="!", way="none")


@pytest.mark.parametrize("table", [FederationStudy, ArmTable])
def test_each_key_of_a_study_is_documented(table: type) -> None:
    document = Path(__file__).parents[2] / "docs" / "federation-results.md"
    rows = [line for line in document.read_text(encoding="utf-8").split("\n") if line.startswith("| ")]
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {field.name for field in fields(table)} - {"arms"} <= told
