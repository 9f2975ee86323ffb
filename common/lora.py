"""A LoRA adapter for every projection of a decoder: layout, arithmetic and files in PEFT format. It knows no trainer.

``A`` is (rank, in), ``B`` is (out, rank); a projection computes ``x W^T + alpha/rank * (x A^T) B^T``.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from .errors import FingerprintError, ModelError, UserError
from .files import directory_written_whole, read_json, write_atomic, write_json
from .shape import PROJECTIONS, DecoderShape

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class LoraLayout:
    """Which tensors an adapter has: rank, alpha and the decoder it fits."""

    rank: int
    alpha: float
    shape: DecoderShape

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name (``lora.{layer}.{projection}.A`` or ``.B``) to shape of every tensor, in the graphs' order."""
        shapes: dict[str, tuple[int, int]] = {}
        for layer in range(self.shape.layers):
            for projection in PROJECTIONS:
                rows, cols = self.shape.projection_size(projection)
                shapes[f"lora.{layer}.{projection}.A"] = (self.rank, cols)
                shapes[f"lora.{layer}.{projection}.B"] = (rows, self.rank)
        return shapes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over rank, alpha and shape: two adapters add only if these agree."""
        value = {"rank": self.rank, "alpha": float(self.alpha), "shape": self.shape.to_json()}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def initial(self, seed: int) -> "LoraAdapter":
        """The adapter that changes nothing: A uniform as in PEFT (Kaiming, a = sqrt 5), B zero."""
        rng = np.random.default_rng(seed)
        arrays = {
            name: (rng.uniform(-1, 1, size) / np.sqrt(size[1])).astype(np.float32)
            if name.endswith(".A")
            else np.zeros(size, np.float32)
            for name, size in self.shapes.items()
        }
        return LoraAdapter(layout=self, arrays=arrays)


@dataclass(frozen=True, kw_only=True)
class LoraAdapter:
    """Tensors of one adapter. Treat the arrays as read-only; every operation returns a new adapter."""

    layout: LoraLayout
    arrays: Arrays

    def plus(self, delta: Mapping[str, NDArray[np.float32]]) -> "LoraAdapter":
        """This adapter with ``delta`` added tensor by tensor; names absent from ``delta`` stay."""
        added = {n: v + delta[n] if n in delta else v for n, v in self.arrays.items()}
        return LoraAdapter(layout=self.layout, arrays=added)

    def minus(self, other: "LoraAdapter") -> Arrays:
        """The update that takes ``other`` to this adapter."""
        return {n: v - other.arrays[n] for n, v in self.arrays.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over layout and values."""
        digest = hashlib.sha256(self.layout.fingerprint.encode())
        for name in self.layout.shapes:
            digest.update(np.ascontiguousarray(self.arrays[name], dtype="<f4").tobytes())
        return digest.hexdigest()

    def save(self, directory: Path, base_fingerprint: str, extra: Mapping[str, Any] | None = None) -> None:
        """Writes a PEFT directory, atomically as a whole.

        Args:
          directory: replaced if it exists.
          base_fingerprint: of the drafter's weights that the adapter was trained on; checked by ``load``.
          extra: further keys for ``fleetdraft.json``.
        """
        with directory_written_whole(Path(directory), "adapter_config.json") as scratch:
            tensors = {_peft_name(n): np.ascontiguousarray(v) for n, v in self.arrays.items()}
            write_atomic(scratch / "adapter_model.safetensors", save(tensors))
            write_json(scratch / "adapter_config.json", self._peft_config())
            about = {"schema": 1, "base": base_fingerprint, "layout": self.layout.fingerprint, "digest": self.digest}
            write_json(scratch / "fleetdraft.json", about | dict(extra or {}))

    @classmethod
    def load(cls, directory: Path, layout: LoraLayout, base_fingerprint: str) -> "LoraAdapter":
        """Reads a PEFT directory that fits ``layout``.

        Raises:
          ModelError: not an adapter directory, or a torn one.
          FingerprintError: made for another base, rank, alpha or shape.
        """
        directory = Path(directory)
        if not (directory / "adapter_model.safetensors").is_file():
            raise ModelError(f"{directory} is not an adapter directory: no adapter_model.safetensors in it")
        _check_fingerprints(directory, layout, base_fingerprint)
        try:
            tensors = load_file(directory / "adapter_model.safetensors")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{directory}/adapter_model.safetensors cannot be read: {error}") from error
        adapter = cls(layout=layout, arrays=_from_peft(tensors, layout, directory))
        _check_content(adapter, directory)
        return adapter

    def _peft_config(self) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.layout.rank,
            "lora_alpha": self.layout.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": list(PROJECTIONS),
            "base_model_name_or_path": "",
        }


def _peft_name(name: str) -> str:
    _, layer, projection, factor = name.split(".")
    return f"base_model.model.model.layers.{layer}.{PROJECTIONS[projection]}.{projection}.lora_{factor}.weight"


def _from_peft(tensors: Mapping[str, NDArray[Any]], layout: LoraLayout, directory: Path) -> Arrays:
    arrays: Arrays = {}
    for name, size in layout.shapes.items():
        value = tensors.get(_peft_name(name))
        if value is None or value.shape != size:
            given = "nothing" if value is None else value.shape
            raise FingerprintError(f"{directory}: tensor {_peft_name(name)} is {given}, expected {size}")
        arrays[name] = value.astype(np.float32)
    return arrays


def _check_fingerprints(directory: Path, layout: LoraLayout, base_fingerprint: str) -> None:
    config, about = (_read_object(directory / name) for name in ("adapter_config.json", "fleetdraft.json"))
    if (config.get("r"), config.get("lora_alpha")) != (layout.rank, layout.alpha):
        raise FingerprintError(
            f"{directory}: adapter has rank {config.get('r')} and alpha {config.get('lora_alpha')}, "
            f"this bundle expects rank {layout.rank} and alpha {layout.alpha}"
        )
    for key, expected in (("base", base_fingerprint), ("layout", layout.fingerprint)):
        if about.get(key) != expected:
            raise FingerprintError(
                f"{directory}: {key} fingerprint is {str(about.get(key))[:12]}…, this bundle's is {expected[:12]}…; "
                "the adapter was made for another drafter"
            )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except UserError as error:
        raise ModelError(f"{path.parent} is not an adapter directory of this project: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is damaged: expected a JSON object")
    return value


def _check_content(adapter: LoraAdapter, directory: Path) -> None:
    expected = _read_object(directory / "fleetdraft.json").get("digest")
    if expected != adapter.digest:
        raise ModelError(f"{directory}: content does not match its digest {str(expected)[:12]}…; the files are damaged")
    if not all(np.isfinite(value).all() for value in adapter.arrays.values()):
        raise ModelError(f"{directory}: the adapter holds values that are not finite")
