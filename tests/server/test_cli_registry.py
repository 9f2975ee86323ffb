"""The command by which an operator looks at releases and decides about them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fleetdraft.common.errors import FleetdraftError, RegistryError, UserError
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.cli_registry import registry as command
from fleetdraft.server.registry.registry import Registry

SECRET = "ann-of-the-north"


def measured(rate: float, family: str = "spm") -> dict[str, DraftCounters]:
    return {family: DraftCounters(drafted=4000, accepted=int(4000 * rate), blocks=1000)}


def grown(adapter: LoraAdapter, value: float) -> LoraAdapter:
    return adapter.plus({name: value + 0 * array for name, array in adapter.arrays.items()})


@pytest.fixture
def root(tmp_path: Path, layout) -> Path:
    """Releases 0 and 1 promoted, 2 blocked, 3 the head, which nobody measured."""
    with Registry(tmp_path / "registry", layout, "base", clock=lambda: 86_400.0) as registry:
        registry.begin(layout.initial(seed=0))
        registry.evaluated(measured(0.40))
        for number, rate in ((1, 0.5), (2, 0.2), (3, None)):
            registry.write(
                grown(registry.head().adapter, 0.1 * number),
                round=number,
                rule="fedit",
                participants=(SECRET, "bob"),
                rejected={"eve": "norm is 99.1, expected <= 10", "mal": "norm is 1e5, expected <= 10", "x": "late"},
                families={"spm": DraftCounters(drafted=100, accepted=45)},
                carried=b"moments",
                privacy={"epsilon": 0.5 * number, "delta": 1e-6},
            )
            if rate is not None:
                registry.evaluated(measured(rate))
    return tmp_path / "registry"


@pytest.fixture
def run(root: Path) -> Callable[..., str]:
    def call(*words: object) -> str:
        result = CliRunner().invoke(command, [str(word) for word in words], env={"COLUMNS": "160"})
        if isinstance(result.exception, FleetdraftError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return call


def test_list_tells_of_each_release_what_became_of_it(run, root) -> None:
    told = json.loads(run("list", root, "--json"))
    assert (told["schema"], told["registry"]) == (1, str(root))
    assert [line["status"] for line in told["releases"]] == [[], ["promoted"], ["blocked"], ["head"]]
    assert [line["acceptance"] for line in told["releases"]] == [{"spm": 0.4}, {"spm": 0.5}, {"spm": 0.2}, {}]
    assert [line["epsilon"] for line in told["releases"]] == [None, 0.5, 1.0, 1.5]
    third = told["releases"][3]
    assert (third["round"], third["parent"], third["accepted"], third["left_out"]) == (3, 1, 2, 3)
    assert len(json.loads(run("list", root, "--last", 2, "--json"))["releases"]) == 2


def test_list_is_a_table_for_people(run, root) -> None:
    shown = run("list", root)
    assert "1970-01-02 00:00" in shown
    assert "release 2: blocked: spm lowered (0.500 to 0.200): by more than 5%, at 95% confidence" in shown


def test_show_tells_where_a_release_comes_from_and_compares_it_with_the_promoted_one(run, root) -> None:
    told = json.loads(run("show", root, 2, "--json"))
    assert (told["parent"], told["participants"], told["compared_with"]) == (1, 2, 1)
    assert told["rejected"] == {"norm is …, expected <= …": 2, "late": 1}
    assert told["privacy"] == {"epsilon": 1.0, "delta": 1e-6}
    family = told["families"]["spm"]
    assert (family["acceptance"], family["promoted"], family["acceptance_in_training"]) == (0.2, 0.5, 0.45)
    assert family["difference"] == pytest.approx(-0.3)
    assert [event["kind"] for event in told["events"]] == ["released", "evaluated", "blocked"]
    assert "ε 1 at δ 1e-06" in run("show", root, 2)


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("show", "1"), ("show", "1", "--json")])
def test_nothing_shown_names_a_device(run, root, words) -> None:
    assert SECRET not in run(words[0], root, *words[1:])


def test_diff_is_that_of_the_weights(run, root, layout) -> None:
    told = json.loads(run("diff", root, 1, 3, "--json"))
    with Registry(root, layout, "base") as registry:
        first, second = (registry.read(lineage).adapter for lineage in registry.history()[1:])
    apart = {key: second.changes[key].dense() - first.changes[key].dense() for key in first.changes}
    whole = sum(float((value.astype(float) ** 2).sum()) for value in apart.values()) ** 0.5
    layer = sum(float((value.astype(float) ** 2).sum()) for (at, _), value in apart.items() if at == 0) ** 0.5
    assert told["total"]["all"]["difference"] == pytest.approx(whole, rel=1e-5)
    assert told["layers"]["0"]["difference"] == pytest.approx(layer, rel=1e-5)
    assert told["total"]["all"]["relative"] == pytest.approx(whole / told["total"]["all"]["first"])
    assert set(told["modules"]) == {name for _, name in first.changes}
    assert told["acceptance"] == {"spm": {"first": 0.5, "second": None, "difference": None}}


def test_a_release_does_not_differ_from_itself(run, root) -> None:
    assert json.loads(run("diff", root, "head", "head", "--json"))["total"]["all"]["difference"] == 0.0


def test_promote_puts_a_release_in_force_and_leaves_the_head(run, root) -> None:
    assert json.loads(run("promote", root, 3, "--json")) == {
        "schema": 1, "registry": str(root), "release": 3, "changed": True,
    }  # fmt: skip
    assert run("promote", root, 3) == "release 3 is already promoted\n"
    assert statuses(run, root) == [[], [], ["blocked"], ["head", "promoted"]]


def test_a_blocked_release_is_promoted_only_by_force_and_for_a_reason(run, root) -> None:
    for words in ((), ("--force",), ("--reason", "mine")):
        with pytest.raises(UserError, match="release 2 is blocked: spm lowered .* give --force and --reason TEXT"):
            run("promote", root, 2, *words)
    run("promote", root, 2, "--force", "--reason", "the target is retired")
    assert statuses(run, root)[2] == ["promoted"]
    assert "by the operator: the target is retired" in run("show", root, 2)


def test_rollback_puts_the_release_before_in_force_and_the_next_round_starts_there(run, root, layout) -> None:
    assert run("rollback", root, "--reason", "complaints") == "release 0 is now promoted and the head\n"
    with Registry(root, layout, "base") as registry:
        assert (registry.head().number, registry.promoted().number) == (0, 0)
        assert registry.last_round() == 3
        assert registry.privacy() == {"epsilon": 1.5, "delta": 1e-6}
        after = registry.write(
            grown(registry.head().adapter, 1.0), round=4, rule="fedit", participants=(), rejected={}, families={}
        )
    assert after.number == 4
    assert json.loads(run("show", root, 4, "--json"))["parent"] == 0


def test_a_rollback_can_be_undone_and_nothing_is_forgotten(run, root) -> None:
    before = json.loads(run("list", root, "--json"))
    run("rollback", root)
    with pytest.raises(UserError, match="no release was in force before the present one; name one with --to N"):
        run("rollback", root)
    run("rollback", root, "--to", 3)
    run("promote", root, 1)
    assert json.loads(run("list", root, "--json")) == before
    kinds = [event["kind"] for event in json.loads(run("show", root, 1, "--json"))["events"]]
    assert kinds == ["released", "evaluated", "promoted", "promoted"]


def test_nobody_goes_back_to_a_blocked_release(run, root) -> None:
    with pytest.raises(UserError, match="release 2 is blocked"):
        run("rollback", root, "--to", 2)


def test_decisions_wait_for_no_run_at_work(run, root, layout) -> None:
    with Registry(root, layout, "base") as registry:
        registry.begin(layout.initial(seed=0))
        for words in (("promote", root, 3), ("rollback", root)):
            with pytest.raises(RegistryError, match=f"is in use by process {os.getpid()}; end that one"):
                run(*words)
        assert statuses(run, root)[3] == ["head"]
    run("promote", root, 3)


def test_a_blocked_release_is_exported_only_by_force(run, root, tmp_path) -> None:
    with pytest.raises(UserError, match="release 2 is blocked"):
        run("export", root, 2, "--out", tmp_path / "out")
    run("export", root, 2, "--out", tmp_path / "out", "--force")


def test_an_export_is_the_release_and_names_no_device(run, root, tmp_path, layout) -> None:
    run("export", root, "head", "--out", tmp_path / "out", "--base", "models/drafter")
    exported = LoraAdapter.load(tmp_path / "out", layout, "base")
    with Registry(root, layout, "base") as registry:
        assert exported.digest == registry.head().adapter.digest
    assert not [path for path in (tmp_path / "out").iterdir() if SECRET in path.read_text(errors="replace")]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "models/drafter"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("show ROOT 9", "has no release 9, expected 0 to 3"),
        ("show ROOT newest", "release is 'newest', expected a number, 'head' or 'promoted'"),
        ("list PARENT", "is no registry: there is no release in it; did you mean PARENT/registry?"),
        ("list PARENT/none", "is no registry: there is no release in it; give the registry of a run"),
        ("export ROOT 1 --out ROOT/releases/x", "lies in the registry"),
        ("export ROOT 1 --out PARENT", "holds something else"),
    ],
)
def test_a_mistake_is_told_in_one_line(run, root, words, told) -> None:
    def filled(text: str) -> str:
        return text.replace("PARENT", str(root.parent)).replace("ROOT", str(root))

    with pytest.raises(UserError) as caught:
        run(*filled(words).split())
    assert filled(told) in str(caught.value)
    assert "\n" not in str(caught.value)


def statuses(run, root: Path) -> list[list[str]]:
    return [line["status"] for line in json.loads(run("list", root, "--json"))["releases"]]


def test_each_subcommand_explains_itself_with_examples() -> None:
    group = typer.main.get_group(command)
    assert list(group.commands) == ["list", "show", "diff", "promote", "rollback", "verify", "export"]
    for name in group.commands:
        shown = CliRunner().invoke(command, [name, "--help"]).output
        assert f"fleetdraft registry {name} my-run/registry" in shown
