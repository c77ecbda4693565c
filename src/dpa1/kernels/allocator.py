"""Keeping freed memory for the next block of work instead of returning it to the system.

glibc maps every large array anew and unmaps it when it is freed; the system then clears each page again on first touch,
which took 20–40 % of a training step. Threads other than the first get heaps of their own, which it unmaps as soon as
they are empty whatever the settings: one heap for all is faster.
"""

from __future__ import annotations

import ctypes
import logging
import platform

log = logging.getLogger("dpa1")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # numbers of <malloc.h>
LARGEST_KEPT = 32 << 20  # bytes of one array; glibc's own limit. What is larger is still returned when freed
KEPT = 2**31 - 1  # bytes at the end of the heap


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse what this process frees; for processes that are ours, so never at import.

    Returns whether it took effect: not outside Linux with glibc, where nothing happens.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        log.debug("freed memory goes back to the system: the allocator is not glibc's")
        return False
    library = ctypes.CDLL(None)
    wanted = {M_MMAP_THRESHOLD: LARGEST_KEPT, M_TRIM_THRESHOLD: KEPT, M_ARENA_MAX: 1}
    kept = [library.mallopt(*setting) for setting in wanted.items()]
    log.debug("freed memory is kept for reuse: %s", kept)
    return all(kept)
