"""The command that shows and purges a state."""

import io
import json
from pathlib import Path

import pytest
import typer

from fleetdraft.client.cli.state import state as command
from fleetdraft.client.state.state import State
from fleetdraft.common.errors import UserError
from fleetdraft.common.metrics import DraftCounters

COUNTERS = DraftCounters(prompts=3, tokens=100, target_calls=40, blocks=40, drafted=120, accepted=60, seconds=2.0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    with State.open(path, base="b" * 64, layout="l" * 64) as state:
        state.put("adapter/personal", b"secret" * 1000)
        state.put("counters/bbpe12k", json.dumps(COUNTERS.to_json()).encode())
        state.put("counters/odd\x1b\udcff", b"not JSON")
        state.add_lesson("bbpe12k", b"secret" * 10)
        state.add_lesson("bbpe12k", b"secret" * 20)
        state.add_decision(json.dumps({"what": "adapter rolled back", "why": "0.1 of 0.4"}).encode())
    return path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    typer.main.get_group(command).main(list(words), prog_name="state", standalone_mode=False)
    return capsys.readouterr().out


def test_json_tells_what_is_held_and_how_drafting_went(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(told(capsys, "show", str(directory), "--json"))
    assert (shown["schema"], shown["base"], shown["notices"]) == (1, "b" * 64, [])
    assert {blob["name"]: blob["size_bytes"] for blob in shown["blobs"]}["adapter/personal"] == 6000
    (shelf,) = shown["lessons"]
    assert (shelf["target"], shelf["lessons"], shelf["size_bytes"]) == ("bbpe12k", 2, 180)
    first, second = shown["acceptance"]
    assert (first["target"], first["draft_acceptance_rate"], first["mean_acceptance_length"]) == ("bbpe12k", 0.5, 2.5)
    assert first["counters"] == COUNTERS.to_json()
    assert second["counters"] == DraftCounters().to_json()
    (decision,) = shown["decisions"]
    assert (decision["what"], decision["why"]) == ("adapter rolled back", "0.1 of 0.4")


def test_the_table_shows_figures_and_nothing_of_the_content(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = told(capsys, "show", str(directory))
    for figure in ("adapter/personal", "6.0 kB", "0.500", "2.50", "adapter rolled back", "bbbbbbbbbbbb…"):
        assert figure in shown
    places = [shown.index(title) for title in ("acceptance", "newest 1 of 1 decisions", "lessons", "blobs")]
    assert places == sorted(places)
    assert all(len(line) <= 100 for line in shown.replace(str(directory), "").splitlines())
    assert "secret" not in shown
    assert "\x1b" not in shown


def test_purge_asks_unless_it_is_told_yes(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.confirm", refuse)
    assert told(capsys, "purge", str(directory)) == "nothing deleted\n"
    assert json.loads(told(capsys, "show", str(directory), "--json"))["blobs"]
    told(capsys, "purge", str(directory), "--yes")
    with pytest.raises(UserError, match="no state in"):
        told(capsys, "show", str(directory))


def refuse(question: str) -> bool:
    assert "everything learned" in question
    return False


def test_purge_at_the_end_of_input_deletes_nothing_and_says_so_on_a_line(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert told(capsys, "purge", str(directory)).splitlines()[-1] == "nothing deleted"
    assert json.loads(told(capsys, "show", str(directory), "--json"))["blobs"]


def test_purge_of_lessons_leaves_the_rest(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "purge", str(directory), "--lessons", "--yes")
    shown = json.loads(told(capsys, "show", str(directory), "--json"))
    assert (shown["lessons"], len(shown["blobs"])) == ([], 3)
