"""Tensors as plain numbers: the layout's order and nothing else, so that any language can write and check them."""

import numpy as np
import pytest

from fleetdraft.common.content import content_bytes, from_content, to_content
from fleetdraft.common.errors import UpdateRejected
from fleetdraft.common.fleet_wire import layout_of, release_content, release_head, shapes_of
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import Release
from fleetdraft.common.shape import DecoderShape

SHAPE = DecoderShape(
    vocab_size=32, hidden_size=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
LAYOUT = LoraLayout(rank=2, alpha=4, shape=SHAPE)
RELEASE = Release(number=3, adapter=LAYOUT.initial(seed=0), base="base")


def test_numbers_are_little_endian_and_row_by_row() -> None:
    tensors = {"b": np.array([[1, 2], [3, 4]], np.float32), "a": np.array([[5.0]], np.float32)}
    shapes = {"a": (1, 1), "b": (2, 2)}
    assert to_content(tensors, shapes).hex() == "0000a0400000803f000000400000404000008040"  # 5, then 1 2 3 4


@pytest.mark.parametrize("factors", [("A", "B"), ("A",), ("B",)])
def test_what_goes_in_comes_out(factors: tuple[str, ...]) -> None:
    shapes = shapes_of(LAYOUT, factors)
    content = to_content(RELEASE.adapter.arrays, shapes)
    assert len(content) == content_bytes(shapes)
    found = from_content(content, shapes)
    assert list(found) == list(shapes)
    assert all(np.array_equal(found[name], RELEASE.adapter.arrays[name]) for name in shapes)


def test_the_order_is_that_which_the_protocol_says() -> None:
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    said = [f"lora.{layer}.{name}.{factor}" for layer in (0, 1) for name in projections for factor in "AB"]
    assert list(shapes_of(LAYOUT, ("A", "B"))) == said


@pytest.mark.parametrize("more", [-4, -1, 1, 4])
def test_another_size_is_refused(more: int) -> None:
    shapes = shapes_of(LAYOUT, ("A", "B"))
    with pytest.raises(UpdateRejected, match="expected"):
        from_content(bytes(content_bytes(shapes) + more), shapes)


def test_a_head_tells_the_layout() -> None:
    head = release_head(RELEASE)
    assert layout_of(head) == LAYOUT
    assert head.layout_fingerprint == LAYOUT.fingerprint
    assert head.content_bytes == len(release_content(RELEASE))
