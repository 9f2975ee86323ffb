"""How much memory a process has held. It imports nothing that a device has not."""

from pathlib import Path

from ...common.errors import FleetdraftError


def peak_bytes(process: int | None = None) -> int:
    """The most memory that this process, or that of a number, had resident.

    Not ``ru_maxrss``: it survives exec, so that a child would begin with the size of the one who started it.
    """
    for line in Path(f"/proc/{process or 'self'}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise FleetdraftError("the peak of resident memory is not known on this system, expected Linux")
