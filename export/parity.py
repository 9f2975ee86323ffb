"""Checks a bundle: every file by digest, every graph by value against torch on the weights as they are deployed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from ..common.blocks import Tensors
from ..common.bundle import BundleManifest, BundleTarget
from ..common.errors import ModelError
from ..common.fusion import decode_tensors, fused, fused_lora, fused_sizes, train_tensors
from ..common.lora import Arrays, LoraAdapter, LoraLayout
from ..common.losses import DIVERGENCES
from ..common.progress import Advance
from ..common.shape import DecoderShape
from ..common.weights import Weights, read_stored, read_weights
from .llama import Llama
from .torch_step import torch_step

Inputs = dict[str, NDArray[Any]]

#: float32 sums in another order, relative to the largest logit (or gradient) of the batch.
LOGITS_TOLERANCE = 1e-4
#: Inputs of every product are rounded to 8 bits.
INTEGER_TOLERANCE = 5e-2
GRADIENT_TOLERANCE = 1e-3
_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest relative differences between graphs and torch.

    logits: of the drafter's decode graph with a random adapter. gradients: of its train graph, the worst tensor.
    targets: of each target's decode graph by name; None where the weights are not in the bundle, so that only the names
    and sizes that the graph asks for were checked.
    """

    logits: float
    gradients: float
    targets: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_bundle(bundle: Path, seed: int = 0, done: Advance = lambda remark: None) -> Parity:
    """Checks digests and graphs.

    Args:
      seed: of the random adapter, tokens and batch.
      done: called after the digests, both graphs of the drafter, and each target.

    Raises:
      ModelError: not a bundle, a missing or damaged file, or a graph that does not compute what torch computes.
    """
    manifest = BundleManifest.read(bundle)
    manifest.verify(bundle)
    done("digests")
    rng = np.random.default_rng(seed)
    folder, layout = Path(bundle) / "drafter", manifest.layout
    weights, adapter = read_weights(folder, layout.shape), _random_adapter(layout, rng)
    tensors = fused(read_stored(folder, layout.shape), layout.shape)
    session = _open(folder / "decode.onnx", decode_tensors(tensors, layout.shape.tied))
    logits = _decode_error(session, weights, adapter, rng)
    tolerance = LOGITS_TOLERANCE if manifest.bits is None else INTEGER_TOLERANCE
    _within(tolerance, logits, f"{folder / 'decode.onnx'}: logits")
    done("decode graph")
    session = _open(folder / "train.onnx", {})
    gradients = _train_error(session, train_tensors(tensors), weights, adapter, rng)
    _within(GRADIENT_TOLERANCE, gradients, f"{folder / 'train.onnx'}: gradients")
    done("train graph")
    targets = {}
    for target in manifest.targets:
        targets[target.name] = _target_error(Path(bundle), target, rng)
        done(target.name)
    return Parity(logits=logits, gradients=gradients, targets=targets)


def _target_error(bundle: Path, target: BundleTarget, rng: np.random.Generator) -> float | None:
    folder = bundle / "targets" / target.name
    if not target.self_contained:
        _check_names(folder / "decode.onnx", target.shape)
        return None
    adapter = LoraLayout(rank=1, alpha=1.0, shape=target.shape).initial(0)
    weights = read_weights(folder, target.shape)
    graph = folder / "decode.onnx"
    error = _decode_error(_open(graph, fused(weights, target.shape)), weights, adapter, rng)
    return _within(LOGITS_TOLERANCE, error, f"{graph}: logits")


def _decode_error(
    session: ort.InferenceSession, weights: Weights, adapter: LoraAdapter, rng: np.random.Generator
) -> float:
    layout = adapter.layout
    count = min(_TOKENS, layout.shape.context_limit)
    tokens = rng.integers(0, layout.shape.vocab_size, count)
    (logits,) = session.run(["logits"], _decode_inputs(session, tokens, fused_lora(adapter)))
    lora = _torch(adapter.arrays)
    model = Llama(shape=layout.shape, weights=_torch(weights), lora=lora, scaling=layout.scaling)
    with torch.no_grad():
        expected = model.logits(torch.as_tensor(tokens)[None]).numpy()
    return _relative(logits, expected)


def _train_error(
    session: ort.InferenceSession, bound: Tensors, weights: Weights, adapter: LoraAdapter, rng: np.random.Generator
) -> float:
    batch = _random_batch(adapter.layout.shape, rng)
    lora = {name: value[None] for name, value in adapter.arrays.items()}
    expected = torch_step(adapter.layout, _torch(weights), _torch(lora), _torch(batch))
    given = session.run(list(expected), batch | lora | bound)
    return max(_relative(mine, torchs.numpy()) for mine, torchs in zip(given, expected.values(), strict=True))


def _decode_inputs(session: ort.InferenceSession, tokens: NDArray[np.int64], lora: Arrays) -> Inputs:
    """One call on an empty context: every row of logits, KV buffers of zeros."""
    count = len(tokens)
    given: Inputs = {
        "tokens": tokens,
        "kept": np.array([count]),
        "past": np.array([[count - 1]], np.int32),
        "total": np.array(count, np.int32),
        **lora,
    }
    declared = {value.name: value.shape for value in session.get_inputs()}
    caches = [name for name in declared if name.startswith(("key.", "value."))]
    buffers = {n: np.zeros([count if isinstance(d, str) else d for d in declared[n]], np.float32) for n in caches}
    return {name: value for name, value in (given | buffers).items() if name in declared}


def _random_adapter(layout: LoraLayout, rng: np.random.Generator) -> LoraAdapter:
    """Both factors random: B must not be zero, or the gradients of A would be. Small, as real adapters are."""
    arrays = {name: (0.05 * rng.standard_normal(size)).astype(np.float32) for name, size in layout.shapes.items()}
    return LoraAdapter(layout=layout, arrays=arrays)


def _random_batch(shape: DecoderShape, rng: np.random.Generator) -> Inputs:
    texts, length = 2, min(_TOKENS, shape.context_limit)
    listed, rows = min(4, shape.vocab_size - 1), (1, texts * length)
    weight = np.full(rows, 1 / rows[1], np.float32)
    return {
        "tokens": rng.integers(0, shape.vocab_size, (1, texts, length)),
        "rows": rng.permutation(rows[1])[None],
        "teacher_ids": np.tile(rng.permutation(shape.vocab_size)[:listed], (*rows, 1)),
        "teacher_probs": rng.dirichlet(np.ones(listed + 1), size=rows)[..., :listed].astype(np.float32),
        "kl_weight": weight,
        "labels": rng.integers(0, shape.vocab_size, rows),
        "nll_weight": weight,
        "uniforms": rng.random((*rows, 3), np.float32),
        "divergences": np.full(len(DIVERGENCES), 1 / len(DIVERGENCES), np.float32),
        "beta": np.array(0.5, np.float32),
        "eta": np.array(3.0, np.float32),
    }


def _check_names(graph: Path, shape: DecoderShape) -> None:
    """Weights that are not at hand can still be missed: the graph must ask for exactly those of the shape."""
    model = onnx.load(graph, load_external_data=False)
    external = [value for value in model.graph.initializer if value.data_location == onnx.TensorProto.EXTERNAL]
    if {value.name: tuple(value.dims) for value in external} != fused_sizes(shape):
        raise ModelError(f"{graph} does not name the weights of its target's shape")


def _open(graph: Path, weights: Mapping[str, NDArray[Any]]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_external_initializers(list(weights), [ort.OrtValue.ortvalue_from_numpy(v) for v in weights.values()])
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ModelError(f"{graph} cannot be opened by ONNX Runtime: {str(error).splitlines()[0]}") from error


def _torch(arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in arrays.items()}


def _relative(given: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(given - expected).max() / max(np.abs(expected).max(), 1e-12))


def _within(tolerance: float, error: float, what: str) -> float:
    if not error <= tolerance:
        raise ModelError(f"{what} differ from torch by {error:.1e} of their size, at most {tolerance:.0e} is expected")
    return error
