"""A way to draft that is evaluated: an adapter, the paths, the controller and the draft length. It opens nothing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...common.errors import ConfigError
from ..decoding.options import MAX_DRAFT_TOKENS
from ..pacing.controllers import checked_controller
from ..spelling.tokenizer_pair import PathKind, path_kind
from . import fields

NONE = "none"
"""Name of the drafter as shipped, which every evaluation has unless it is told not to."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """adapter: a PEFT directory, empty for none; ``{target}`` and ``{task}`` in it stand for those being measured.

    Raises:
      ConfigError: a value that is none.
    """

    name: str = NONE
    adapter: str = ""
    paths: str = "full"
    controller: str = "fixed"
    draft_tokens: int = 4

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a method has no name, expected NAME:adapter=DIR,paths=…")
        if "=" in self.name:
            raise ConfigError(f"a method's name is {self.name!r}, expected no '='; did you mean --adapter NAME=DIR?")
        path_kind(self.paths)
        checked_controller(self.controller)
        if not 1 <= self.draft_tokens <= MAX_DRAFT_TOKENS:
            raise ConfigError(f"draft_tokens is {self.draft_tokens}, expected 1 to {MAX_DRAFT_TOKENS}")

    @property
    def path_kind(self) -> PathKind:
        """Which of the target's tokens may be drafted."""
        return path_kind(self.paths)

    @property
    def by_clock(self) -> bool:
        """Whether the clock decides how much is drafted: then no second run gives the same figures."""
        return self.controller != "fixed"

    def adapter_for(self, target: str, task: str) -> Path | None:
        """The adapter's directory for one target and task; None for the initial one."""
        return Path(self.adapter.replace("{target}", target).replace("{task}", task)) if self.adapter else None

    def place(self, target: str, task: str) -> str:
        """What its adapter for one target and task is told by."""
        return f"{self.name} · {target} · {task}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Method":
        """Reads what ``to_json`` gave; may raise ``DAMAGED`` (``fields.py``) and ``ConfigError``."""
        kept: dict[str, Any] = {
            key: fields.count(each) if key == "draft_tokens" else fields.text(each) for key, each in value.items()
        }
        return cls(**kept)

    @classmethod
    def parse(cls, text: str, shared: "Method") -> "Method":
        """Reads ``NAME:KEY=VALUE,…``; what is not given is as in ``shared``.

        Raises:
          ConfigError: no colon, an unknown key, or a value that is none.
        """
        name, colon, rest = text.partition(":")
        if not colon and "=" not in text:
            raise ConfigError(
                f"--method is {text!r}, expected NAME:KEY=VALUE,…; to draft as in the options, give '{text}:'"
            )
        values: dict[str, Any] = {"name": name}
        for item in filter(None, rest.split(",")):
            key, given, value = item.partition("=")
            if key not in _KEYS or not given:
                raise ConfigError(f"--method {text}: {item!r} is no setting, expected {', '.join(_KEYS)} with =VALUE")
            if not value:
                raise ConfigError(f"--method {text}: {key} is empty, expected a value; to have none, leave it out")
            values[_KEYS[key]] = _number(text, value) if key == "draft-tokens" else value
        try:
            return replace(shared, **values)
        except ConfigError as error:
            raise ConfigError(f"--method {text}: {error}") from error


_KEYS = {"adapter": "adapter", "paths": "paths", "controller": "controller", "draft-tokens": "draft_tokens"}


def _number(text: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigError(f"--method {text}: draft-tokens is {value!r}, expected a number")
    return int(value)
