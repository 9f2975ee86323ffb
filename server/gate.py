"""The gate: what an update must be before it may touch the shared adapter. It knows neither rounds nor transport."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..common.errors import Reason, UpdateRejected
from ..common.fixed_point import CLIP_SLACK
from ..common.lora import LoraLayout
from ..common.messages import Release, Update, l2_norm
from .aggregation.aggregate import MAX_WEIGHT
from .aggregation.rules import trained_shapes

#: A norm summed in float32 is nearer to the true one than this; nearer to the bound than that, float64 decides.
_QUICK_ERROR = CLIP_SLACK / 2


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The tests an update has to pass; the same for every client, told in the order they are made.

    Args:
      factors: that devices may change this round; tensors of other factors must be absent.
      clip_norm: L2 bound on the whole update.
      mixed_ranks: whether an update may have a smaller rank than the release, the same in all its tensors.
      behind: earlier releases that an update may start from, by digest, and how many releases ago they were.
      max_staleness: how far behind is too far.
      max_weight: the most tokens that one device can have verified in a round.
      gateways: who may answer with the mean of several devices, and of how many at most.
    """

    factors: tuple[str, ...]
    clip_norm: float
    mixed_ranks: bool = False
    behind: Mapping[str, int] = field(default_factory=dict)
    max_staleness: int = 0
    max_weight: float = MAX_WEIGHT
    gateways: Mapping[str, int] = field(default_factory=dict)

    def check(self, update: Update, release: Release) -> None:
        """Returns if ``update`` is a sound change of ``release``.

        Raises:
          UpdateRejected: with the first reason found.
        """
        self._check_origin(update, release)
        self._check_tensors(update, release)
        self._check_values(update)
        self._check_cohort(update)
        self._check_weight(update)

    def _check_origin(self, update: Update, release: Release) -> None:
        layout, newest = release.adapter.layout.fingerprint, release.adapter.digest
        for what, digest in (("base", release.base), ("layout", layout)):
            if (given := getattr(update, what)) != digest:
                raise UpdateRejected(f"{what} is {given[:12]}…, expected {digest[:12]}…", Reason.FINGERPRINT)
        behind = 0 if update.release == newest else self.behind.get(update.release)
        if behind is None:
            raise UpdateRejected(f"release is {update.release[:12]}…, expected {newest[:12]}…", Reason.FINGERPRINT)
        if behind > self.max_staleness:
            expectation = f"expected at most max_staleness = {self.max_staleness}"
            raise UpdateRejected(f"starts {behind} releases behind, {expectation}", Reason.STALE)

    def _check_tensors(self, update: Update, release: Release) -> None:
        layout = release.adapter.layout
        expected = trained_shapes(layout, self.factors)
        if {name: value.shape for name, value in update.delta.items()} == expected:
            return
        if frozen := [name for name in update.delta if name in layout.shapes and name not in expected]:
            raise UpdateRejected(f"{frozen[0]} is frozen in this round, yet the update changes it", Reason.FROZEN)
        if odd := sorted(update.delta.keys() ^ expected.keys()):
            raise UpdateRejected(f"tensor {odd[0][:80]} is {'missing' if odd[0] in expected else 'unknown'}")
        if self.mixed_ranks:
            expected = trained_shapes(replace(layout, rank=self._rank(update, layout)), self.factors)
        for name, shape in expected.items():
            if update.delta[name].shape != shape:
                raise UpdateRejected(f"{name} has shape {update.delta[name].shape}, expected {shape}", Reason.RANK)

    def _rank(self, update: Update, layout: LoraLayout) -> int:
        """The rank that all tensors must have: that of the first, if it is one and not too large."""
        name = next(iter(trained_shapes(layout, self.factors)))
        sizes = update.delta[name].shape
        rank = sizes[0 if name.endswith("A") else -1] if sizes else 0
        return rank if 0 < rank < layout.rank else layout.rank

    def _check_values(self, update: Update) -> None:
        """Finite values whose norm is within the bound: a sum of squares is finite only if every value is."""
        for name, value in update.delta.items():
            if value.dtype != np.float32:
                raise UpdateRejected(f"{name} has dtype {value.dtype}, expected float32")
        limit = self.clip_norm * (1 + CLIP_SLACK)
        if _quick_norm(update) <= limit * (1 - _QUICK_ERROR):
            return
        norm = l2_norm(update.delta)
        if not math.isfinite(norm):
            name = next(name for name, value in update.delta.items() if not np.isfinite(value).all())
            count = int((~np.isfinite(update.delta[name])).sum())
            raise UpdateRejected(f"{name} has {count} values that are not finite", Reason.NOT_FINITE)
        if norm > limit:
            raise UpdateRejected(f"norm is {norm:.6g}, expected at most {self.clip_norm:g}", Reason.NORM)

    def _check_cohort(self, update: Update) -> None:
        """A mean of clipped updates is within the clip as well; what it counts for is the sender's claim."""
        if update.cohort is None:
            return
        if (limit := self.gateways.get(update.client)) is None:
            raise UpdateRejected(
                "a sum of several devices, expected from the gateways of fleet.toml only", Reason.WEIGHT
            )
        if update.devices > limit:
            raise UpdateRejected(f"counts as {update.devices} devices, expected at most {limit}", Reason.WEIGHT)

    def _check_weight(self, update: Update) -> None:
        limit = self.max_weight * update.devices
        if not (math.isfinite(update.weight) and 0 < update.weight <= limit):
            expectation = f"expected 0 < weight <= {limit:g}"
            raise UpdateRejected(f"weight is {update.weight:g}, {expectation}", Reason.WEIGHT)


def _quick_norm(update: Update) -> float:
    """The norm summed in float32, in a single pass; not a number or infinite where a value is, or a square too large.

    Not BLAS, whose threads wait for each other longer than the sum takes.
    """
    flat = (value.reshape(-1) for value in update.delta.values())
    return math.sqrt(sum(float(np.einsum("i,i->", value, value)) for value in flat))
