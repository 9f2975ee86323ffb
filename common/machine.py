"""The machine that figures come from: tokens per second mean nothing without it. It knows no figure."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the figures come from; tokens per second mean nothing without it."""

    cpu: str
    cores: int
    threads: int
    """Threads each target was measured with; drafters run on one."""

    @classmethod
    def here(cls, threads: int) -> "Machine":
        return cls(cpu=_cpu_name(), cores=os.cpu_count() or 1, threads=threads)


def peak_rss_bytes(process: int | None = None) -> int | None:
    """The most memory that this process, or that of a number, had resident; None where the system does not tell.

    Not ``ru_maxrss``: it survives exec, so that a child would begin with the size of the one who started it.
    """
    status = Path(f"/proc/{process or 'self'}/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _cpu_name() -> str:
    """The processor's name; Linux keeps it where ``platform`` does not look."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
