"""Keep freed memory for the next batch instead of asking the system for it again.

glibc gives large freed blocks back at once, and every temporary of the next layer then costs a page fault for each of
its 4 KiB: on a CPU about a tenth of a forward. While a batch runs, up to `KEPT` bytes stay with the process; they are
given back at the end. Elsewhere (another C library or system, another device) this does nothing.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keep_freed_memory"]

KEPT = 512 * 2**20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them
_LARGEST = 32 * 2**20  # what glibc itself raises the threshold of mapping a block to, at most


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within it blocks come from the heap, which is not trimmed; on leaving it is, and thresholds are glibc's largest."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, KEPT)
    libc.mallopt(_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        libc.malloc_trim(0)
