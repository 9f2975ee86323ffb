"""Adapters of any origin, made to fit a bundle: found in a format, its base judged, brought to the bundle's rank."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..common.bundle import BundleManifest, base_fingerprint
from ..common.errors import ConfigError, FingerprintError, ModelError
from ..common.lora import ABOUT, LoraAdapter, LoraLayout
from ..common.low_rank import LowRank
from ..common.peft_format import PeftAdapter, PeftConfig, Projection, module_name, read_object
from .base_match import matching_weights
from .onnx_adapter import OnnxAdapterFile

Verdict = Literal["fingerprint", "weights", "unverified"]
"""How an adapter's base was checked: by its fingerprint, by comparing the weights of a directory, or not at all."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An adapter as its files say it.

    changes: of projections; what is not named is not changed. base: fingerprint of its drafter, None if none is told.
    base_model: name or path of the base, as its author wrote it.
    """

    changes: Mapping[Projection, LowRank]
    base: str | None
    base_model: str = ""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An adapter in a bundle's layout.

    truncated: projections that lost rank. loss: of all changes together, relative in the Frobenius norm.
    """

    adapter: LoraAdapter
    truncated: int
    loss: float


def find_adapter(path: Path, manifest: BundleManifest) -> Found:
    """Reads a PEFT directory, one of this project (its digest is checked), or an ``.onnx_adapter`` of the bundle.

    Raises:
      ModelError: none of them, damaged, or an adapter that is not plain LoRA of decoder projections.
      FingerprintError: an ``.onnx_adapter`` for another bundle, or an adapter of another shape.
    """
    if path.is_file():
        adapter = OnnxAdapterFile.read(path).adapter(path, manifest.layout, manifest.base)
        return Found(changes=adapter.changes, base=manifest.base)
    if not (path / ABOUT).is_file():
        foreign = PeftAdapter.read(path)
        return Found(changes=foreign.changes, base=None, base_model=foreign.config.base_model)
    config, base = PeftConfig.read(path), str(read_object(path / ABOUT).get("base"))
    layout = replace(manifest.layout, rank=config.rank, alpha=config.alpha)
    adapter = LoraAdapter.load(path, layout, base)
    return Found(changes=adapter.changes, base=base, base_model=config.base_model)


def judge_base(found: Found, bundle: Path, manifest: BundleManifest, original: Path | None) -> Verdict:
    """Checks that an adapter was made for the bundle's drafter, as far as that can be checked.

    Args:
      original: the model directory that the adapter was trained on, where its user has it.

    Raises:
      FingerprintError: the adapter, or ``original``, belongs to another drafter.
    """
    if original is not None:
        matching_weights(original, bundle, manifest)
        if found.base not in (None, manifest.base, base_fingerprint(original)):
            raise FingerprintError(f"the adapter's base fingerprint {str(found.base)[:12]}… is not that of {original}")
    if found.base == manifest.base:
        return "fingerprint"
    if original is not None:
        return "weights"
    if found.base is None:
        return "unverified"
    raise FingerprintError(
        f"the adapter's base fingerprint is {found.base[:12]}…, this bundle's is {manifest.base[:12]}…; if the two "
        "drafters differ only in storage, show the adapter's own: --base OTHER_BUNDLE/drafter"
    )


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused at the end
def fit(changes: Mapping[Projection, LowRank], layout: LoraLayout, truncate: bool = False) -> Fitted:
    """Brings changes to a layout.

    Guarantees:
      - Without truncation the adapter computes the same, up to the rounding of B to float32.
      - What is added is an initial adapter's: random A, zero B. It changes nothing, and learning can use it.

    Raises:
      FingerprintError: a change is of a matrix that the decoder does not have.
      ConfigError: a rank is above the layout's, and ``truncate`` is not set.
      ModelError: float32 cannot hold the result.
    """
    for projection, change in changes.items():
        _check_size(projection, change, layout)
        _check_finite(projection, change)
    wide = {projection for projection, change in changes.items() if change.rank > layout.rank}
    if not wide:
        return Fitted(adapter=_filled(changes, layout), truncated=0, loss=0.0)
    cut = {projection: change.truncated(layout.rank) for projection, change in changes.items()}
    whole = sum(result.whole for result in cut.values())
    loss = math.sqrt(sum(cut[projection].lost for projection in wide) / whole) if whole else 0.0
    if not truncate:
        raise ConfigError(
            f"the adapter has rank {max(change.rank for change in changes.values())}, the bundle's adapters have "
            f"{layout.rank}; --truncate keeps the best approximation of rank {layout.rank}, which loses {loss:.3g} of "
            "the change (Frobenius norm)"
        )
    narrow = {key: cut[key].change if key in wide else change for key, change in changes.items()}
    return Fitted(adapter=_filled(narrow, layout), truncated=len(wide), loss=loss)


def _filled(changes: Mapping[Projection, LowRank], layout: LoraLayout) -> LoraAdapter:
    """The layout's initial adapter with changes, none of a larger rank, written into its first ranks."""
    arrays = {name: value.copy() for name, value in layout.initial(seed=0).arrays.items()}
    for (layer, name), change in changes.items():
        arrays[f"lora.{layer}.{name}.A"][: change.rank] = change.a
        scale = np.float64(change.scaling / layout.scaling)
        arrays[f"lora.{layer}.{name}.B"][:, : change.rank] = scale * change.b
    adapter = LoraAdapter(layout=layout, arrays=arrays)
    for projection, change in adapter.changes.items():  # B took the ratio of the scalings
        _check_finite(projection, change)
    return adapter


def _check_finite(projection: Projection, change: LowRank) -> None:
    """No value of the factors, of their product or of its partial sums overflows (Cauchy and Schwarz)."""
    a, b = (float(np.linalg.norm(factor.astype(np.float64))) for factor in (change.a, change.b))
    if not all(size < np.finfo(np.float32).max for size in (a, b, a * b, change.scaling * a * b)):
        raise ModelError(
            f"the adapter changes {module_name(projection)} by values that are not finite in float32; "
            "its alpha or its factors are too large"
        )


def _check_size(projection: Projection, change: LowRank, layout: LoraLayout) -> None:
    layer, name = projection
    if layer >= layout.shape.layers:
        raise FingerprintError(f"the adapter changes layer {layer}, the bundle's drafter has {layout.shape.layers}")
    expected = layout.shape.projection_size(name)
    if change.size != expected:
        raise FingerprintError(
            f"the adapter changes {module_name(projection)} of (out, in) {change.size}, the bundle's drafter has "
            f"{expected}: another base"
        )
