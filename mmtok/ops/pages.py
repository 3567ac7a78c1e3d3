"""Huge pages for large results and work space on a CPU.

The C library returns large blocks to the system, which hands out new ones page by page, at the first touch of each: of
4 KiB pages that takes several times as long as writing them. Huge pages, which Linux gives to whoever asks, cost a
quarter of that. NumPy asks for its arrays of 4 MiB and more, too; torch does for all of its own where a user sets
THP_MEM_ALLOC_ENABLE=1, but not by itself. What is asked for stays asked for until the memory goes back to the system:
on the heap, also for what comes to lie there later.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable

from torch import Tensor

LARGE = 1 << 22  # bytes, as in NumPy
MADV_HUGEPAGE = 14  # mman.h


def find_madvise() -> Callable | None:
    """The C library's function; None where there is none."""
    if sys.platform != 'linux':
        return None
    madvise = getattr(ctypes.CDLL(None), 'madvise', None)
    if madvise is not None:
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return madvise


MADVISE = find_madvise()


def in_huge_pages(fresh: Tensor) -> Tensor:
    """The same tensor, not yet written to, whose memory comes in huge pages if it is large and the system has them."""
    size = fresh.numel() * fresh.element_size()
    # A subclass of Tensor may have no memory
    if MADVISE is not None and size >= LARGE and fresh.device.type == 'cpu' and type(fresh) is Tensor:
        start = -(-fresh.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (fresh.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        MADVISE(start, end - start, MADV_HUGEPAGE)  # advice: it may be refused
    return fresh
