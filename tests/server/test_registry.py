"""The registry: whole releases, their lineage, and what a kill or a flipped bit leaves behind."""

import os
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.common import files
from fleetdraft.common.errors import RegistryError
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.registry import Registry

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


def step(registry: Registry, round: int):
    adapter = registry.head().adapter
    delta = {name: np.full(shape, 0.5, np.float32) for name, shape in adapter.layout.shapes.items()}
    return registry.write(adapter.plus(delta), round=round, **LINEAGE)


def test_an_empty_registry_has_no_head(tmp_path, layout) -> None:
    registry = Registry(tmp_path, layout, "base")
    assert registry.is_empty
    with pytest.raises(RegistryError, match="HEAD, which names the current release, cannot be read"):
        registry.head()


def test_releases_without_a_head_are_damage_and_no_empty_registry(registry, tmp_path, layout) -> None:
    """A registry that lost its HEAD must not begin anew among its old releases."""
    step(registry, round=1)
    (tmp_path / "HEAD").unlink()
    with pytest.raises(RegistryError, match="HEAD"):
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


def test_a_kill_before_head_moves_leaves_the_old_head(registry, monkeypatch) -> None:
    before = registry.head()
    replace = os.replace

    def killed(source: str, target: Path) -> None:
        if Path(target).name == "HEAD":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "replace", killed)
        step(registry, round=1)
    assert registry.head().adapter.digest == before.adapter.digest
    assert step(registry, round=1).number == 1
    assert [lineage.number for lineage in registry.history()] == [0, 1]


def test_a_flipped_bit_is_found(registry, tmp_path) -> None:
    step(registry, round=1)
    file = tmp_path / "releases" / registry.lineage().directory / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
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
    (tmp_path / "HEAD").write_text("0007-nowhere\n")
    with pytest.raises(RegistryError, match="'0007-nowhere' is missing or damaged"):
        registry.head()


def test_another_base_is_refused(registry, tmp_path, layout) -> None:
    with pytest.raises(RegistryError, match="base fingerprint"):
        Registry(tmp_path, layout, "another").head()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"lineage": 3}', '{"lineage": {"number": 1}}'])
def test_damaged_lineage_is_an_error(registry, tmp_path, damage) -> None:
    (tmp_path / "releases" / registry.lineage().directory / "fleetdraft.json").write_text(damage)
    with pytest.raises(RegistryError, match="missing or damaged"):
        registry.lineage()
