"""The C allocator's habit of giving large buffers back, and how to break it.

glibc maps every buffer of 32 MiB or more afresh and unmaps it after use, so each use pays for page faults. The logits
of a batch of 2048 tokens over 4096 words are exactly that large: that model's training takes 1.5 times as long.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes freed buffers stay with the process, and tells whether this C library can.

    Elsewhere than on glibc nothing is changed, and training is only slower.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; no such library; Windows has no library `None`
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
