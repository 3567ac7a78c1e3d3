"""Position embeddings at other sizes than the trained one: resampled, and in eval mode not again for each image."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import CheckpointError

SIZES_KEPT = 8  # as many as a test with several scales and flips sees


class PositionCache:
    """Keeps what `resample(positions, size)` gave while the positions do not change and need no gradient.

    The owner drops it in `train()`, which sees what a version counter does not: writes through `.data`, such as those
    of mmengine's EMA hook, come before a change of mode.

    Args:
        resample: (positions, (height, width)) -> positions at that size.
    """

    def __init__(self, resample: Callable[[Tensor, tuple[int, int]], Tensor]):
        self.resample = resample
        self.clear()

    def clear(self) -> None:
        self.source, self.kept = None, {}

    def __getstate__(self):
        return {'resample': self.resample, 'source': None, 'kept': {}}  # copies and pickles start empty

    def __call__(self, positions: Tensor, size: tuple[int, int], training: bool) -> Tensor:
        """Positions at a size (height, width)."""
        compiling = hasattr(torch.compiler, 'is_compiling') and torch.compiler.is_compiling()  # torch >= 2.3
        if (training or compiling or torch.jit.is_tracing() or positions.is_inference()
                or (positions.requires_grad and torch.is_grad_enabled())):
            return self.resample(positions, size)
        try:
            source = positions.data_ptr(), positions._version, positions.dtype, positions.device
        except RuntimeError:  # inside torch.func transforms there is no storage
            return self.resample(positions, size)
        if source != self.source:
            self.source, self.kept = source, {}
        if size not in self.kept:
            if len(self.kept) == SIZES_KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[size] = self.resample(positions, size)
        return self.kept[size]


def source_grid(count: int, target: tuple[int, int], img_size: Sequence[int] | None, stride: int,
                name: str) -> tuple[int, int]:
    """(height, width) of the grid that `count` positions of a checkpoint belong to.

    It is what an image size makes of it; without one the square, or what has the proportions of our own grid.

    Raises:
        CheckpointError: When the image size makes another number, or it could be two grids or none.
    """
    if img_size is not None:
        grid = tuple(-(-side // stride) for side in img_size)
        if grid[0] * grid[1] != count:
            raise CheckpointError(f'has {count} positions in {name}, but img_size={tuple(img_size)} makes '
                                  f'{grid[0]}x{grid[1]} at stride {stride}')
        return grid
    square, tall = math.isqrt(count), math.isqrt(count * target[0] // target[1])
    found = {(square, square)} if square**2 == count else set()
    if tall and tall * tall * target[1] == count * target[0] and count % tall == 0:
        found.add((tall, count // tall))
    if len(found) != 1:
        fault = ' or '.join(f'{height}x{width}' for height, width in sorted(found)) or 'no square'
        raise CheckpointError(f'has {count} positions in {name}, which make {fault}: say from which image size they '
                              'are, with init_cfg=dict(..., img_size=(HEIGHT, WIDTH))')
    return found.pop()
