"""Damage is found, named on a line, and deleted by nobody; a lost index is made anew from what is there."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import registry_writer as writer
from typer.testing import CliRunner

from fleetdraft.common.errors import RegistryError
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.cli_registry import registry as command
from fleetdraft.server.registry.catalogue import Catalogue
from fleetdraft.server.registry.verification import repair, verify


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rounds of the writer, by which 3 and 6 were blocked."""
    root = tmp_path_factory.mktemp("written")
    with writer.opened(root) as registry:
        registry.begin(writer.LAYOUT.initial(seed=0))
        for round in range(1, 9):
            writer.change(root, registry, round)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "registry")


def damage(root: Path, everything: bool = True) -> list[str]:
    found = [finding.what for finding in verify(Catalogue(root), everything) if finding.damage]
    assert not any("\n" in what for what in found)
    return found


def names(root: Path) -> list[str]:
    return list(Catalogue(root).standing().releases)


def flip(file: Path, at: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_sound_registry_has_no_finding(root) -> None:
    assert list(verify(Catalogue(root), everything=True)) == []


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "fleetdraft.json", "carried.bin"])
def test_a_changed_byte_in_any_file_of_any_release_is_found(root, file) -> None:
    path = root / "releases" / names(root)[3] / file
    # A digit, a letter or a tensor's byte: each leaves the file readable.
    text = path.read_bytes()
    flip(
        path, at={"adapter_config.json": text.find(b'"r": 2') + 5, "fleetdraft.json": text.find(b"fedit")}.get(file, -1)
    )
    assert any(str(path.parent) in what for what in damage(root))
    assert damage(root, everything=False) == []


def test_verify_reads_the_head_and_the_promoted_release_without_being_asked(root) -> None:
    head = Catalogue(root).standing().head
    flip(root / "releases" / str(head) / "adapter_model.safetensors")
    assert damage(root, everything=False)


def test_a_missing_release_is_found_also_by_its_children(root) -> None:
    shutil.rmtree(root / "releases" / names(root)[2])
    found = damage(root, everything=False)
    assert any("release '0002-" in what and "bring" in what for what in found)


def test_a_row_that_was_changed_or_taken_out_is_found(root) -> None:
    whole = (root / "index.sqlite").read_bytes()
    for statement in (
        "UPDATE events SET data = replace(data, '0.400', '0.900') WHERE kind = 'promoted'",
        "DELETE FROM events WHERE id = 9",
        "UPDATE events SET kind = 'promoted' WHERE kind = 'blocked'",
    ):
        (root / "index.sqlite").write_bytes(whole)
        with sqlite3.connect(root / "index.sqlite") as connection:
            assert connection.execute(statement).rowcount > 0
        connection.close()
        assert any("was changed or is missing; 'fleetdraft registry verify" in what for what in damage(root)), statement


@pytest.mark.parametrize("content", [b"", b"half", b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_index_is_an_error_in_one_line(root, content) -> None:
    (root / "index.sqlite").write_bytes(content)
    with pytest.raises(RegistryError, match=r"index.sqlite is damaged: [^\n]* --repair'[^\n]*$"):
        Catalogue(root).standing()


def test_a_flipped_bit_anywhere_in_the_index_is_told_in_a_line_or_changes_nothing(root) -> None:
    """SQLite has bytes that it does not use."""
    file = root / "index.sqlite"
    whole, events = file.read_bytes(), Catalogue(root).events()
    for at in range(0, len(whole), len(whole) // 97):
        flip(file, at)
        try:
            assert Catalogue(root).events() == events
        except RegistryError as error:
            assert "\n" not in str(error)
        file.write_bytes(whole)


def test_verify_changes_nothing(root) -> None:
    flip(root / "releases" / names(root)[1] / "carried.bin")
    (root / "index.sqlite").write_bytes(b"half")
    before = snapshot(root)
    assert damage(root)
    assert snapshot(root) == before


@pytest.mark.parametrize("lost", ["index", "index and HEAD"])
def test_a_lost_index_is_made_anew_with_what_is_lost_named(root, lost) -> None:
    releases, head = names(root), Catalogue(root).standing().head
    (root / "index.sqlite").unlink()
    if lost == "index and HEAD":
        (root / "HEAD").unlink()
        head = releases[-1]
    lines = repair(Catalogue(root))
    assert any(line.startswith("lost: ") for line in lines)
    now = Catalogue(root).standing()
    assert (list(now.releases), now.head, now.promoted, now.evaluations) == (releases, head, None, {})
    assert damage(root) == []


def test_a_reader_sees_what_was_added_and_another_index_as_a_whole(root, tmp_path) -> None:
    reader, old = Catalogue(root), (root / "index.sqlite").read_bytes()
    before = reader.events()
    with writer.opened(root) as registry:
        writer.change(root, registry, 9)
    assert reader.events()[: len(before)] == before
    assert reader.events() == Catalogue(root).events() != before
    (root / "index.sqlite").write_bytes(old)
    assert reader.events() == before
    (root / "index.sqlite").unlink()
    repair(Catalogue(root))
    assert reader.events() == Catalogue(root).events()


def test_an_index_made_anew_holds_damaged_releases_as_well_and_has_a_sound_head(root) -> None:
    releases = names(root)
    for number in (1, 8):
        flip(root / "releases" / releases[number] / "carried.bin")
    for name in ("index.sqlite", "HEAD"):
        (root / name).unlink()
    repair(Catalogue(root))
    assert (names(root), Catalogue(root).head().number) == (releases, 7)
    assert len(damage(root)) == 2


def test_a_damaged_index_keeps_what_is_sound_and_its_file(root) -> None:
    before = Catalogue(root).events()
    with sqlite3.connect(root / "index.sqlite") as connection:
        connection.execute("UPDATE events SET data = '{}' WHERE id = 12")
    connection.close()
    damaged = (root / "index.sqlite").read_bytes()
    repair(Catalogue(root))
    assert Catalogue(root).events()[:11] == before[:11]
    assert names(root) == [event.release for event in before if event.kind == "released"]
    assert (root / "index.sqlite.unusable-1").read_bytes() == damaged
    with writer.opened(root) as registry:
        writer.change(root, registry, 9)
    assert damage(root) == []


def test_a_sound_index_is_not_made_anew(root) -> None:
    before = snapshot(root)
    assert repair(Catalogue(root)) == ["the index is sound: nothing to repair"]
    assert snapshot(root) == before


def test_the_command_ends_with_1_on_damage_and_names_it(root) -> None:
    runner = CliRunner()
    assert runner.invoke(command, ["verify", str(root), "--all"]).exit_code == 0
    flip(root / "releases" / names(root)[1] / "carried.bin")
    result = runner.invoke(command, ["verify", str(root), "--all"])
    assert (result.exit_code, result.output.count("damage: ")) == (1, 1)
    told = json.loads(runner.invoke(command, ["verify", str(root), "--all", "--json"]).output)
    assert (told["sound"], len(told["findings"])) == (False, 1)
    assert runner.invoke(command, ["list", str(root)]).exit_code == 0


def test_a_damaged_release_is_listed_as_that_and_the_others_as_ever(root) -> None:
    (root / "releases" / names(root)[4] / "fleetdraft.json").write_text("half")
    lines = json.loads(CliRunner().invoke(command, ["list", str(root), "--json"]).output)["releases"]
    assert [line["number"] for line in lines if "damaged" in line["status"]] == [4]
    assert len(lines) == 9


_FULL = """
import resource, signal, sys
from pathlib import Path
import registry_writer as writer
registry = writer.opened(Path(sys.argv[1]))
registry.begin(writer.LAYOUT.initial(seed=0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
for what in (lambda: writer.change(Path(sys.argv[1]), registry, 100), lambda: registry.evaluated(writer.measured(0.2))):
    try:
        what()
        print("written")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("limit", [0, 4_096, 12_000])
def test_on_a_full_disk_the_old_release_stays(root, limit) -> None:
    """No file may grow beyond the limit: none at all, a release not, or the index not."""
    before, events = Catalogue(root).standing(), len(Catalogue(root).events())
    assert (root / "index.sqlite").stat().st_size > limit
    words = [sys.executable, "-c", _FULL, str(root), str(limit)]
    printed = subprocess.run(
        words, cwd=Path(writer.__file__).parent, capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()
    assert len(printed) == 2
    assert not any(line == "written" for line in printed)
    assert (Catalogue(root).standing(), len(Catalogue(root).events())) == (before, events)
    assert damage(root) == []
    with writer.opened(root) as registry:
        writer.change(root, registry, 9)
    assert damage(root) == []


def test_a_registry_that_cannot_be_written_is_read(root) -> None:
    """As on a medium that is read-only: no file is made, none changed."""
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        before = snapshot(root)
        assert damage(root) == []
        assert snapshot(root) == before
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_counters_of_a_verdict_survive_the_journal(root) -> None:
    now = Catalogue(root).standing()
    assert now.evaluations[names(root)[1]] == {"spm": DraftCounters(drafted=4000, accepted=1600, blocks=1000)}
