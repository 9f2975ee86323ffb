"""TOML files as frozen configs: every complaint is one line that names the file, the key and the expectation.

It knows no config; a config's own checks (``ConfigError``) pass through with the place in front.
"""

import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError

T = TypeVar("T")

#: What a value of a type is called to people who do not write Python.
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: 'text in quotes ("…")',
    Path: 'a path in quotes ("…")',
}


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
      kind: a dataclass; its annotations say what each key holds. A field that is a dataclass is a table of its own.
      where: begins every message.

    Raises:
      ConfigError: a key is unknown, missing, or of the wrong type or value.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {_shown(table)}, expected a table")
    known, hints = {f.name: f for f in fields(kind)}, get_type_hints(kind)  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and name not in table:
            raise ConfigError(f"{where}: key {name!r} is missing")
    try:
        return kind(**{key: _typed(value, hints[key], f"{where}: {key}") for key, value in table.items()})
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error


def parse_each(kind: type[T], tables: Any, where: str, name: str) -> tuple[T, ...]:
    """Builds one config per table of an array of tables ``[[name]]``.

    Raises:
      ConfigError: as ``parse``, or no array of tables.
    """
    if not isinstance(tables, list):
        raise ConfigError(f"{where}: {name} is {_shown(tables)}, expected [[{name}]] tables")
    return tuple(parse(kind, table, f"{where}: [[{name}]] {number}") for number, table in enumerate(tables, 1))


def _typed(value: Any, expected: Any, where: str) -> Any:
    """``value`` as the annotation ``expected`` wants it; what no rule covers is left to the config's own checks."""
    if get_origin(expected) in (Union, types.UnionType):  # TOML has no null, so only the other type can be written
        expected = next(kind for kind in get_args(expected) if kind is not types.NoneType)
    if isinstance(expected, type) and is_dataclass(expected) and not isinstance(value, expected):
        return parse(expected, value, where)
    if get_origin(expected) is tuple and isinstance(value, list):
        of = get_args(expected)[0]
        return tuple(_typed(each, of, f"{where} {number}") for number, each in enumerate(value, 1))
    if get_origin(expected) is tuple and not isinstance(value, tuple):
        raise ConfigError(f"{where} is {_shown(value)}, expected a list in brackets ([…])")
    if expected is Path and isinstance(value, str):
        return Path(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected in _WORDS and type(value) is not expected and not (expected is Path and isinstance(value, Path)):
        raise ConfigError(f"{where} is {_shown(value)}, expected {_WORDS[expected]}")
    return value


def _shown(value: Any) -> str:
    """A value as a TOML file would hold it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return f'"{value}"' if isinstance(value, str) else str(value)
