"""The C allocator's arenas: one for all threads. It knows no models.

glibc gives threads arenas of their own, eight for each core. An agent's work wanders over dozens of threads, so each
arena comes to hold the largest that ever ran in it: memory creeps by megabytes a minute, with every object freed.
"""

import ctypes

_M_ARENA_MAX = -8


def share_one_arena() -> bool:
    """Has all threads that begin from now on share the main arena; whether this C library can.

    Elsewhere than on glibc nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; no such library; Windows has no library `None`
        return False
    return bool(mallopt(_M_ARENA_MAX, 1))
