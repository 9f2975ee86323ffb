"""The gate lets sound updates through and names what is wrong with the others."""

from dataclasses import replace

import numpy as np
import pytest

from fleetdraft.common.errors import UpdateRejected
from fleetdraft.common.messages import clipped, l2_norm
from fleetdraft.server.gate import Gate

GATE = Gate(factors=("A", "B"), clip_norm=10.0)
NAME = "lora.0.q_proj.A"


def with_tensor(update, name, value):
    return {**update.delta, name: value}


def test_a_sound_update_passes(update_of, release) -> None:
    GATE.check(update_of(), release)


def test_what_a_device_clips_passes(update_of, release) -> None:
    update = update_of(value=5.0)
    GATE.check(update_of(delta=clipped(update.delta, GATE.clip_norm)), release)


@pytest.mark.parametrize("what", ["base", "layout", "release"])
def test_an_update_of_something_else_is_refused(update_of, release, what) -> None:
    with pytest.raises(UpdateRejected, match=f"^{what} is elsewhere…, expected"):
        GATE.check(update_of(**{what: "elsewhere"}), release)


def test_a_missing_tensor_is_refused(update_of, release) -> None:
    delta = dict(update_of().delta)
    del delta[NAME]
    with pytest.raises(UpdateRejected, match=f"tensor {NAME} is missing"):
        GATE.check(update_of(delta=delta), release)


def test_an_unknown_tensor_is_refused(update_of, release) -> None:
    delta = with_tensor(update_of(), "lora.9.q_proj.A", np.zeros(1, np.float32))
    with pytest.raises(UpdateRejected, match=r"tensor lora\.9\.q_proj\.A is unknown"):
        GATE.check(update_of(delta=delta), release)


def test_another_shape_is_refused(update_of, release) -> None:
    delta = with_tensor(update_of(), NAME, np.zeros((3, 8), np.float32))
    with pytest.raises(UpdateRejected, match=r"has shape \(3, 8\), expected \(2, 8\)"):
        GATE.check(update_of(delta=delta), release)


def test_another_dtype_is_refused(update_of, release) -> None:
    delta = with_tensor(update_of(), NAME, np.zeros((2, 8), np.float64))
    with pytest.raises(UpdateRejected, match="has dtype float64, expected float32"):
        GATE.check(update_of(delta=delta), release)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_refused(update_of, release, value) -> None:
    tensor = np.zeros((2, 8), np.float32)
    tensor[1, 3] = value
    with pytest.raises(UpdateRejected, match=f"{NAME} has 1 values that are not finite"):
        GATE.check(update_of(delta=with_tensor(update_of(), NAME, tensor)), release)


def test_a_norm_above_the_bound_is_refused(update_of, release) -> None:
    update = update_of(value=5.0)
    with pytest.raises(UpdateRejected, match=f"norm is {l2_norm(update.delta):.6g}, expected at most 10"):
        GATE.check(update, release)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, 1e12])
def test_a_weight_out_of_range_is_refused(update_of, release, weight) -> None:
    with pytest.raises(UpdateRejected, match=r"^weight is"):
        GATE.check(update_of(weight=weight), release)


def test_a_frozen_factor_must_not_change(update_of, release) -> None:
    gate = Gate(factors=("B",), clip_norm=10.0)
    gate.check(update_of(factors="B"), release)
    with pytest.raises(UpdateRejected, match=r"lora\.0\.q_proj\.A is frozen in this round"):
        gate.check(update_of(factors="AB"), release)


def test_a_smaller_rank_passes_only_where_ranks_are_mixed_and_all_tensors_agree(update_of, release) -> None:
    def of_rank(rank: int) -> dict[str, np.ndarray]:
        shapes = replace(release.adapter.layout, rank=rank).shapes
        return {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}

    mixed = Gate(factors=("A", "B"), clip_norm=10.0, mixed_ranks=True)
    mixed.check(update_of(delta=of_rank(1)), release)
    mixed.check(update_of(delta=of_rank(2)), release)
    for gate, delta in (
        (GATE, of_rank(1)),
        (mixed, of_rank(3)),
        (mixed, of_rank(0)),
        (mixed, of_rank(1) | {NAME: np.zeros((2, 8), np.float32)}),
        (mixed, of_rank(1) | {NAME: np.zeros((), np.float32)}),
    ):
        with pytest.raises(UpdateRejected, match="has shape"):
            gate.check(update_of(delta=delta), release)


@pytest.mark.parametrize(("value", "passes"), [(1e-30, True), (1e30, False)])
def test_values_whose_squares_no_float32_holds_are_judged_all_the_same(update_of, release, value, passes) -> None:
    update = update_of(delta={**update_of(0.0).delta, NAME: np.full((2, 8), value, np.float32)})
    if passes:
        GATE.check(update, release)
    else:
        with pytest.raises(UpdateRejected, match=r"norm is 4e\+30, expected at most 10"):
            GATE.check(update, release)


@pytest.mark.parametrize("excess", [0.9e-3, 1.1e-3])
def test_the_bound_holds_to_more_digits_than_float32_sums_have(update_of, release, excess) -> None:
    rng = np.random.default_rng(0)
    delta = {name: rng.standard_normal(value.shape, np.float32) for name, value in update_of().delta.items()}
    factor = np.float32(GATE.clip_norm * (1 + excess) / l2_norm(delta))
    update = update_of(delta={name: factor * value for name, value in delta.items()})
    if excess < 1e-3:
        GATE.check(update, release)
    else:
        with pytest.raises(UpdateRejected, match=r"norm is 10\.011"):
            GATE.check(update, release)
