"""The runtimes of targets, by name in one table: how each recognises what it runs, and opens it.

Each is imported when a target of its kind is opened, so an extra that is not installed costs nothing and is named in
one line when it is needed. The name ``onnx`` is not in the table: its graph comes from a bundle (``bundle.py``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...common.errors import ConfigError, MissingExtraError, ModelError
from .decoder import Decoder

ONNX = "onnx"
"""The runtime of the bundle's own graphs."""


class TargetModel(Protocol):
    """A target's weights, opened once for any number of contexts."""

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""

    @property
    def limit(self) -> int:
        """The longest context in tokens."""

    @property
    def directory(self) -> Path:
        """Where a tokenizer of its own would be."""

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """What each token spells by the model's own file, a special one its name; empty where the file tells not."""

    def context(self) -> Decoder:
        """An empty context."""


@dataclass(frozen=True, kw_only=True)
class TargetRuntime:
    """One runtime.

    extra: what to install. path: what it opens, in words. fetches: whether that may be elsewhere.
    recognises: whether a path is meant for it alone.
    load: imports what it needs, which may raise ``ModuleNotFoundError``, and returns what opens a path with so many
      threads, which may raise that and ``ModelError``.
    """

    extra: str
    path: str
    fetches: bool = False
    recognises: Callable[[Path], bool]
    load: Callable[[], Callable[[Path, int], TargetModel]]


def _transformers() -> Callable[[Path, int], TargetModel]:
    from .transformers_decoder import TransformersModel

    return TransformersModel


def _genai() -> Callable[[Path, int], TargetModel]:
    from .genai_decoder import GenaiModel

    return GenaiModel


def _llamacpp() -> Callable[[Path, int], TargetModel]:
    from .llamacpp_decoder import LlamaCppModel

    return LlamaCppModel


TARGET_RUNTIMES = {
    "transformers": TargetRuntime(
        extra="transformers",
        path="a Hugging Face directory or the name of a model on its hub",
        fetches=True,
        recognises=lambda path: False,  # such a directory is ONNX Runtime's too, which is faster
        load=_transformers,
    ),
    "genai": TargetRuntime(
        extra="genai",
        path="a directory with a genai_config.json",
        recognises=lambda path: (path / "genai_config.json").is_file(),
        load=_genai,
    ),
    "llamacpp": TargetRuntime(
        extra="llamacpp",
        path="a GGUF file",
        recognises=lambda path: path.suffix == ".gguf",
        load=_llamacpp,
    ),
}
RUNTIME_NAMES = (ONNX, *TARGET_RUNTIMES)


def runtime_name(given: str | None, target: str | None) -> str:
    """The runtime that a user asked for, by default the one that recognises the target, else ONNX Runtime.

    Raises:
      ConfigError: there is none of that name.
    """
    if given is not None and given not in RUNTIME_NAMES:
        raise ConfigError(f"target_runtime is {given!r}, expected one of {', '.join(RUNTIME_NAMES)}")
    if given is not None or target is None:
        return given or ONNX
    return next((name for name, runtime in TARGET_RUNTIMES.items() if runtime.recognises(Path(target))), ONNX)


def target_path(name: str, target: str | None) -> Path:
    """What a user named as a target for a runtime of the table.

    Raises:
      ConfigError: nothing.
      ModelError: what is not there and cannot be fetched.
    """
    runtime = TARGET_RUNTIMES[name]
    if target is None:
        raise ConfigError(f"--target is not given, expected {runtime.path}, which --target-runtime {name} opens")
    if not runtime.fetches and not Path(target).exists():
        raise ModelError(f"no {target}, expected {runtime.path}, which --target-runtime {name} opens")
    return Path(target)


def open_target(name: str, target: str | None, threads: int) -> TargetModel:
    """Opens a target on a runtime of the table.

    Raises:
      ConfigError, ModelError: as ``target_path``, or the runtime cannot open it.
      MissingExtraError: the runtime is not installed.
    """
    path = target_path(name, target)
    with _extra_named(name):
        return TARGET_RUNTIMES[name].load()(path, threads)


def check_installed(name: str) -> None:
    """Returns if a runtime can be imported; opens no model.

    Raises:
      MissingExtraError: it is not installed.
    """
    if name != ONNX:
        with _extra_named(name):
            TARGET_RUNTIMES[name].load()


@contextmanager
def _extra_named(name: str) -> Iterator[None]:
    """A module that is missing becomes the extra that has it."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        raise MissingExtraError(f"--target-runtime {name}", TARGET_RUNTIMES[name].extra, module) from error
