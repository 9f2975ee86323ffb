"""TOML files as frozen configs: every complaint is one line that names the file, the key and the expectation.

It knows no experiment; a config's own checks (``ConfigError``) pass through with the place in front.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from ..common.errors import ConfigError

T = TypeVar("T")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file; ``what`` names its kind in messages.

    Raises:
      ConfigError: unreadable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def parse(kind: type[T], table: Any, where: str) -> T:
    """Builds a config from a TOML table.

    Args:
      kind: a dataclass; its annotations say what each key holds.
      where: begins every message.

    Raises:
      ConfigError: a key is unknown, missing, or of the wrong type or value.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {type(table).__name__}, expected a table")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and name not in table:
            raise ConfigError(f"{where}: key {name!r} is missing")
    try:
        return kind(**{key: _typed(value, known[key].type, f"{where}: {key}") for key, value in table.items()})
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error


def parse_each(kind: type[T], tables: Any, where: str, name: str) -> tuple[T, ...]:
    """Builds one config per table of an array of tables ``[[name]]``.

    Raises:
      ConfigError: as ``parse``, or no array of tables.
    """
    if not isinstance(tables, list):
        raise ConfigError(f"{where}: {name} is {type(tables).__name__}, expected [[{name}]] tables")
    return tuple(parse(kind, table, f"{where}: [[{name}]] {number}") for number, table in enumerate(tables, 1))


def _typed(value: Any, expected: Any, where: str) -> Any:
    if isinstance(expected, type) and is_dataclass(expected) and not isinstance(value, expected):
        return parse(expected, value, where)
    if get_origin(expected) is tuple and isinstance(value, list):
        of = get_args(expected)[0]
        return tuple(_typed(each, of, f"{where} {number}") for number, each in enumerate(value, 1))
    if get_origin(expected) is tuple and not isinstance(value, tuple):
        raise ConfigError(f"{where} is {value!r}, expected an array")
    if expected is Path and isinstance(value, str):
        return Path(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected in (bool, int, float, str) and type(value) is not expected:
        raise ConfigError(f"{where} is {value!r}, expected {expected.__name__}")
    return value
