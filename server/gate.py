"""The gate: what an update must be before it may touch the shared adapter. It knows neither rounds nor transport."""

import math
from dataclasses import dataclass

import numpy as np

from ..common.errors import UpdateRejected
from ..common.messages import Release, Update, l2_norm
from .aggregation.rules import trained_shapes

#: Float32 rounding on the device may leave a clipped update this much above the bound.
CLIP_SLACK = 1e-3


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The tests an update has to pass; the same for every client, told in the order they are made.

    Args:
      factors: that devices may change this round; tensors of other factors must be absent.
      clip_norm: L2 bound on the whole update.
      max_weight: the most tokens that one device can have verified in a round.
    """

    factors: tuple[str, ...]
    clip_norm: float
    max_weight: float = 1e7

    def check(self, update: Update, release: Release) -> None:
        """Returns if ``update`` is a sound change of ``release``.

        Raises:
          UpdateRejected: with the first reason found.
        """
        _check_origin(update, release)
        self._check_tensors(update, release)
        norm = _checked_norm(update)
        if norm > self.clip_norm * (1 + CLIP_SLACK):
            raise UpdateRejected(f"norm is {norm:.6g}, expected at most {self.clip_norm:g}")
        self._check_weight(update)

    def _check_tensors(self, update: Update, release: Release) -> None:
        layout = release.adapter.layout
        expected = trained_shapes(layout, self.factors)
        if frozen := [name for name in update.delta if name in layout.shapes and name not in expected]:
            raise UpdateRejected(f"{frozen[0]} is frozen in this round, yet the update changes it")
        if odd := sorted(update.delta.keys() ^ expected.keys()):
            raise UpdateRejected(f"tensor {odd[0][:80]} is {'missing' if odd[0] in expected else 'unknown'}")
        for name, shape in expected.items():
            if update.delta[name].shape != shape:
                raise UpdateRejected(f"{name} has shape {update.delta[name].shape}, expected {shape}")

    def _check_weight(self, update: Update) -> None:
        if not (math.isfinite(update.weight) and 0 < update.weight <= self.max_weight):
            raise UpdateRejected(f"weight is {update.weight:g}, expected 0 < weight <= {self.max_weight:g}")


def _check_origin(update: Update, release: Release) -> None:
    expected = {
        "base": release.base,
        "layout": release.adapter.layout.fingerprint,
        "release": release.adapter.digest,
    }
    for what, digest in expected.items():
        given = getattr(update, what)
        if given != digest:
            raise UpdateRejected(f"{what} is {given[:12]}…, expected {digest[:12]}…")


def _checked_norm(update: Update) -> float:
    """The update's norm, if all its values are finite; squares of float32 cannot overflow float64."""
    for name, value in update.delta.items():
        if value.dtype != np.float32:
            raise UpdateRejected(f"{name} has dtype {value.dtype}, expected float32")
    norm = l2_norm(update.delta)
    if not math.isfinite(norm):
        name = next(name for name, value in update.delta.items() if not np.isfinite(value).all())
        count = int((~np.isfinite(update.delta[name])).sum())
        raise UpdateRejected(f"{name} has {count} values that are not finite")
    return norm
