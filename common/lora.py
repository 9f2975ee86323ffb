"""A LoRA adapter for every projection of a decoder: layout, arithmetic, files with fingerprints. It knows no trainer.

``A`` is (rank, in), ``B`` is (out, rank); a projection computes ``x W^T + alpha/rank * (x A^T) B^T``.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import FingerprintError, ModelError
from .files import directory_written_whole, write_atomic, write_json
from .low_rank import LowRank
from .peft_format import (
    CONFIG,
    TENSORS,
    PeftConfig,
    Projection,
    float_matrix,
    module_name,
    plain_config,
    read_object,
    read_tensors,
    tensor_name,
)
from .shape import PROJECTIONS, DecoderShape

Arrays = dict[str, NDArray[np.float32]]
ABOUT = "fleetdraft.json"
"""What is beside PEFT's own files: fingerprints, digest, lineage."""


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

    def read(self, data: bytes) -> "LoraAdapter":
        """The adapter of this layout whose ``LoraAdapter.to_bytes`` is ``data``, bit for bit.

        Raises:
          ModelError: damaged, of another layout, or with values that are no finite float32.
        """
        try:
            arrays = load(data)
        except (SafetensorError, ValueError) as error:
            raise ModelError(f"an adapter is damaged: {str(error).splitlines()[0]}; begin without it") from error
        if {name: value.shape for name, value in arrays.items()} != self.shapes:
            raise ModelError("an adapter is of another rank or drafter; begin without it")
        if not all(value.dtype == np.float32 and np.isfinite(value).all() for value in arrays.values()):
            raise ModelError("an adapter holds values that are no finite float32; begin without it")
        return LoraAdapter(layout=self, arrays={name: arrays[name] for name in self.shapes})


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

    def beside(self, other: "LoraAdapter") -> "LoraAdapter":
        """Both at once: changes each weight by what this adapter adds plus what ``other`` adds.

        Guarantees:
          - Of rank ``self.rank + other.rank``, with the scaling of this adapter's layout.
          - This adapter's factors come first, bit for bit; then those of ``other``, its B times the ratio of scalings.

        Raises:
          ModelError: the two are for decoders of different shapes.
        """
        layout, ratio = self.layout, np.float32(other.layout.scaling / self.layout.scaling)
        if other.layout.shape != layout.shape:
            raise ModelError("the adapters are for decoders of different shapes, expected one; use those of one base")
        rank = layout.rank + other.layout.rank
        arrays = {
            n: np.concatenate([v, other.arrays[n]])
            if n.endswith(".A")
            else np.concatenate([v, ratio * other.arrays[n]], axis=1)
            for n, v in self.arrays.items()
        }
        return LoraAdapter(layout=replace(layout, rank=rank, alpha=layout.scaling * rank), arrays=arrays)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over layout and values."""
        digest = hashlib.sha256(self.layout.fingerprint.encode())
        for name in self.layout.shapes:
            digest.update(np.ascontiguousarray(self.arrays[name], dtype="<f4").tobytes())
        return digest.hexdigest()

    @property
    def changes_nothing(self) -> bool:
        """Whether all that it adds is zero, as of ``LoraLayout.initial``."""
        return not any(value.any() for name, value in self.arrays.items() if name.endswith(".B"))

    @property
    def changes(self) -> dict[Projection, LowRank]:
        """What the adapter adds to each projection's weight."""
        found = {}
        for layer in range(self.layout.shape.layers):
            for name in PROJECTIONS:
                a, b = (self.arrays[f"lora.{layer}.{name}.{factor}"] for factor in "AB")
                found[layer, name] = LowRank(a=a, b=b, scaling=self.layout.scaling)
        return found

    def cut(self, layout: LoraLayout) -> "tuple[LoraAdapter, float]":
        """(its best approximation in a layout of smaller rank, what that lacks: a share, in the Frobenius norm).

        Raises:
          ModelError: ``layout`` is for a decoder of another shape.
        """
        if layout.shape != self.layout.shape:
            raise ModelError("the layout is for a decoder of another shape, expected the adapter's; use its own bundle")
        ratio, arrays, lost, whole = np.float32(self.layout.scaling / layout.scaling), Arrays(), 0.0, 0.0
        for (layer, name), change in self.changes.items():
            found = change.truncated(layout.rank)
            arrays[f"lora.{layer}.{name}.A"], arrays[f"lora.{layer}.{name}.B"] = found.change.a, ratio * found.change.b
            lost, whole = lost + found.lost, whole + found.whole
        return LoraAdapter(layout=layout, arrays=arrays), sqrt(lost / whole) if whole else 0.0

    def to_bytes(self) -> bytes:
        """The tensors alone; ``LoraLayout.read`` reads them."""
        return save({name: np.ascontiguousarray(value) for name, value in self.arrays.items()})

    def merged(self, weights: Mapping[str, NDArray[np.float32]]) -> Arrays:
        """A decoder's weights with the adapter added to them; what is no projection, a bias for example, stays."""
        changed = {f"{module_name(key)}.weight": change for key, change in self.changes.items()}
        return {name: v + changed[name].dense() if name in changed else v for name, v in weights.items()}

    def save(
        self, directory: Path, base_fingerprint: str, extra: Mapping[str, Any] | None = None, base_model: str = ""
    ) -> None:
        """Writes a PEFT directory, atomically as a whole.

        Args:
          directory: replaced if it exists and this project wrote it.
          base_fingerprint: of the drafter's weights that the adapter was trained on; checked by ``load``.
          extra: further keys for ``fleetdraft.json``.
          base_model: name or path of the base for those who open the directory with PEFT.
        """
        with directory_written_whole(Path(directory), ABOUT) as scratch:
            tensors = {_peft_name(n): np.ascontiguousarray(v) for n, v in self.arrays.items()}
            write_atomic(scratch / TENSORS, save(tensors, metadata={"format": "pt"}))
            write_json(scratch / CONFIG, plain_config(self.layout.rank, self.layout.alpha, base_model))
            about = {"schema": 1, "base": base_fingerprint, "layout": self.layout.fingerprint, "digest": self.digest}
            write_json(scratch / ABOUT, about | dict(extra or {}))

    @classmethod
    def load(cls, directory: Path, layout: LoraLayout, base_fingerprint: str) -> "LoraAdapter":
        """Reads a directory that ``save`` wrote and that fits ``layout``.

        Raises:
          ModelError: not such a directory, a torn one, or its settings ask for something else than plain LoRA.
          FingerprintError: made for another base, rank, alpha or shape.
        """
        directory = Path(directory)
        if (directory / CONFIG).is_file() and not (directory / ABOUT).is_file():
            raise ModelError(
                f"{directory} is not an adapter directory of this project: no {ABOUT} in it, which says what it fits; "
                f"for one made with PEFT run: fleetdraft adapter import {directory} --bundle BUNDLE --out DIR"
            )
        tensors = read_tensors(directory)
        about = read_object(directory / ABOUT)
        _check_settings(PeftConfig.read(directory), directory, layout)
        _check_fingerprints(directory, about, layout, base_fingerprint)
        adapter = cls(layout=layout, arrays=_from_peft(tensors, layout, directory))
        _check_content(adapter, about, directory)
        return adapter


def _peft_name(name: str) -> str:
    _, layer, projection, factor = name.split(".")
    return tensor_name((int(layer), projection), factor)


def _from_peft(tensors: Mapping[str, NDArray[Any]], layout: LoraLayout, directory: Path) -> Arrays:
    arrays: Arrays = {}
    for name, size in layout.shapes.items():
        value = tensors.get(_peft_name(name))
        if value is None or value.shape != size:
            given = "nothing" if value is None else value.shape
            raise FingerprintError(f"{directory}: tensor {_peft_name(name)} is {given}, expected {size}")
        arrays[name] = float_matrix(_peft_name(name), value, directory)
    return arrays


def _check_settings(config: PeftConfig, directory: Path, layout: LoraLayout) -> None:
    """PEFT would compute what this project does: every projection adapted, with the layout's rank and scaling."""
    for projection in ((layer, name) for layer in range(layout.shape.layers) for name in PROJECTIONS):
        where = f"{directory}/{CONFIG}: {module_name(projection)}"
        if not config.adapts(projection):
            raise FingerprintError(f"{where} is left out, expected every projection; write the settings as saved")
        rank, scaling = config.rank_of(projection), config.scaling(projection)
        if (rank, scaling) != (layout.rank, layout.scaling):
            raise FingerprintError(
                f"{where} has rank {rank} and scaling {scaling:g}, expected rank {layout.rank} and scaling "
                f"{layout.scaling:g}; 'fleetdraft adapter import' converts an adapter whose settings are as saved"
            )


def _check_fingerprints(directory: Path, about: Mapping[str, Any], layout: LoraLayout, base_fingerprint: str) -> None:
    for key, expected in (("base", base_fingerprint), ("layout", layout.fingerprint)):
        if about.get(key) != expected:
            raise FingerprintError(
                f"{directory}: {key} fingerprint is {str(about.get(key))[:12]}…, this bundle's is {expected[:12]}…; "
                "the adapter was made for another drafter"
            )


def _check_content(adapter: LoraAdapter, about: Mapping[str, Any], directory: Path) -> None:
    expected = about.get("digest")
    if expected != adapter.digest:
        raise ModelError(f"{directory}: content does not match its digest {str(expected)[:12]}…; the files are damaged")
