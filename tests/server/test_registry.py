"""The registry: whole releases, their lineage, and what a kill or a flipped bit leaves behind."""

from pathlib import Path

import numpy as np
import pytest

from fleetdraft.common.errors import RegistryError
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.registry.directories import Directories
from fleetdraft.server.registry.index import Index
from fleetdraft.server.registry.lineage import Lineage
from fleetdraft.server.registry.registry import Registry

LINEAGE = {
    "rule": "fedit",
    "participants": ("ann", "bob"),
    "rejected": {"eve": "norm is 99"},
    "families": {"spm": DraftCounters(drafted=10, accepted=4)},
}


@pytest.fixture
def registry(tmp_path, layout) -> Registry:
    registry = Registry(tmp_path, layout, "base")
    registry.begin(layout.initial(seed=0))
    return registry


def changed(adapter: LoraAdapter) -> LoraAdapter:
    return adapter.plus({name: np.full(shape, 0.5, np.float32) for name, shape in adapter.layout.shapes.items()})


def step(registry: Registry, round: int):
    return registry.write(changed(registry.head().adapter), round=round, **LINEAGE)


def flip(file: Path) -> None:
    """Flips a bit."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_an_empty_registry_has_no_head(tmp_path, layout) -> None:
    registry = Registry(tmp_path, layout, "base")
    assert registry.is_empty
    with pytest.raises(RegistryError, match="holds no release yet"):
        registry.head()


@pytest.mark.parametrize("lost", [["index.sqlite"], ["index.sqlite", "HEAD"]])
def test_releases_without_an_index_are_damage_and_no_empty_registry(registry, tmp_path, layout, lost) -> None:
    """A registry that lost its index must not begin anew among its old releases."""
    step(registry, round=1)
    for name in lost:
        (tmp_path / name).unlink()
    with pytest.raises(RegistryError, match="has lost its index, .* verify .* --repair"):
        registry.begin(layout.initial(seed=0))


def test_what_is_written_is_read_back(registry, tmp_path, layout) -> None:
    written = step(registry, round=1)
    read = Registry(tmp_path, layout, "base").head()
    assert (read.number, read.base, read.adapter.digest) == (1, "base", written.adapter.digest)


def test_lineage_leads_from_the_first_release_to_the_head(registry) -> None:
    step(registry, round=1)
    step(registry, round=4)
    first, second, third = registry.history()
    assert [lineage.number for lineage in (first, second, third)] == [0, 1, 2]
    assert [lineage.round for lineage in (first, second, third)] == [0, 1, 4]
    assert (first.parent, second.parent, third.parent) == (None, first.digest, second.digest)
    assert {name: getattr(third, name) for name in LINEAGE} == LINEAGE


def test_every_release_in_the_history_can_be_read(registry) -> None:
    step(registry, round=1)
    assert [registry.read(lineage).number for lineage in registry.history()] == [0, 1]


def test_beginning_again_changes_nothing(registry, layout) -> None:
    head = step(registry, round=1)
    assert registry.begin(layout.initial(seed=9)).adapter.digest == head.adapter.digest


def test_a_kill_before_the_release_is_whole_leaves_the_old_head(registry, tmp_path, monkeypatch) -> None:
    before = registry.head()
    torn = tmp_path / "releases" / ".0001-abc.x1"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    assert registry.head().adapter.digest == before.adapter.digest
    step(registry, round=1)
    assert not torn.exists()


def test_a_release_that_cannot_be_saved_leaves_the_old_head(registry, tmp_path, monkeypatch) -> None:
    before, name = registry.head(), (tmp_path / "HEAD").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(LoraAdapter, "save", full)
        step(registry, round=1)
    assert (tmp_path / "HEAD").read_bytes() == name
    assert (registry.head().number, registry.head().adapter.digest) == (before.number, before.adapter.digest)


def test_a_release_that_cannot_be_entered_leaves_the_old_head(registry, tmp_path, monkeypatch) -> None:
    before = registry.head()

    def full(*_: object) -> None:
        raise RegistryError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(RegistryError, match="the disk is full"):
        patch.setattr(Index, "append", full)
        step(registry, round=1)
    assert registry.head().adapter.digest == before.adapter.digest
    assert len(list((tmp_path / "releases").iterdir())) == 1
    assert step(registry, round=1).number == 1


def test_what_a_kill_left_unentered_is_entered_by_the_next_writer(registry, tmp_path, layout) -> None:
    """The kill came when the release was whole and the index did not yet know it."""
    head = registry.lineage()
    adapter = changed(registry.head().adapter)
    lineage = Lineage(number=1, digest=adapter.digest, parent=head.digest, parent_number=0, round=1)
    Directories(tmp_path / "releases").write(adapter, "base", lineage, b"")
    registry.close()
    assert Registry(tmp_path, layout, "base").head().number == 0
    assert registry.begin(layout.initial(seed=0)).number == 1
    assert [lineage.number for lineage in registry.history()] == [0, 1]


def test_an_unentered_release_that_is_damaged_is_left_alone(registry, tmp_path, layout) -> None:
    head, adapter = registry.lineage(), changed(registry.head().adapter)
    lineage = Lineage(number=1, digest=adapter.digest, parent=head.digest, parent_number=0, round=1)
    Directories(tmp_path / "releases").write(adapter, "base", lineage, b"")
    flip(tmp_path / "releases" / lineage.directory / "adapter_model.safetensors")
    registry.close()
    assert registry.begin(layout.initial(seed=0)).number == 0
    assert step(registry, round=1).number == 2


def test_a_second_writer_is_told_so_in_one_line(registry, tmp_path, layout) -> None:
    other = Registry(tmp_path, layout, "base")
    with pytest.raises(RegistryError, match=r"cannot be changed now: .* is in use by process \d+; .*"):
        step(other, round=1)
    registry.close()
    assert step(other, round=1).number == 1


def test_what_belongs_to_a_release_is_read_back_with_it(registry, tmp_path, layout) -> None:
    registry.write(changed(registry.head().adapter), round=1, carried=b"moments", privacy={"epsilon": 1.5}, **LINEAGE)
    read = Registry(tmp_path, layout, "base")
    assert (read.carried(), read.privacy()) == (b"moments", {"epsilon": 1.5})
    step(registry, round=2)
    assert (read.carried(), read.privacy()) == (b"", None)


def test_damage_to_what_is_carried_is_found(registry, tmp_path) -> None:
    registry.write(changed(registry.head().adapter), round=1, carried=b"moments", **LINEAGE)
    flip(tmp_path / "releases" / registry.lineage().directory / "carried.bin")
    with pytest.raises(RegistryError, match="carried.bin: content does not match its digest"):
        registry.carried()


def test_a_registry_of_the_time_before_indices_is_read_and_gone_on_with(tmp_path, layout) -> None:
    write_old(tmp_path, layout)
    read = Registry(tmp_path, layout, "base")
    assert ([lineage.number for lineage in read.history()], read.carried(), read.privacy()) == ([0, 1], b"", None)
    assert read.last_round() == 3
    assert not (tmp_path / "index.sqlite").exists()
    assert step(read, round=4).number == 2
    assert [lineage.round for lineage in Registry(tmp_path, layout, "base").history()] == [0, 3, 4]


def write_old(root: Path, layout) -> None:
    """A registry of schema 1: HEAD and two releases, without what schema 2 added."""
    first = layout.initial(seed=0)
    second = changed(first)
    common = {"rule": "fedit", "participants": ["ann"], "rejected": {}, "families": {}}
    for number, adapter, parent, round in ((0, first, None, 0), (1, second, first.digest, 3)):
        lineage = {"number": number, "digest": adapter.digest, "parent": parent, "round": round} | common
        name = f"{number:04d}-{adapter.digest[:12]}"
        adapter.save(root / "releases" / name, "base", {"lineage": lineage})
        (root / "HEAD").write_text(f"{name}\n")


def test_a_flipped_bit_is_found(registry, tmp_path) -> None:
    step(registry, round=1)
    flip(tmp_path / "releases" / registry.lineage().directory / "adapter_model.safetensors")
    with pytest.raises(RegistryError, match="release 1 cannot be used"):
        registry.head()


def test_a_swapped_release_is_found(registry, tmp_path) -> None:
    """A whole, valid release in the place of another one."""
    step(registry, round=1)
    first, second = registry.history()
    releases = tmp_path / "releases"
    (releases / second.directory).rename(releases / "aside")
    (releases / first.directory).rename(releases / second.directory)
    with pytest.raises(RegistryError, match="describes 0000"):
        registry.lineage()


def test_a_missing_release_is_an_error_with_its_name(registry, tmp_path) -> None:
    name = registry.lineage().directory
    (tmp_path / "releases" / name).rename(tmp_path / "elsewhere")
    with pytest.raises(RegistryError, match=f"'{name}' is missing or damaged"):
        registry.head()


def test_another_base_is_refused(registry, tmp_path, layout) -> None:
    with pytest.raises(RegistryError, match="base fingerprint"):
        Registry(tmp_path, layout, "another").head()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"lineage": 3}', '{"lineage": {"number": 1}}'])
def test_damaged_lineage_is_an_error(registry, tmp_path, damage) -> None:
    (tmp_path / "releases" / registry.lineage().directory / "fleetdraft.json").write_text(damage)
    with pytest.raises(RegistryError, match="missing or damaged"):
        registry.lineage()
