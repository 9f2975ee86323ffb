"""Block quantisation: what is stored is near what was given, and nothing else is read back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fleetdraft.common.blocks import BLOCK, PACKED, SCALES, dequantise, quantise

#: float32 without subnormals, whose quotients round as they like.
VALUES = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=VALUES)


def _read_back(matrix: np.ndarray, bits: int) -> np.ndarray:
    stored = quantise({"w": matrix}, bits)
    return dequantise(stored["w" + PACKED], stored["w" + SCALES], matrix.shape[1])


def _peaks(matrix: np.ndarray) -> np.ndarray:
    """The largest absolute value of the block of each entry."""
    padded = np.pad(np.abs(matrix), [(0, 0), (0, -matrix.shape[1] % BLOCK)])
    peaks = padded.reshape(len(matrix), -1, BLOCK).max(axis=-1)
    return np.repeat(peaks, BLOCK, axis=1)[:, : matrix.shape[1]]


@given(MATRICES)
def test_eight_bits_are_within_a_step(matrix):
    """The peak is -128 steps, so a value of the other sign may have to stop at 127: one step off, others half a one."""
    assert np.all(np.abs(_read_back(matrix, 8) - matrix) <= _peaks(matrix) / 128 * (1 + 1e-5) + 1e-9)


@given(MATRICES)
def test_four_bits_are_no_worse_in_sum_than_cutting_nothing(matrix):
    peaks = np.maximum(_peaks(matrix), np.float32(1e-12)).astype(np.float64)
    plain = np.clip(np.rint(np.abs(matrix) / peaks * 8), 0, 7) * peaks / 8  # at worst without the step to -8
    error = np.square(_read_back(matrix, 4).astype(np.float64) - matrix).sum()
    assert error <= np.square(plain - np.abs(matrix)).sum() * (1 + 1e-5) + 1e-12


def test_cutting_the_peaks_of_a_bell_curve_costs_less_than_it_gives(monkeypatch):
    matrix = np.random.default_rng(0).standard_normal((64, 4 * BLOCK)).astype(np.float32)
    cut = np.square(_read_back(matrix, 4) - matrix).mean()
    monkeypatch.setattr("fleetdraft.common.blocks._CUTS", {4: (1.0,)})
    assert cut < 0.95 * np.square(_read_back(matrix, 4) - matrix).mean()


@pytest.mark.parametrize("bits", [4, 8])
def test_values_on_the_grid_come_back_exactly(bits):
    """Half the range, so that any block's peak, whatever its sign, keeps the rest on the grid."""
    rng, zero = np.random.default_rng(0), 1 << bits - 1
    integers = rng.integers(-zero + 1, zero, (20, 3 * BLOCK))
    integers[:, ::BLOCK] = -zero
    scale = np.repeat(rng.uniform(0.5, 2, (20, 3)).astype(np.float32), BLOCK, axis=1)
    matrix = (integers * scale).astype(np.float32)
    np.testing.assert_allclose(_read_back(matrix, bits), matrix, rtol=1e-6)


@pytest.mark.parametrize(("bits", "size"), [(4, 16), (8, 32)])
def test_layout_is_that_of_matmulnbits(bits, size):
    """Rows are filled up to whole blocks with zeros; a byte's low half is the first of two values."""
    row = np.zeros((1, 40), np.float32)
    row[0, :3] = -8.0, 1.0, 7.0  # in 4 bits: 0, 9, 15 around the zero point 8
    stored = quantise({"w": row, "norm": row[0]}, bits)
    assert stored["w" + PACKED].shape == (1, 2, size)
    assert stored["w" + SCALES].shape == (1, 2)
    if bits == 4:
        assert stored["w" + PACKED][0, 0, :2].tolist() == [0 | 9 << 4, 15 | 8 << 4]
    np.testing.assert_array_equal(stored["norm"], row[0])


def test_a_matrix_of_zeros_stays_so():
    assert not _read_back(np.zeros((2, 40), np.float32), 4).any()
