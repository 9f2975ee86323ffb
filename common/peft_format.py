"""A LoRA adapter directory in PEFT's format: settings, tensor names, factors. It knows no bundle and no fingerprint.

    adapter_config.json         rank, alpha and which modules are adapted
    adapter_model.safetensors   A (rank, in) and B (out, rank) of each

What is read computes what PEFT itself would compute from the directory; what cannot be read that way is refused.
Source: huggingface/peft 0.21, ``tuners/lora`` and ``tuners/tuners_utils.py``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError, UserError
from .files import read_json
from .low_rank import LowRank
from .shape import PROJECTIONS
from .weights import read_tensors_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
Projection = tuple[int, str]
"""Layer and name, such as (0, "q_proj")."""

#: Settings that are read, or that do not change what trained factors compute. All others must be off, known or not.
_READ = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "base_model_name_or_path", "peft_type", "bias", "init_lora_weights",
}  # fmt: skip
_HARMLESS = {
    "task_type", "auto_mapping", "revision", "peft_version", "inference_mode", "lora_dropout", "layers_pattern",
    "megatron_core", "loftq_config", "eva_config", "qalora_group_size",
}  # fmt: skip
#: Initialisations that leave the base as it is. The others (PiSSA, OLoRA, LoftQ …) adapt a base that they changed.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
#: Of a rank or an alpha: with more, no scaling is a float32.
_LARGEST = float(np.finfo(np.float32).max)
_NAME = re.compile(r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,5})\.(\w+)\.(\w+)\.lora_([AB])\.weight")


def module_name(projection: Projection) -> str:
    """The module of a Hugging Face decoder that owns a projection's weight and bias."""
    layer, name = projection
    return f"model.layers.{layer}.{PROJECTIONS[name]}.{name}"


def tensor_name(projection: Projection, factor: str) -> str:
    """PEFT's name of factor ``A`` or ``B``."""
    return f"base_model.model.{module_name(projection)}.lora_{factor}.weight"


def plain_config(rank: int, alpha: float, base_model: str) -> dict[str, Any]:
    """The settings of an adapter of every projection with one rank and ``scaling = alpha / rank``."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": list(PROJECTIONS),
        "base_model_name_or_path": base_model,
    }


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The settings that say what the factors compute.

    rank, alpha: where ``ranks`` and ``alphas`` (by pattern of whole module names) say nothing else.
    rslora: scaling is alpha / sqrt(rank) instead of alpha / rank.
    targets: a regular expression of whole module names, or ends of them; excluded likewise.
    layers: the adapted ones; None for all. base_model: name or path of the base, as its author wrote it.
    """

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: frozenset[int] | None
    base_model: str

    def rank_of(self, projection: Projection) -> int:
        return _by_pattern(self.ranks, projection, self.rank)

    def scaling(self, projection: Projection) -> float:
        rank, alpha = self.rank_of(projection), _by_pattern(self.alphas, projection, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def adapts(self, projection: Projection) -> bool:
        """Whether PEFT would put an adapter there."""
        name = module_name(projection)
        if _matches(self.excluded, name):
            return False
        if isinstance(self.targets, str):  # PEFT reads the layers only beside a list
            return self.targets == "all-linear" or _matches(self.targets, name)
        return _matches(self.targets, name) and (self.layers is None or projection[0] in self.layers)

    @classmethod
    def read(cls, directory: Path) -> "PeftConfig":
        """Reads ``adapter_config.json``.

        Raises:
          ModelError: there is none, it is damaged, or it asks for something else than plain LoRA.
        """
        path = Path(directory) / CONFIG
        config = read_object(path)
        _refuse_other_than_lora(config, path)
        try:
            return cls(
                rank=_positive(config["r"], int),
                alpha=_positive(config["lora_alpha"], float),
                rslora=bool(config.get("use_rslora")),
                ranks={_end_of_name(k): _positive(v, int) for k, v in (config.get("rank_pattern") or {}).items()},
                alphas={_end_of_name(k): _positive(v, float) for k, v in (config.get("alpha_pattern") or {}).items()},
                targets=_modules(config["target_modules"]),
                excluded=_modules(config.get("exclude_modules") or []),
                layers=_layers(config.get("layers_to_transform")),
                base_model=str(config.get("base_model_name_or_path") or ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, re.error) as error:
            raise ModelError(f"{path}: missing or malformed setting: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """A directory's settings, and the changes of its projections; a projection that is not named is not changed."""

    config: PeftConfig
    changes: Mapping[Projection, LowRank]

    @classmethod
    def read(cls, directory: Path) -> "PeftAdapter":
        """Reads a directory that PEFT, or this project, has written.

        Raises:
          ModelError: no such directory, damaged, or an adapter that is not LoRA of decoder projections.
        """
        directory = Path(directory)
        if not (directory / CONFIG).is_file():
            raise ModelError(f"{directory} is not an adapter directory: no {CONFIG} in it")
        config, tensors = PeftConfig.read(directory), read_tensors(directory)
        pairs: dict[Projection, dict[str, NDArray[np.float32]]] = {}
        for name, value in tensors.items():
            projection, factor = _parse(name, directory)
            if not config.adapts(projection):
                raise ModelError(f"{directory}: tensor {name} is of a module that target_modules leaves out")
            pairs.setdefault(projection, {})[factor] = float_matrix(name, value, directory)
        if not pairs:
            raise ModelError(f"{directory}/{TENSORS} holds no tensors")
        changes = {key: _change(key, pairs[key], config, directory) for key in sorted(pairs, key=_order)}
        return cls(config=config, changes=changes)


def read_tensors(directory: Path) -> dict[str, NDArray[np.generic]]:
    """Every tensor of ``adapter_model.safetensors``; BF16 as float32.

    Raises:
      ModelError: no such file, or one that cannot be read.
    """
    path = Path(directory) / TENSORS
    if path.is_file():
        return read_tensors_of(path)
    if (Path(directory) / "adapter_model.bin").is_file():
        raise ModelError(
            f"{directory} holds adapter_model.bin, a pickle, which could run any code and is not read; "
            "save it again with save_pretrained(…, safe_serialization=True)"
        )
    raise ModelError(f"{directory} is not an adapter directory: no {TENSORS} in it")


def float_matrix(name: str, value: NDArray[np.generic], directory: Path) -> NDArray[np.float32]:
    """A tensor of ``directory`` as a float32 matrix.

    Raises:
      ModelError: it is none, or holds a value that float32 has not.
    """
    if value.ndim != 2 or not np.issubdtype(value.dtype, np.floating):
        raise ModelError(f"{directory}: tensor {name} is {value.dtype} {value.shape}, expected a matrix of floats")
    with np.errstate(over="ignore"):  # an overflow is told below
        matrix = value.astype(np.float32)
    if not np.isfinite(matrix).all():
        raise ModelError(f"{directory}: tensor {name} holds values that are not finite in float32")
    return matrix


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object of an adapter directory.

    Raises:
      ModelError: missing, no JSON, or of another type.
    """
    try:
        value = read_json(path)
    except UserError as error:
        raise ModelError(str(error)) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is damaged: expected a JSON object")
    return value


def _refuse_other_than_lora(config: Mapping[str, Any], path: Path) -> None:
    for key, expected in (("peft_type", ("LORA",)), ("bias", ("none", None)), ("init_lora_weights", _INITIALISATIONS)):
        if config.get(key) not in expected:
            raise ModelError(f"{path}: {key} is {config.get(key)!r}, expected {expected[0]!r}: only plain LoRA is read")
    for key in sorted(config.keys() - _READ - _HARMLESS):
        if config[key]:
            raise ModelError(f"{path}: {key} is {str(config[key])[:60]!r}, expected none: only plain LoRA is read")


def _positive(value: Any, kind: type[int] | type[float]) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | kind) or not 0 < value <= _LARGEST:
        raise ValueError(f"{repr(value)[:60]} where a positive {kind.__name__} that float32 holds is expected")
    return kind(value)


def _pattern(text: str) -> str:
    return re.compile(text).pattern


def _end_of_name(text: str) -> str:
    """The expression that PEFT makes of a key of ``rank_pattern`` or ``alpha_pattern``; flags such as (?i) break it."""
    return _pattern(rf"(.*\.)?({text})$")


def _modules(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _pattern(value)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{value!r} where module names are expected")
    return tuple(value)


def _layers(value: Any) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    layers = value if isinstance(value, list) else [value]
    if not all(isinstance(layer, int) for layer in layers):
        raise ValueError(f"{value!r} where numbers of layers are expected")
    return frozenset(layers)


def _matches(modules: str | tuple[str, ...], name: str) -> bool:
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in modules)


def _by_pattern(values: Mapping[str, Any], projection: Projection, default: Any) -> Any:
    """The value of the first pattern that matches the module's name."""
    name = module_name(projection)
    return next((v for key, v in values.items() if re.match(key, name)), default)


def _parse(name: str, directory: Path) -> tuple[Projection, str]:
    match = _NAME.fullmatch(name)
    if match is None or PROJECTIONS.get(match[3]) != match[2]:
        raise ModelError(
            f"{directory}: tensor {name[:100]!r} is no LoRA factor of a decoder's projection; "
            f"only {', '.join(PROJECTIONS)} can be adapted"
        )
    return (int(match[1]), match[3]), match[4]


def _change(
    projection: Projection, pair: Mapping[str, NDArray[np.float32]], config: PeftConfig, directory: Path
) -> LowRank:
    given = {factor: value.shape for factor, value in pair.items()}
    rank, name = config.rank_of(projection), module_name(projection)
    if given.keys() != {"A", "B"} or not given["A"][0] == given["B"][1] == rank:
        raise ModelError(f"{directory}: {name} has factors {given}, expected A ({rank}, in) and B (out, {rank})")
    return LowRank(a=pair["A"], b=pair["B"], scaling=config.scaling(projection))


def _order(projection: Projection) -> tuple[int, int]:
    return projection[0], list(PROJECTIONS).index(projection[1])
