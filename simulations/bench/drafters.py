"""Our contestants of the decode benchmark, each made in a process of its own (``worker.py``). No torch is imported.

A folder holds what ``material.write_material`` put there.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...client.runtimes.onnx_decoder import OnnxDecoder
from ...client.runtimes.onnx_model import OnnxModel
from ...client.runtimes.onnx_session import BoundWeights, bind_weights, open_session
from ...common.fusion import decode_tensors, fused, fused_lora
from ...common.lora import LoraAdapter, LoraLayout
from ...common.shape import DecoderShape
from ...common.weights import read_stored
from .worker import Work


def steps(folder: str, rank: int, threads: int, context: int, count: int) -> Work:
    """A lap is ``count`` tokens, one by one, behind ``context`` others; rank 0 is the graph without an adapter."""
    model, layout = _opened(folder, rank, threads)
    if rank:
        model.adapt(_adapter(layout, 0))
    decoder = OnnxDecoder(model)
    decoder.score(_tokens(context), 1)

    def lap() -> float:
        decoder.rewind(context)
        return sum(float(decoder.score((token,), 1)[0, 0]) for token in _tokens(count))

    return lap


def many(folder: str, rank: int, threads: int, context: int, count: int, clients: int, together: bool) -> Work:
    """A lap is ``count`` tokens of each of many contexts with adapters of their own.

    Its value is the sum of the last tokens' logits, which depend on all before; summing those too would be timed.
    """
    model, layout = _opened(folder, rank, threads)
    adapters, decoders = [_adapter(layout, client) for client in range(clients)], []
    for adapter in adapters:
        model.adapt(adapter)
        decoders.append(decoder := OnnxDecoder(model))
        decoder.score(_tokens(context), 1)
    if together:
        session = open_session(Path(folder, "clients.onnx"), _weights(Path(folder), layout.shape), threads)
        cohort = _Cohort(session, decoders, adapters)
        return lambda: _size([cohort.score(token, at) for at, token in enumerate(_tokens(count))][-1])
    *before, last = _tokens(count)

    def one_by_one() -> float:
        for decoder in decoders:
            decoder.rewind(context)
        for token in before:
            for decoder in decoders:
                decoder.score((token,), 1)
        return sum(_size(decoder.score((last,), 1)) for decoder in decoders)

    return one_by_one


class _Cohort:
    """Contexts of one length in one call, each with its adapter."""

    def __init__(self, session: ort.InferenceSession, decoders: list[OnnxDecoder], adapters: list[LoraAdapter]) -> None:
        self._session, self._binding, self._context = session, session.io_binding(), decoders[0].length
        clients, width = len(decoders), decoders[0].vocab_size
        self._tokens, self._past = np.zeros((clients, 1), np.int64), np.zeros((clients, 1), np.int32)
        self._total, self._logits = np.zeros((), np.int32), np.zeros((clients, 1, width), np.float32)
        caches = {name: np.concatenate([d.caches[name] for d in decoders]) for name in decoders[0].caches}
        loras = [fused_lora(adapter) for adapter in adapters]
        lora = {name: np.stack([one[name] for one in loras]) for name in loras[0]}
        numbers = {"tokens": self._tokens, "past": self._past, "total": self._total, "kept": np.ones(1, np.int64)}
        for name, array in (caches | lora | numbers).items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            self._binding.bind_ortvalue_input(name, value)
            if name in caches:
                self._binding.bind_ortvalue_output(name.replace(".", "_out."), value)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))
        self._held = caches, lora, numbers  # values do not keep their arrays alive

    def score(self, token: int, at: int) -> NDArray[np.float32]:
        """(clients, 1, vocabulary) behind the context and ``at`` further tokens."""
        self._tokens[:], self._past[:], self._total[()] = token, self._context + at, self._context + at + 1
        self._session.run_with_iobinding(self._binding)
        return self._logits


def _size(logits: NDArray[np.float32]) -> float:
    return float(np.abs(logits).sum(dtype=np.float64))


def _opened(folder: str, rank: int, threads: int) -> tuple[OnnxModel, LoraLayout]:
    directory = Path(folder)
    shape = DecoderShape.from_directory(directory)
    graph = directory / ("decode.onnx" if rank else "bare.onnx")
    layout = LoraLayout(rank=max(rank, 1), alpha=2.0 * max(rank, 1), shape=shape)
    return OnnxModel(graph, _weights(directory, shape), shape.context_limit, threads), layout


def _weights(directory: Path, shape: DecoderShape) -> BoundWeights:
    return bind_weights(decode_tensors(fused(read_stored(directory, shape), shape), shape.tied))


def _adapter(layout: LoraLayout, seed: int) -> LoraAdapter:
    """Small noise: an adapter that changes every product."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(size, np.float32) * np.float32(0.01) for name, size in layout.shapes.items()}
    return LoraAdapter(layout=layout, arrays=arrays)


def _tokens(count: int) -> list[int]:
    return [3 + number % 200 for number in range(count)]
