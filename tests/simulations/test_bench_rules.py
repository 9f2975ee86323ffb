"""The benchmark of the rules: every rule has its figures, exact ones come out exact, robust ones robust."""

import json

import pytest

from fleetdraft.server.aggregation.rules import RULES
from fleetdraft.simulations.bench.rules import PROGRAM, main
from fleetdraft.simulations.bench.table import run


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    file = tmp_path_factory.mktemp("rules") / "rows.json"
    assert run(main, PROGRAM, ["--quick", "--rank", "2", "--json", str(file)]) == 0
    return {row["name"]: row["value"] for row in json.loads(file.read_text())["rows"]}


def test_every_rule_has_its_figures(figures: dict[str, float]) -> None:
    assert {name.partition(":")[0] for name in figures} == RULES.keys()
    assert len(figures) == 3 * len(RULES)


@pytest.mark.parametrize("rule", ["ffa-lora", "rolora", "fedsvd"])
def test_exact_rules_come_out_exact(figures: dict[str, float], rule: str) -> None:
    assert figures[f"{rule}: error"] < 1e-3  # per cent; float32 beside entries of the release


def test_hostile_devices_move_a_mean_further_than_a_robust_rule(figures: dict[str, float]) -> None:
    hostile = {name: figures[f"{name}: error, 2 of 10 turned and ten times as large"] for name in RULES}
    assert max(hostile["median"], hostile["trimmed-mean"], hostile["multi-krum"]) < hostile["fedit"] / 2


def test_only_rules_that_need_every_update_hold_them(figures: dict[str, float]) -> None:
    held = {name: figures[f"{name}: memory of 100 updates"] for name in RULES}
    streaming = max(held[name] for name, rule in RULES.items() if rule.sum_only)
    assert streaming < min(held[name] for name, rule in RULES.items() if not rule.sum_only) / 2
