"""How much memory this process has held. It imports nothing that a device has not."""

from ...common.errors import FleetdraftError
from ...common.machine import peak_rss_bytes


def peak_bytes() -> int:
    """The most memory that this process had resident."""
    peak = peak_rss_bytes()
    if peak is None:
        raise FleetdraftError("the peak of resident memory is not known on this system, expected Linux")
    return peak
