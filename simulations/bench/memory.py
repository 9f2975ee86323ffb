"""How much memory a process has held. It imports nothing that a device has not."""

from ...common.errors import FleetdraftError
from ...common.machine import peak_rss_bytes


def peak_bytes(process: int | None = None) -> int:
    """The most memory that this process, or that of a number, had resident."""
    peak = peak_rss_bytes(process)
    if peak is None:
        raise FleetdraftError("the peak of resident memory is not known on this system, expected Linux")
    return peak
