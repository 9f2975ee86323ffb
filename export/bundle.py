"""Builds a bundle from a drafter's and its targets' Hugging Face directories. What is in one: ``common/bundle.py``."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer

from ..common.blocks import quantise
from ..common.bundle import (
    MANIFEST,
    PRECISION_BITS,
    BundleManifest,
    BundleTarget,
    base_fingerprint,
    file_digests,
    target_fingerprint,
)
from ..common.errors import ConfigError, ModelError
from ..common.files import check_replaceable, directory_written_whole, read_json, write_atomic
from ..common.lora import LoraLayout
from ..common.progress import Advance
from ..common.shape import DecoderShape
from ..common.weights import Weights, read_weights
from .decode_graph import decode_graph
from .train_graph import train_graph

_MOST_RANK, _MOST_ALPHA = 1024, 1e6
"""Far beyond any adapter in use: a slip of the finger is told before it costs memory."""
_REQUIRED = ("config.json", "tokenizer.json")
_OPTIONAL = ("tokenizer_config.json", "generation_config.json")


def _halves(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.generic]]:
    """Matrices as float16; vectors, which cost nothing, stay float32."""
    with np.errstate(over="ignore"):  # told by _check_finite
        return {name: value.astype(np.float16 if value.ndim == 2 else np.float32) for name, value in weights.items()}


def stored(weights: Weights, precision: str) -> Mapping[str, NDArray[Any]]:
    """Weights as a file holds them in a precision of ``PRECISION_BITS``."""
    bits = PRECISION_BITS[precision]
    if bits is not None:
        return quantise(weights, bits)
    return _halves(weights) if precision == "fp16" else weights


@dataclass(frozen=True, kw_only=True)
class BundleRecipe:
    """Choices of a build.

    precision: storage of the drafter's weights, and for int8 and int4 its arithmetic when decoding. Targets keep
      theirs: the promise is the target's own output law.
    rank, alpha: of the adapters; LoRA's scaling is alpha / rank. seed: of the initial adapter.
    include_targets: copies the targets' weights into the bundle, so that it runs without their directories.

    Raises:
      ConfigError: a value is out of range.
    """

    precision: str = "fp32"
    rank: int = 8
    alpha: float = 16.0
    seed: int = 0
    include_targets: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISION_BITS:
            raise ConfigError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISION_BITS)}")
        if not 1 <= self.rank <= _MOST_RANK:
            raise ConfigError(f"rank is {self.rank}, expected 1 to {_MOST_RANK}")
        if not 0 < self.alpha <= _MOST_ALPHA:
            raise ConfigError(f"alpha is {self.alpha}, expected more than 0 and at most {_MOST_ALPHA:g}")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected at least 0")


def build_bundle(
    drafter: Path,
    targets: Sequence[Path],
    out: Path,
    recipe: BundleRecipe,
    done: Advance = lambda remark: None,
) -> BundleManifest:
    """Writes a bundle.

    Guarantees:
      - ``out`` is a whole bundle or what it was before; only a bundle or an empty directory is replaced.
      - Both graphs of the drafter compute with the weights as stored, so training sees what is deployed.

    Args:
      drafter: Hugging Face directory of a Llama-type model with its tokenizer.
      targets: likewise, at least one; their weights are read only if the recipe includes them.
      done: called after each target, and after the drafter's weights, decode graph and train graph.

    Raises:
      ModelError: a directory is no such model.
      UserError: ``out`` holds something else.
      ConfigError: no target, or two of one name.
    """
    check_replaceable(out, MANIFEST)
    _check_names(targets)
    shapes = [_checked_shape(directory) for directory in (drafter, *targets)]
    layout = LoraLayout(rank=recipe.rank, alpha=recipe.alpha, shape=shapes[0])
    with directory_written_whole(out, MANIFEST) as scratch:
        # Targets first: they take no time, and a broken one is told before the drafter is quantised.
        entries = [_write_target(*pair, scratch, recipe, done) for pair in zip(targets, shapes[1:], strict=True)]
        base = _write_drafter(drafter, scratch / "drafter", layout, recipe, done)
        manifest = BundleManifest(
            precision=recipe.precision,
            shape=layout.shape,
            rank=layout.rank,
            alpha=layout.alpha,
            base=base,
            targets=tuple(entries),
            files=file_digests(scratch),
        )
        manifest.write(scratch)
    return manifest


def _check_finite(source: Path, tensors: Mapping[str, NDArray[Any]], how: str) -> None:
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelError(f"{source}: tensor {name} holds values that are not finite {how}")


def vocabulary_family(tokenizer: Path) -> str:
    """Kind and size of a ``tokenizer.json``'s vocabulary: ``bbpe-N`` for byte-level ones, ``spm-N`` for all others."""
    value = read_json(tokenizer)
    kind = "bbpe" if "'ByteLevel'" in str([value.get("pre_tokenizer"), value.get("decoder")]) else "spm"
    return f"{kind}-{_tokens_of(tokenizer)}"


def _write_drafter(source: Path, folder: Path, layout: LoraLayout, recipe: BundleRecipe, done: Advance) -> str:
    """Writes ``drafter/`` and returns the base fingerprint."""
    _copy_description(source, folder)
    weights = read_weights(source, layout.shape)
    _check_finite(source, weights, "as they are")
    tensors = stored(weights, recipe.precision)
    _check_finite(source, tensors, f"in {recipe.precision}")
    write_atomic(folder / "model.safetensors", save(dict(tensors), metadata={"format": "pt"}))
    done("weights")
    graph = decode_graph(layout.shape, True, PRECISION_BITS[recipe.precision])
    (folder / "decode.onnx").write_bytes(graph.SerializeToString())
    done("decode graph")
    (folder / "train.onnx").write_bytes(train_graph(layout, PRECISION_BITS[recipe.precision]).SerializeToString())
    done("train graph")
    base = base_fingerprint(folder)
    layout.initial(recipe.seed).save(folder / "initial", base)
    return base


def _write_target(source: Path, shape: DecoderShape, bundle: Path, recipe: BundleRecipe, done: Advance) -> BundleTarget:
    """Writes ``targets/NAME/``."""
    name = _name(source)
    folder = bundle / "targets" / name
    _copy_description(source, folder)
    if not list(source.glob("*.safetensors")):
        raise ModelError(f"{source} holds no *.safetensors file, which a device runs the target from")
    (folder / "decode.onnx").write_bytes(decode_graph(shape).SerializeToString())
    if recipe.include_targets:
        _copy_weights(source, folder)
    done(name)
    return BundleTarget(
        name=name,
        family=vocabulary_family(folder / "tokenizer.json"),
        fingerprint=target_fingerprint(folder),
        shape=shape,
        self_contained=recipe.include_targets,
    )


def _copy_description(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in (*_REQUIRED, *_OPTIONAL):
        if name in _REQUIRED or (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _copy_weights(source: Path, folder: Path) -> None:
    for file in sorted(source.glob("*.safetensors")):
        shutil.copyfile(file, folder / file.name)


def _checked_shape(directory: Path) -> DecoderShape:
    """The shape of a model directory that has a tokenizer which fits its embedding."""
    shape = DecoderShape.from_directory(directory)
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(f"{directory} has no tokenizer.json")
    tokens = _tokens_of(tokenizer)
    if tokens > shape.vocab_size:
        raise ModelError(
            f"{directory}: tokenizer.json has {tokens} tokens, the model only {shape.vocab_size} embedding rows"
        )
    return shape


def _tokens_of(tokenizer: Path) -> int:
    """One more than the highest token id."""
    try:
        vocabulary = Tokenizer.from_file(str(tokenizer)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"{tokenizer} is not a readable tokenizer: {error}") from error
    return max(vocabulary.values(), default=-1) + 1


def _check_names(targets: Sequence[Path]) -> None:
    if not targets:
        raise ConfigError("a bundle needs at least one --target")
    name, count = Counter(map(_name, targets)).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{count} targets are named {name!r}; each needs a directory name of its own")


def _name(directory: Path) -> str:
    return directory.resolve().name
