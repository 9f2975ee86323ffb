"""Settings files: what is read into which type, and complaints in words of the file."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.common.toml import parse, read_toml


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"rate is {self.rate}, expected a number >= 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    most: int | None = None
    loud: bool = False
    place: Path = Path("here")
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def read(text: str) -> Outer:
    return parse(Outer, tomllib.loads(text), "f.toml")


def test_tables_within_tables_become_configs_within_configs() -> None:
    config = read('count = 3\nmost = 4\nplace = "p"\nnames = ["a", "b"]\n[inner]\nrate = 2')
    assert config == Outer(count=3, most=4, place=Path("p"), names=("a", "b"), inner=Inner(rate=2.0))
    assert isinstance(config.inner.rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('count = "3"', 'f.toml: count is "3", expected a whole number'),
        ("count = true", "f.toml: count is true, expected a whole number"),
        ("count = 3.5", "f.toml: count is 3.5, expected a whole number"),
        ("count = 3\nmost = 1.5", "f.toml: most is 1.5, expected a whole number"),
        ("count = 3\nloud = 1", "f.toml: loud is 1, expected true or false"),
        ("count = 3\nplace = 4", 'f.toml: place is 4, expected a path in quotes ("…")'),
        ("count = 3\nnames = [1]", 'f.toml: names 1 is 1, expected text in quotes ("…")'),
        ('count = 3\nnames = "a"', 'f.toml: names is "a", expected a list in brackets ([…])'),
        ("count = 3\ninner = 4", "f.toml: inner is 4, expected a table"),
        ('count = 3\n[inner]\nrate = "fast"', 'f.toml: inner: rate is "fast", expected a number'),
        ("count = 3\n[inner]\nrate = -1", "f.toml: inner: rate is -1.0, expected a number >= 0"),
        ("count = 3\n[inner]\nrat = 1", "f.toml: inner: unknown key 'rat'; did you mean 'rate'?"),
        ("loud = true", "f.toml: key 'count' is missing"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value) == message


def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text("a = [", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_toml(tmp_path / "f.toml", "settings")
