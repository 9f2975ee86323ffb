"""The manifest of a bundle: what a device needs to draft for its targets, and proof that the parts belong together.

    bundle.json         the manifest
    drafter/            config.json tokenizer.json model.safetensors decode.onnx train.onnx
      initial/          the adapter that changes nothing, a PEFT directory
    targets/NAME/       config.json tokenizer.json decode.onnx, and the weights in a self-contained bundle

A target's graph is found by the target's fingerprint, so ``--target DIR`` needs no name. It knows no runtime.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ConfigError, FingerprintError, ModelError
from .files import read_json, sha256_file, write_json
from .lora import LoraLayout
from .shape import DecoderShape

MANIFEST = "bundle.json"
SCHEMA = 4
#: How a drafter's matrices may be stored, with the bits of their integers.
PRECISION_BITS = {"fp32": None, "fp16": None, "int8": 8, "int4": 4}


@dataclass(frozen=True, kw_only=True)
class BundleTarget:
    """One target that the bundle drafts for.

    name: its folder under ``targets/``. family: the kind and size of its vocabulary; figures are reported per family.
    self_contained: its weights are in the bundle.
    """

    name: str
    family: str
    fingerprint: str
    shape: DecoderShape
    self_contained: bool

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BundleTarget":
        return cls(**{**value, "shape": DecoderShape.from_json(value["shape"])})


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """``bundle.json``.

    precision: how the drafter's weights are stored (``PRECISION_BITS``).
    shape, rank, alpha: of the drafter and its adapters. base: fingerprint of the drafter as deployed.
    files: SHA-256 of every other file by its path in the bundle.
    """

    precision: str
    shape: DecoderShape
    rank: int
    alpha: float
    base: str
    targets: tuple[BundleTarget, ...]
    files: Mapping[str, str]

    @cached_property
    def layout(self) -> LoraLayout:
        """Of the adapters that fit this bundle."""
        return LoraLayout(rank=self.rank, alpha=self.alpha, shape=self.shape)

    @property
    def bits(self) -> int | None:
        """Bits of the integers that the drafter's matrices are stored in; None for floats."""
        return PRECISION_BITS[self.precision]

    def target_for(self, directory: Path) -> BundleTarget:
        """The target whose tokenizer and shape are those of a Hugging Face model directory.

        Raises:
          ModelError: not such a directory.
          FingerprintError: the bundle was not built for this target.
        """
        fingerprint = target_fingerprint(directory)
        for target in self.targets:
            if target.fingerprint == fingerprint:
                return target
        known = ", ".join(target.name for target in self.targets)
        raise FingerprintError(
            f"{directory} is no target of this bundle, which was built for {known}; "
            f"build one with: fleetdraft bundle build … --target {directory}, "
            "or run the target on a runtime of its own with --target-runtime, e.g. transformers"
        )

    def verify(self, bundle: Path) -> None:
        """Compares every file with its digest.

        Raises:
          ModelError: a file is missing or damaged.
        """
        for name, expected in self.files.items():
            path = Path(bundle) / name
            if not path.is_file():
                raise ModelError(f"{bundle} is incomplete: {name} is missing")
            if sha256_file(path) != expected:
                raise ModelError(f"{path} does not match its digest {expected[:12]}…; the file is damaged")

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def write(self, bundle: Path) -> None:
        """Writes ``bundle.json``, atomically."""
        write_json(Path(bundle) / MANIFEST, self.to_json())

    @classmethod
    def read(cls, bundle: Path) -> "BundleManifest":
        """Reads ``bundle.json``; digests are checked by ``verify``.

        Raises:
          ModelError: not a bundle, or one of another schema.
        """
        path = Path(bundle) / MANIFEST
        if not path.is_file():
            raise ModelError(
                f"{bundle} is not a bundle: no {MANIFEST} in it; make one with: "
                "fleetdraft bundle build --drafter DIR --target DIR --out BUNDLE"
            )
        value = read_json(path)
        schema = value.pop("schema", None) if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise ModelError(f"{path}: schema is {schema!r}, this version reads {SCHEMA}; build the bundle again")
        return cls._from_json(value, path)

    @classmethod
    def _from_json(cls, value: Mapping[str, Any], path: Path) -> "BundleManifest":
        try:
            shape = DecoderShape.from_json(value["shape"])
            targets = tuple(BundleTarget.from_json(target) for target in value["targets"])
            manifest = cls(**{**value, "shape": shape, "targets": targets})
        except (KeyError, TypeError) as error:
            raise ModelError(f"{path}: missing or unknown field: {error}; build the bundle again") from error
        for name, kind in (("rank", int), ("alpha", (int, float)), ("base", str), ("files", dict)):
            if not isinstance(getattr(manifest, name), kind):
                raise ModelError(
                    f"{path}: {name} is {getattr(manifest, name)!r}, which is damaged; build the bundle again"
                )
        if manifest.precision not in PRECISION_BITS:
            known = ", ".join(PRECISION_BITS)
            raise ModelError(f"{path}: precision is {manifest.precision!r}, expected one of {known}")
        return manifest


def check_outside(out: Path, bundle: Path) -> None:
    """Returns if what is written at ``out`` does not change a bundle.

    Raises:
      ConfigError: it lies in the bundle's directory.
    """
    if out.resolve().is_relative_to(bundle.resolve()):
        raise ConfigError(f"--out {out} is in the bundle {bundle}, whose digests would fail; choose another place")


def base_fingerprint(drafter: Path) -> str:
    """SHA-256 over ``model.safetensors`` and ``tokenizer.json`` of a bundle's drafter: its weights as deployed."""
    parts = (sha256_file(Path(drafter) / name) for name in ("model.safetensors", "tokenizer.json"))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def target_fingerprint(directory: Path) -> str:
    """SHA-256 over shape and tokenizer of a Hugging Face model directory.

    Weights are left out: hashing many gigabytes before each run costs more than it protects, since the target alone
    decides the output, and a fine-tuned target of the same shape is served by the same graph.

    Raises:
      ModelError: no config, no tokenizer, or another architecture.
    """
    shape = DecoderShape.from_directory(directory)
    tokenizer = Path(directory) / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(f"{directory} has no tokenizer.json")
    about = json.dumps(shape.to_json(), sort_keys=True)
    return hashlib.sha256((about + sha256_file(tokenizer)).encode()).hexdigest()


def file_digests(bundle: Path) -> dict[str, str]:
    """SHA-256 of every file under a directory but the manifest, by its path with forward slashes."""
    files = sorted(path for path in Path(bundle).rglob("*") if path.is_file())
    names = (path.relative_to(bundle).as_posix() for path in files)
    return {name: sha256_file(Path(bundle) / name) for name in names if name != MANIFEST}
