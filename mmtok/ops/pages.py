"""Huge pages for large results on a CPU.

The C library returns large blocks to the system, which hands out new ones page by page, at the first touch of each: of
4 KiB pages that takes several times as long as writing them. Huge pages, which Linux gives to who asks, cost a quarter
of that. NumPy asks for its arrays of 4 MiB and more, too.
"""

import ctypes
import sys

from torch import Tensor

LARGE = 1 << 21  # bytes of a huge page
PAGE = 1 << 12
MADV_HUGEPAGE = 14  # mman.h


def find_madvise():
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
        # To the ends of its first and last page: so what lies side by side on the heap can share a huge page
        start = fresh.data_ptr() // PAGE * PAGE
        end = -(-(fresh.data_ptr() + size) // PAGE) * PAGE
        MADVISE(start, end - start, MADV_HUGEPAGE)  # advice: it may be refused
    return fresh
