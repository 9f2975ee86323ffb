"""What the tests of all target runtimes share: the same models, opened by each."""

import runpy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fleetdraft.client.runtimes.decoder import Decoder
from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.client.runtimes.onnx_model import OnnxModel
from fleetdraft.client.runtimes.onnx_session import bind_weights
from fleetdraft.client.runtimes.target_runtimes import ONNX, TARGET_RUNTIMES, TargetModel, open_target
from fleetdraft.common.files import read_json, write_json
from fleetdraft.common.fusion import fused
from fleetdraft.common.shape import EMBEDDING, DecoderShape
from fleetdraft.common.weights import read_weights
from fleetdraft.export.decode_graph import decode_graph

QUANTISED = "llamacpp q8_0"
"""llama.cpp with weights in eight bits: the same guarantees, other rows."""
RUNTIMES = (ONNX, *TARGET_RUNTIMES, QUANTISED)
#: What has to be installed for each.
_MODULES = {
    "transformers": "transformers",
    "genai": "onnxruntime_genai",
    "llamacpp": "llama_cpp",
    QUANTISED: "llama_cpp",
}


def needs(runtime: str) -> None:
    """Skips where a runtime is not installed."""
    if runtime in _MODULES:
        extra = runtime.split()[0]
        pytest.importorskip(_MODULES[runtime], reason=f"needs the extra [{extra}]: pip install '.[{extra}]'")


@dataclass(frozen=True)
class OnnxTarget:
    """A target on the bundle's own graph, as the other runtimes show theirs."""

    model: OnnxModel

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def limit(self) -> int:
        return self.model.limit

    def context(self) -> Decoder:
        return OnnxDecoder(self.model)


@dataclass
class Workshop:
    """Hugging Face directories in the form that each runtime opens, made once."""

    folder: Path
    _made: dict[tuple[str, Path], Path] = field(default_factory=dict)
    _opened: dict[tuple[str, Path], TargetModel | OnnxTarget] = field(default_factory=dict)

    def path(self, runtime: str, source: Path) -> Path:
        """What a user would give as ``--target``."""
        makers: dict[str, Callable[[Path, Path], Path]] = {
            "genai": genai_directory,
            "llamacpp": lambda source, out: gguf(source, out, "f32"),
            QUANTISED: lambda source, out: gguf(source, out, "q8_0"),
        }
        key = runtime, source
        if key not in self._made:
            out = self.folder / f"{runtime} {source.name}"
            self._made[key] = makers[runtime](source, out) if runtime in makers else source
        return self._made[key]

    def model(self, runtime: str, source: Path) -> TargetModel | OnnxTarget:
        """The model, opened."""
        needs(runtime)
        key = runtime, source
        if key not in self._opened:
            path = self.path(runtime, source)
            opened = self._onnx(source) if runtime == ONNX else open_target(runtime.split()[0], str(path), threads=1)
            self._opened[key] = opened
        return self._opened[key]

    def _onnx(self, source: Path) -> OnnxTarget:
        shape = DecoderShape.from_directory(source)
        graph = self.folder / f"{source.name}.onnx"
        graph.write_bytes(decode_graph(shape).SerializeToString())
        weights = bind_weights(fused(read_weights(source, shape), shape))
        return OnnxTarget(OnnxModel(graph, weights, shape.context_limit))


def genai_directory(source: Path, out: Path) -> Path:
    """A model directory by GenAI's own builder, run as its command line."""
    words = ["builder", "-i", str(source), "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(out / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", words)
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    return out


def gguf(source: Path, out: Path, storage: str) -> Path:
    """A GGUF file."""
    pytest.importorskip("gguf", reason="needs the extra [export]: pip install '.[export]'")
    from fleetdraft.export.gguf_file import write_gguf

    file = out.with_suffix(".gguf")
    write_gguf(source, file, storage)
    return file


def plain(source: Path, out: Path, rows: int = 0, limit: int | None = None) -> Path:
    """A shipped target, whose weights are stored in blocks, as others read it: in float32.

    Args:
      rows: how many more logits it has. limit: its longest context, by default its own.
    """
    if out.is_dir():
        return out
    out.mkdir()
    for file in source.glob("*.json"):
        (out / file.name).write_bytes(file.read_bytes())
    config = read_json(source / "config.json")
    weights = read_weights(source, DecoderShape.from_directory(source))
    more = np.random.default_rng(3).normal(0, 0.05, (rows, config["hidden_size"])).astype(np.float32)
    weights[EMBEDDING] = np.concatenate([weights[EMBEDDING], more])
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    width = config["vocab_size"] + rows
    longest = config["max_position_embeddings"] if limit is None else limit
    write_json(out / "config.json", config | {"vocab_size": width, "max_position_embeddings": longest})
    return out
