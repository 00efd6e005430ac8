"""Freed memory stays with the process: every step of a run asks for the same again."""

import ctypes
import sys
from functools import cache

# Parameters of glibc's mallopt and what they are set to.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MEBIBYTE = 2**20
SETTINGS = {
    M_MMAP_THRESHOLD: 32 * MEBIBYTE,  # the most that glibc takes
    M_TOP_PAD: 64 * MEBIBYTE,
    M_TRIM_THRESHOLD: 1024 * MEBIBYTE,
}


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, once; False where there is no glibc.

    By default it gives large blocks back to the system at once and gets them again, page by page,
    in the next step: a tenth to a quarter of the time of a small model's step on a CPU (LOG.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return all(mallopt(name, value) == 1 for name, value in SETTINGS.items())
