"""What storing a trained drafter in integers does to the rows it drafts from, on the shipped drafter and its texts."""

from pathlib import Path

import numpy as np
import pytest

from fleetdraft.client.decoding.sampling import distribution
from fleetdraft.client.prompts import read_prompts
from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.client.runtimes.onnx_model import OnnxModel
from fleetdraft.client.runtimes.onnx_session import bind_weights
from fleetdraft.client.spelling.text import TextCodec
from fleetdraft.common.blocks import quantise
from fleetdraft.common.embedded import EMBEDDED, located
from fleetdraft.common.fusion import decode_tensors, fused
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import read_weights
from fleetdraft.export.decode_graph import decode_graph

DRAFTER = located(EMBEDDED) / "drafter"


def _rows(bits: int | None, folder: Path) -> np.ndarray:
    """The drafter's distributions behind every token of some held-out prompts."""
    shape = DecoderShape.from_directory(DRAFTER)
    weights = read_weights(DRAFTER, shape)
    tensors = fused(weights if bits is None else quantise(weights, bits), shape)
    graph = folder / "decode.onnx"
    graph.write_bytes(decode_graph(shape, False, bits).SerializeToString())
    decoder = OnnxDecoder(OnnxModel(graph, bind_weights(decode_tensors(tensors, shape.tied)), shape.context_limit))
    codec, rows = TextCodec(DRAFTER, shape.vocab_size), []
    for file in sorted((DRAFTER.parent / "prompts").glob("*.heldout.jsonl")):
        decoder.rewind(0)
        rows += [distribution(row, 1.0) for row in decoder.score(codec.prompt_tokens(read_prompts(file)[0].text)[:64])]
    return np.stack(rows)


# The acceptance of one draft token at temperature 1 is one minus a total variation, so it moves by at most this much.
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (4, 0.13)])
def test_integers_move_the_rows_by_little(bits, bound, tmp_path):
    exact, stored = _rows(None, tmp_path), _rows(bits, tmp_path)
    distance = np.abs(stored - exact).sum(axis=1).mean() / 2
    assert 1e-3 < distance < bound
