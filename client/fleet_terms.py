"""What a gateway asks for, held against what a device can do before a byte is fetched. It knows no connection."""

import ipaddress
import math
from dataclasses import replace

from ..common.content import content_bytes
from ..common.errors import FleetdraftError, FleetError
from ..common.fleet_wire import layout_of
from ..common.lora import LoraLayout
from ..common.wire import fleet_pb2 as wire

_FACTORS = frozenset("AB")
#: A device asks no later, whatever a gateway says.
_LONGEST_WAIT_S = 86400.0


def check_task(task: wire.Task) -> None:
    """Returns if this version knows how to do what ``task`` asks.

    Raises:
      FleetError: another kind, other factors, or a number that bounds nothing.
    """
    factors, clip_norm = list(task.factors), task.clip_norm
    bounded = math.isfinite(clip_norm) and clip_norm > 0
    trains = task.kind == wire.Task.TRAIN and factors and set(factors) <= _FACTORS and bounded
    if not (trains or task.kind == wire.Task.EVALUATE) or not math.isfinite(task.deadline_s):
        asked = f"kind {task.kind} of {', '.join(factors) or 'nothing'} within {clip_norm:g} in {task.deadline_s:g} s"
        raise FleetError(f"task {task.id[:64]} asks for {asked}, which this version does not know; update the app")


def check_head(head: wire.ReleaseHead, base: str, layout: str, most_bytes: int) -> None:
    """Returns if this device may fetch the release.

    Args:
      base: fingerprint of the device's drafter.
      layout: fingerprint of its bundle's layout; empty: whatever the head says.
      most_bytes: of content.

    Raises:
      FleetError: it is for another drafter or layout, contradicts itself, or is too large.
    """
    if head.base != base:
        raise FleetError(f"the release is for the drafter {head.base[:12]}…, this is {base[:12]}…; update the bundle")
    try:
        found = layout_of(head)
        expected = _content_bytes(found)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, FleetdraftError) as error:
        raise FleetError(f"the release's layout cannot be read ({type(error).__name__})") from error
    if head.layout_fingerprint != found.fingerprint or head.layout_fingerprint != (layout or head.layout_fingerprint):
        given = head.layout_fingerprint[:12]
        raise FleetError(f"the release's layout is {given}…, expected {(layout or found.fingerprint)[:12]}…")
    if head.content_bytes != expected or expected > most_bytes:
        given = f"the release has {head.content_bytes} bytes"
        raise FleetError(f"{given}, expected {expected} as its layout has, and at most {most_bytes}")


def _content_bytes(layout: LoraLayout) -> int:
    """Bytes of a release, by its first layer: a layout may claim more layers than there is memory to list."""
    first = replace(layout, shape=replace(layout.shape, layers=1)).shapes
    if layout.shape.layers < 1 or min(min(size) for size in first.values()) < 1:
        raise ValueError("a size is below 1")
    return layout.shape.layers * content_bytes(first)


def come_back_s(told_s: float, least_s: float) -> float:
    """Seconds to wait when ``told_s`` was told: at least ``least_s``, at most a day."""
    return _LONGEST_WAIT_S if math.isnan(told_s) else min(_LONGEST_WAIT_S, max(least_s, told_s))


def is_loopback(address: str) -> bool:
    """Whether what is sent to ``address`` stays on this machine: a Unix socket, or HOST:PORT with a loopback host."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
