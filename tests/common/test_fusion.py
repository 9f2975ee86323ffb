"""What the graphs bind stands for what was given: stacked rows are the projections, and an adapter likewise."""

import numpy as np
import pytest

from fleetdraft.common.blocks import PACKED, ROWS, SCALES, dequantise, quantise
from fleetdraft.common.fusion import (
    GROUPS,
    decode_tensors,
    fused,
    fused_lora,
    fused_lora_sizes,
    fused_sizes,
    group_name,
    train_tensors,
)
from fleetdraft.common.lora import LoraAdapter, LoraLayout
from fleetdraft.common.shape import EMBEDDING, PROJECTIONS, DecoderShape

SIZES = {
    "vocab_size": 50, "hidden_size": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8,
    "intermediate_size": 40, "context_limit": 64, "rope_theta": 1e4, "rms_eps": 1e-5,
}  # fmt: skip


@pytest.fixture(params=[True, False], ids=["tied, biases", "untied"])
def shape(request) -> DecoderShape:
    return DecoderShape(**SIZES, tied=request.param, qkv_bias=request.param)


@pytest.fixture
def weights(shape) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in shape.weights.items()}


def test_every_projection_multiplies_as_its_rows_of_the_group(shape, weights):
    tensors, rng = fused(weights, shape), np.random.default_rng(1)
    assert {name: value.shape for name, value in tensors.items()} == fused_sizes(shape)
    for layer in range(shape.layers):
        for group, parts in GROUPS.items():
            x = rng.standard_normal(shape.projection_size(parts[0])[1]).astype(np.float32)
            prefixes = [f"model.layers.{layer}.{PROJECTIONS[part]}.{part}" for part in parts]
            each = [weights[f"{prefix}.weight"] @ x for prefix in prefixes]
            np.testing.assert_allclose(tensors[group_name(layer, group)] @ x, np.concatenate(each), rtol=1e-5)
            if shape.qkv_bias and group == "qkv_proj":
                biases = np.concatenate([weights[f"{prefix}.bias"] for prefix in prefixes])
                np.testing.assert_array_equal(tensors[group_name(layer, group, "bias")], biases)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_stacked_as_their_matrices(shape, weights, bits):
    stored = quantise(weights, bits)
    plain = {n: dequantise(stored[n + PACKED], stored[n + SCALES], v.shape[1]) if v.ndim == 2 else v
             for n, v in weights.items()}  # fmt: skip
    expected, tensors = fused(plain, shape), fused(stored, shape)
    for name, value in expected.items():
        if value.ndim == 2:
            given = dequantise(tensors[name + PACKED], tensors[name + SCALES], value.shape[1])
            np.testing.assert_array_equal(given, value)
        else:
            np.testing.assert_array_equal(tensors[name], value)
    assert len(tensors) == len(expected) + sum(value.ndim == 2 for value in expected.values())


def test_no_weight_is_held_twice(shape, weights):
    """Rows for gathering are a view of what is multiplied; training and decoding bind the same memory."""
    tensors = fused(quantise(weights, 4), shape)
    decode, train = decode_tensors(tensors, shape.tied), train_tensors(tensors)
    assert (EMBEDDING + PACKED in decode) == shape.tied
    for bound in (decode, train):
        for name, value in bound.items():
            source = tensors[name.removesuffix(ROWS) + PACKED if name.endswith(ROWS) else name]
            assert np.shares_memory(value, source)
    assert not any(name.endswith(PACKED) for name in train)


def test_a_stacked_adapter_changes_what_the_adapter_changes(shape):
    layout, rng = LoraLayout(rank=3, alpha=12.0, shape=shape), np.random.default_rng(2)
    arrays = {name: rng.standard_normal(size).astype(np.float32) for name, size in layout.shapes.items()}
    stacked = fused_lora(LoraAdapter(layout=layout, arrays=arrays))
    assert {name: value.shape for name, value in stacked.items()} == fused_lora_sizes(shape, 3)
    for group, parts in GROUPS.items():
        x = rng.standard_normal(shape.projection_size(parts[0])[1])
        a, b = (stacked[f"lora.1.{group}.{factor}"] for factor in "AB")
        each = [4.0 * arrays[f"lora.1.{part}.B"] @ (arrays[f"lora.1.{part}.A"] @ x) for part in parts]
        np.testing.assert_allclose(b @ (a @ x), np.concatenate(each), rtol=1e-4, atol=1e-4)


def test_two_adapters_beside_each_other_are_bound_as_the_sum_of_both(shape):
    rng = np.random.default_rng(3)
    layouts = [LoraLayout(rank=3, alpha=12.0, shape=shape), LoraLayout(rank=2, alpha=1.0, shape=shape)]
    first, second = (
        LoraAdapter(layout=x, arrays={n: rng.standard_normal(s).astype(np.float32) for n, s in x.shapes.items()})
        for x in layouts
    )
    both, one, other = (fused_lora(adapter) for adapter in (first.beside(second), first, second))
    for group in GROUPS:
        dense = [x[f"lora.1.{group}.B"] @ x[f"lora.1.{group}.A"] for x in (both, one, other)]
        np.testing.assert_allclose(dense[0], dense[1] + dense[2], rtol=1e-4, atol=1e-4)
