"""A decoder on ONNX Runtime: its context grows to the limit, and is of one adapter, whatever its siblings do."""

from dataclasses import replace

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.client.runtimes.onnx_model import OnnxModel
from fleetdraft.client.runtimes.onnx_session import bind_weights
from fleetdraft.common.blocks import Tensors
from fleetdraft.common.errors import ContextLimitError, ModelError
from fleetdraft.common.fusion import decode_tensors, fused
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.weights import read_stored

TOKENS = np.random.default_rng(2).integers(3, 3000, 512).tolist()


@pytest.fixture
def model(bundle: Bundle) -> OnnxModel:
    """The shipped drafter with a limit that is no power of two times the first buffers."""
    return OnnxModel(bundle.directory / "drafter/decode.onnx", bind_weights(weights_of(bundle)), limit=400)


def weights_of(bundle: Bundle) -> Tensors:
    shape = bundle.manifest.shape
    return decode_tensors(fused(read_stored(bundle.directory / "drafter", shape), shape), shape.tied)


@pytest.fixture
def changed(bundle: Bundle) -> LoraAdapter:
    """An adapter that changes every row."""
    adapter, rng = bundle.adapter(), np.random.default_rng(4)
    return adapter.plus({n: rng.normal(0, 0.05, v.shape).astype(np.float32) for n, v in adapter.arrays.items()})


def rows_of(decoder: OnnxDecoder, *parts: list[int]) -> np.ndarray:
    return np.concatenate([decoder.score(part).copy() for part in parts])


# --- growing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 90])
def test_a_context_that_grew_gives_the_bits_of_one_that_was_large_at_once(model: OnnxModel, step: int) -> None:
    parts = [TOKENS[:200], *(TOKENS[at : min(at + step, 400)] for at in range(200, 400, step))]
    large, grown = OnnxDecoder(model), OnnxDecoder(model)
    large.score(TOKENS[:400], 1)
    large.rewind(0)
    assert grown.cache_bytes < large.cache_bytes
    np.testing.assert_array_equal(rows_of(grown, *parts), rows_of(large, *parts))
    assert grown.cache_bytes == large.cache_bytes


def test_what_was_rewound_before_growing_is_forgotten(model: OnnxModel) -> None:
    decoder, fresh = OnnxDecoder(model), OnnxDecoder(model)
    decoder.score(TOKENS[:250], 1)
    decoder.rewind(100)
    fresh.score(TOKENS[:100], 1)
    np.testing.assert_array_equal(decoder.score(TOKENS[300:500], 1), fresh.score(TOKENS[300:500], 1))


def test_a_context_costs_nothing_before_its_first_token_and_never_more_than_the_limit(model: OnnxModel) -> None:
    decoder = OnnxDecoder(model)
    row_bytes = sum(4 * heads * size for heads, size in model.caches.values())
    sizes = []
    for length in (0, 1, 256, 257, 400):
        decoder.score(TOKENS[decoder.length : length], 1) if length else None
        sizes.append(decoder.cache_bytes // row_bytes)
    assert sizes == [0, 256, 256, 400, 400]


@pytest.mark.parametrize("length", [0, 3, 256, 399, 400])
def test_beyond_the_limit_is_a_clear_error_and_nothing_is_appended(model: OnnxModel, length: int) -> None:
    decoder, same = OnnxDecoder(model), OnnxDecoder(model)
    for context in (decoder, same):
        if length:
            context.score(TOKENS[:length], 1)
    with pytest.raises(ContextLimitError, match="401 tokens exceed the model's context of 400; shorten the prompt"):
        decoder.score(TOKENS[length:401], 1)
    assert decoder.length == length
    if length < 400:
        np.testing.assert_array_equal(decoder.score([TOKENS[length]]), same.score([TOKENS[length]]))


def test_calls_of_any_size_in_any_order_give_the_rows_of_a_fresh_context(model: OnnxModel) -> None:
    """Bindings are kept by shape: a row of another call, or tokens of a longer one, would show."""
    decoder, rng = OnnxDecoder(model), np.random.default_rng(9)
    for _ in range(40):
        count = int(rng.integers(1, 9))
        kept, length, tokens = int(rng.integers(1, count + 1)), int(rng.integers(0, 50)), rng.integers(3, 3000, 60)
        decoder.rewind(0)
        fresh = OnnxDecoder(model)
        if length:
            for context in (decoder, fresh):
                context.score(tokens[:length].tolist(), 1)
        part = tuple(tokens[length : length + count].tolist())
        rows = decoder.score(part, kept)
        assert rows.shape == (kept, decoder.vocab_size)
        np.testing.assert_array_equal(rows, fresh.score(part, kept))


# --- sharing --------------------------------------------------------------------------------------------------------


def test_contexts_of_one_model_do_not_disturb_each_other(model: OnnxModel) -> None:
    alone = [rows_of(OnnxDecoder(model), *([t] for t in TOKENS[at : at + 20])) for at in (0, 100, 200)]
    decoders, rows = [OnnxDecoder(model) for _ in range(3)], [list[np.ndarray]() for _ in range(3)]
    for step in range(20):
        for decoder, mine, at in zip(decoders, rows, (0, 100, 200), strict=True):
            mine.append(decoder.score([TOKENS[at + step]]).copy())
    for mine, expected in zip(rows, alone, strict=True):
        np.testing.assert_array_equal(np.concatenate(mine), expected)


def test_a_model_reads_none_of_the_weights_it_was_opened_from(bundle: Bundle) -> None:
    """They may be freed: a bundle keeps one copy of a target's weights, the session's own."""
    weights = weights_of(bundle)
    model = OnnxModel(bundle.directory / "drafter/decode.onnx", bind_weights(weights), limit=400)
    before = OnnxDecoder(model).score(TOKENS[:9]).copy()
    for value in weights.values():
        value[...] = np.nan
    np.testing.assert_array_equal(OnnxDecoder(model).score(TOKENS[:9]), before)


def test_a_new_adapter_is_in_force_for_every_context_that_begins(model: OnnxModel, changed: LoraAdapter) -> None:
    used, other = OnnxDecoder(model), OnnxDecoder(model)
    before = used.score(TOKENS[:9], 1).copy()
    model.adapt(changed)
    used.rewind(0)
    after = used.score(TOKENS[:9], 1).copy()
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_array_equal(other.score(TOKENS[:9], 1), after)


def test_a_context_that_is_held_stays_of_the_adapter_it_began_with(model: OnnxModel, changed: LoraAdapter) -> None:
    whole, split = OnnxDecoder(model), OnnxDecoder(model)
    expected = rows_of(whole, TOKENS[:9], TOKENS[9:12])
    first = split.score(TOKENS[:9]).copy()
    assert not split.stale
    model.adapt(changed)
    assert split.stale
    np.testing.assert_array_equal(np.concatenate([first, split.score(TOKENS[9:12])]), expected)
    split.rewind(0)
    assert not split.stale


def test_changing_the_callers_arrays_changes_nothing(model: OnnxModel, changed: LoraAdapter) -> None:
    arrays = {name: value.copy() for name, value in changed.arrays.items()}
    model.adapt(LoraAdapter(layout=changed.layout, arrays=arrays))
    before = OnnxDecoder(model).score(TOKENS[:9]).copy()
    for value in arrays.values():
        value[...] = 1
    np.testing.assert_array_equal(OnnxDecoder(model).score(TOKENS[:9]), before)


def test_an_adapter_that_does_not_fit_is_refused_and_the_one_in_force_stays(
    model: OnnxModel, changed: LoraAdapter
) -> None:
    decoder = OnnxDecoder(model)
    expected, shape = decoder.score(TOKENS[:9]).copy(), changed.layout.shape
    for other in (replace(shape, layers=1), replace(shape, hidden_size=shape.hidden_size + 8)):
        layout = replace(changed.layout, shape=other)
        with pytest.raises(ModelError, match=r"the adapter has .* for lora\.\d\.\w*\.A, expected .*; use an adapter"):
            model.adapt(layout.initial(seed=0))
    assert not decoder.stale
    decoder.rewind(0)
    np.testing.assert_array_equal(decoder.score(TOKENS[:9]), expected)


def test_a_stand_in_for_the_session_sees_every_run(model: OnnxModel) -> None:
    """What a benchmark needs to time ONNX Runtime alone."""
    decoder, runs, session = OnnxDecoder(model), list[int](), model.session

    class Counted:
        def run_with_iobinding(self, binding: object) -> None:
            runs.append(1)
            session.run_with_iobinding(binding)

    decoder.score(TOKENS[:5], 1)
    model.session = Counted()
    decoder.score(TOKENS[5:6])
    decoder.score(TOKENS[6:9])
    assert len(runs) == 2
