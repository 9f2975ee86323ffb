"""Makes the embedded bundle out of the trained models: small storage, graphs, prompts, and how it all came to be."""

import platform
import shutil
import tempfile
from pathlib import Path

from safetensors.numpy import save

from ...common.blocks import quantise
from ...common.bundle import file_digests
from ...common.files import directory_written_whole, read_json, write_atomic, write_json
from ...common.shape import DecoderShape
from ...common.weights import read_weights
from ...export.bundle import BundleRecipe, build_bundle
from .shapes import MODELS

MANIFEST = "MANIFEST.json"
REBUILD = (
    "python -m fleetdraft.simulations.embed all --work WORK",
    "python -m fleetdraft.simulations.embed ship --work WORK --out client/embedded",
)
RECIPE = BundleRecipe(precision="fp16", rank=16, alpha=32.0, include_targets=True)


def ship(work: Path, out: Path) -> int:
    """Writes the bundle with its prompts and ``MANIFEST.json``, whole or not at all.

    Targets are stored as blocks of int8 (``common/blocks.py``): the shipped target *is* the dequantised model.

    Args:
      work: the folder that training wrote to.
      out: the bundle; replaced.

    Returns:
      Size in bytes of all files.
    """
    targets = [name for name, plan in MODELS.items() if plan.role == "target"]
    with directory_written_whole(out, MANIFEST) as scratch, tempfile.TemporaryDirectory() as stored:
        for name in targets:
            _store(work / name, Path(stored) / name)
        build_bundle(work / "drafter", [Path(stored) / name for name in targets], scratch / "bundle", RECIPE)
        for path in (scratch / "bundle").iterdir():
            path.rename(scratch / path.name)
        (scratch / "bundle").rmdir()
        shutil.copytree(work / "prompts", scratch / "prompts")
        write_json(scratch / MANIFEST, _manifest(work, scratch))
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _store(source: Path, folder: Path) -> None:
    """Copies a model directory with its matrices as blocks of int8."""
    folder.mkdir()
    for path in source.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    weights = read_weights(source, DecoderShape.from_directory(source))
    write_atomic(folder / "model.safetensors", save(quantise(weights, 8)))


def _manifest(work: Path, bundle: Path) -> dict[str, object]:
    return {
        "schema": 1,
        "what": "Fleetdraft's embedded drafter and targets, trained on the Python standard library's sources",
        "text_licence": "Python Software Foundation License 2.0 (prompts are excerpts of the standard library)",
        "rebuild": REBUILD,
        "python": platform.python_version(),
        "corpus": read_json(work / "corpus.json"),
        "models": read_json(work / "training.json"),
        "storage": {"drafter": "float16", "targets": "blocks of 32 int8 with a float32 scale each"},
        "files": file_digests(bundle),
    }
