"""Memory on a CPU that a thread keeps from one call to the next.

What is freed goes back to the system as soon as much of the heap's end is free, and the next call takes it anew page by
page. On maps of 224x224 pixels many a forward took half as long again, and many a backward twice as
long. Each thread that calls MoTo has a piece, until it ends or calls `release`.

A graph that `make_fx` traces has the piece of the thread that traced it as a constant.
"""

import threading

import torch
from torch import Tensor

from .pages import in_huge_pages

# Bytes. Of 16 channels and 8 entities a forward takes up to 6 MiB and a backward 18, however large the map; with
# hundreds of entities it would be more than a thread should hold on to
MOST_KEPT = 1 << 26
KEPT = threading.local()


def take_piece(size: int) -> Tensor:
    """At least `size` bytes, uninitialised; no other call gets them before `keep_piece`."""
    if size > MOST_KEPT:
        return new_piece(size)
    piece, KEPT.piece = getattr(KEPT, 'piece', None), None
    if piece is None or len(piece) < size:
        del piece  # so that the two are never held at once
        piece = new_piece(size)
    return piece


def new_piece(size: int) -> Tensor:
    with torch.inference_mode(False):  # what is made in that mode could not be written to outside of it
        return in_huge_pages(torch.empty(size, dtype=torch.uint8, device='cpu'))


def keep_piece(piece: Tensor) -> None:
    """Have it for the next call of this thread."""
    if len(piece) <= MOST_KEPT:
        KEPT.piece = piece


def release() -> None:
    """Free what this thread keeps."""
    KEPT.piece = None
