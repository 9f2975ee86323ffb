"""Whether a Hugging Face directory is what a bundle's drafter was made from, judged by its weights alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..common.bundle import MANIFEST, BundleManifest
from ..common.errors import FingerprintError
from ..common.shape import DecoderShape
from ..common.weights import Weights, read_weights

#: How far a stored matrix may be from its original, relative in the Frobenius norm. Trained models are off by 0.0002 in
#: fp16, 0.006 in int8 and 0.09 in int4; the matrices of unrelated models by about 1.4. Vectors are stored as they are.
TOLERANCE = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.02, "int4": 0.2}


def drafter_weights(bundle: Path, manifest: BundleManifest) -> Weights:
    """The drafter's weights as deployed, after a check of their digest."""
    files = {name: digest for name, digest in manifest.files.items() if name == "drafter/model.safetensors"}
    replace(manifest, files=files).verify(bundle)
    return read_weights(Path(bundle) / "drafter", manifest.shape)


def matching_weights(original: Path, bundle: Path, manifest: BundleManifest) -> Weights:
    """The weights of a directory that match those of a bundle's drafter.

    Raises:
      ModelError: it is no model directory.
      FingerprintError: it holds another model.
    """
    _check_shape(original, manifest.shape)
    weights, deployed = read_weights(original, manifest.shape), drafter_weights(bundle, manifest)
    storage = max(manifest.precision, _storage(original), key=TOLERANCE.__getitem__)
    for name, value in weights.items():
        difference = _difference(value, deployed[name])
        allowed = TOLERANCE[storage] if value.ndim == 2 else 0.0
        if not difference <= allowed:
            raise FingerprintError(
                f"{original} is not the base of this bundle's drafter: {name} differs by {difference:.2g} of its size, "
                f"at most {allowed:.2g} is expected of weights stored as {storage}"
            )
    return weights


def _storage(directory: Path) -> str:
    """How a directory's weights are stored if it is the drafter of a bundle; else they are an original."""
    bundle = directory.resolve().parent
    return BundleManifest.read(bundle).precision if (bundle / MANIFEST).is_file() else "fp32"


def _check_shape(original: Path, expected: DecoderShape) -> None:
    given, wanted = DecoderShape.from_directory(original).to_json(), expected.to_json()
    for field, value in wanted.items():
        if given[field] != value:
            raise FingerprintError(
                f"{original} is not the base of this bundle's drafter: {field} is {given[field]}, expected {value}"
            )


def _difference(value: NDArray[np.float32], deployed: NDArray[np.float32]) -> float:
    whole = float(np.linalg.norm(value))
    lost = float(np.linalg.norm(value - deployed))
    return lost / whole if whole else lost
