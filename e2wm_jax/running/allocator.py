"""How the C library of this process hands out large blocks of memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = -1  # as mallopt(3) says


def keep_freed_memory() -> bool:
    """Make glibc keep large blocks that are freed, for the next that are asked for.

    XLA on a CPU asks for gigabytes of temporaries at every step and frees them.  By default glibc takes each such block
    from the kernel anew, which then writes zeros into every page as it is first touched.

    Returns:
        Whether that was to be had: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
