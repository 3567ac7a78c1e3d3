"""The inputs of the torch backend, cut into blocks of pixels that stay in the cache."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import MIN_MASS
from .work_space import keep_piece, take_piece

ORIGIN_PIXELS = 4096  # enough for a shift that need not be exact
# Enough to see whether a shift is worth its pass: runs of pixels all over a map, of as many images as are cheap to read
RUNS, RUN, SEEN_ELEMENTS = 16, 16, 1 << 18
# Of a (2C, pixels) work buffer. CPU: backward has four of that size in the third-level cache; else few launches.
BLOCK_BYTES = {'cpu': 1 << 22}
BLOCK_BYTES_ELSEWHERE = 1 << 27
WHOLE_ELEMENTS = 1 << 18  # a map up to this size is one block, whose buffers the second pass finds still filled
CHUNK = 512  # pixels of a tile of a large image; see Tiling
ALIGNED = 64  # elements: so that each part of the work space begins like a tensor of its own
FLOAT32_EPS = 1e-12  # what underflows when squared in float32 is far below this


def evenly(count: int, most: int) -> int:
    """How many of `count` tiles go into a block, at most `most`: no more than their number of blocks asks for."""
    return -(-count // -(-count // most))


class Tiling:
    """How a map is cut into blocks whose work buffers stay in the cache, and blocks into T tiles of a few pixels.

    Of a large image a block is T chunks of pixels, of small ones T images. Maps (B,*,P) turn into (T,*,p), tables
    (B,*,*) into (T,*,*). Operators share tiles among threads, so that what a thread reads it has written before, in
    its own cache; and sums over few pixels round less.

    An elementwise operator goes by the strides of what it writes: into a large map one channel after the other, so that
    threads share channels. `by_channels` has blocks for that: of a large image, T=1 tile of all their pixels.
    """

    def __init__(self, shape: tuple[int, int, int], whole: bool, elements: int, by_channels: bool = False):
        batch, channels, pixels = shape
        room = elements // (2 * channels)  # pixels of a block
        self.chunked = not whole and pixels > max(room, CHUNK)
        if self.chunked:
            chunks, most = pixels // CHUNK, max(1, room // CHUNK)
            together, self.chunk = evenly(chunks, most), CHUNK
            if by_channels:
                together, self.chunk = 1, together * CHUNK
            self.even = pixels // self.chunk * self.chunk
            tiles = self.even // self.chunk
        else:
            most = max(1, room // pixels)
            self.chunk = self.even = pixels
            together, tiles = batch if whole else evenly(batch, most), batch
        self.largest = together * self.chunk  # pixels of a block
        # T of each block, of an image or, where tiles are images, of the batch; what is left of an image is a tile, too
        self.even_counts = [min(together, tiles - done) for done in range(0, tiles, together)]
        self.counts = self.even_counts + [1] * (self.even < pixels)

    def maps(self, map: Tensor | None) -> Sequence[Tensor] | Iterator[None]:
        """Of each block its part of a map (T,*,p)."""
        if map is None:
            return repeat(None)
        if not self.chunked:
            return map.split_with_sizes(self.counts)
        # In one operator: on 224x224 pixels views by several took half as long as the arithmetic
        (batch, rows, pixels), (image, row, pixel) = map.shape, map.stride()
        tiles = map.as_strided((batch, self.even // self.chunk, rows, self.chunk),
                               (image, self.chunk * pixel, row, pixel))
        parts = []
        for number in range(batch):
            parts += tiles[number].split_with_sizes(self.even_counts)
            if self.even < pixels:
                parts.append(map[number:number + 1, :, self.even:])
        return parts

    def tables(self, table: Tensor | None) -> Sequence[Tensor] | Iterator[None]:
        """Of each block a row for each of its tiles (T,*,*)."""
        if table is None:
            return repeat(None)
        if not self.chunked:
            return table.split_with_sizes(self.counts)
        return [row.expand(count, -1, -1) for row in table.split_with_sizes([1] * len(table)) for count in self.counts]


class Block(NamedTuple):
    """The part of the inputs that is worked on at a time: T tiles, with the rows of the tables that they need."""

    partition: str
    x: Tensor  # (T,C,p)
    origin: Tensor | None  # (T,C,1); None is 0
    given: Tensor | None  # (T,n,p), the layout
    mask: Tensor | None  # (T,1,p)
    slope: Tensor | None  # (T,n,C)
    offset: Tensor | None  # (T,n,1)

    def centre(self, out: Tensor) -> Tensor:
        """x - origin."""
        if self.origin is None:
            return out.copy_(self.x)
        if self.x.dtype == out.dtype:
            return torch.sub(self.x, self.origin, out=out)
        return out.copy_(self.x).sub_(self.origin)  # one call would make a wide temporary

    def centred(self, buffers: 'Buffers') -> Tensor:
        """x - origin, to be read: x itself where no work space is set aside for it; see `Inputs.copied`."""
        return self.centre(buffers('x', self)) if buffers.rows['x'] else self.x

    def layout(self, centred: Tensor, buffers: 'Buffers') -> tuple[Tensor, Tensor | None]:
        """Layout (T,n,p) with padding set to 0, and the softmax behind it where there is one; see `Inputs.shares`."""
        share, soft = self.given, None
        if share is None:
            # torch.softmax over a dimension that is not the last one takes four times as long on a CPU (torch 2.1)
            logits = torch.baddbmm(self.offset, self.slope, centred, out=buffers('soft', self))
            row = buffers('row', self)
            soft = logits.sub_(torch.amax(logits, 1, keepdim=True, out=row)).exp_()
            share = soft.div_(torch.sum(soft, 1, keepdim=True, out=row))
            if self.partition == 'hard':
                share = buffers('share', self).zero_().scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        elif share.dtype != centred.dtype:
            share = buffers('share', self).copy_(share)
        if self.mask is not None:
            share = torch.mul(share, self.mask, out=buffers('share', self))
        return share, soft


@dataclass
class Inputs:
    """The inputs of one call, flattened to (B,*,P) views, and how to walk over them.

    The layout is either given, or the softmax of a 1x1 convolution of x with filters `weight (n,C)`. All
    statistics are those of `x - origin`, where `origin (B,C,1)` is a mean over some pixels of each channel, or None for
    0 where that is as good.
    """

    x: Tensor
    layout: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    tau: float
    partition: str
    statistics: str
    eps: float
    work: torch.dtype | None = None  # of the blocks; None for float32 where that can be right
    shifted: bool | None = None  # whether there is an origin; None for one where that is better

    def __post_init__(self):
        self.region = self.statistics == 'region'
        self.whole = self.x.numel() <= WHOLE_ELEMENTS
        self.use(self.work or (torch.float32 if self.may_be_float32() else torch.float64), self.shifted)

    def may_be_float32(self) -> bool:
        """Whether float32 blocks are worth a try."""
        choosing = self.layout is None and self.partition == 'hard'  # an argmax is right or wrong
        wide = torch.float64 in (self.x.dtype, None if self.layout is None else self.layout.dtype)
        # A subclass of Tensor may have no values to look at afterwards
        fits = self.x.device.type == 'cpu' and type(self.x) is Tensor and self.eps >= FLOAT32_EPS
        return fits and not wide and not choosing and torch.get_float32_matmul_precision() == 'highest'

    def use(self, work: torch.dtype, shifted: bool | None = None) -> None:
        """Have the blocks in one precision, and with an origin or without."""
        if shifted is None:  # the moments of X * L are not those of (X - origin) * L
            shifted = self.region and not (work == torch.float32 and lies_around_zero(self.x))
        self.work, self.shifted = work, shifted
        self.origin = self.x[:, :, :ORIGIN_PIXELS].mean(2, dtype=work, keepdim=True) if shifted else None
        if self.weight is not None:
            slope = (self.tau * self.weight).expand(self.x.shape[0], -1, -1)  # (B,n,C)
            offset = slope.new_zeros((*slope.shape[:2], 1)) if self.origin is None else slope @ self.origin.double()
            if self.bias is not None:
                offset = offset + self.tau * self.bias[:, None]
            # A softmax does not see what all offsets share; without the largest, float32 keeps their differences
            self.slope, self.offset = slope.to(work), (offset - offset.amax(1, keepdim=True)).to(work)
        self.tiling, self.blocks = self.cut()

    def refine(self, reason: str) -> None:
        """After float32 blocks that were not enough: give them an origin where that can help, else turn to float64."""
        if reason == 'spread' and self.region and not self.shifted:
            self.use(self.work, shifted=True)
        else:
            self.use(torch.float64)

    def cut(self, by_channels: bool = False) -> tuple[Tiling, list[Block]]:
        """How maps and tables are cut, and the blocks of what forward and backward share."""
        size = BLOCK_BYTES.get(self.x.device.type, BLOCK_BYTES_ELSEWHERE) // self.work.itemsize
        tiling = Tiling(self.x.shape, self.whole, size, by_channels)
        filters = (None, None) if self.weight is None else (self.slope, self.offset)
        return tiling, [Block(self.partition, *parts) for parts in zip(
            tiling.maps(self.x), tiling.tables(self.origin), tiling.maps(self.layout), tiling.maps(self.mask),
            *map(tiling.tables, filters), strict=False)]

    @property
    def copied(self) -> int:
        """Rows of the work space in which x - origin stands: 0 where x itself is that."""
        return 0 if self.origin is None and self.x.dtype == self.work else self.x.shape[1]

    @property
    def shares(self) -> dict[str, int]:
        """Rows of the work space for `Block.layout`: softmax, what is made of it or of a given layout, one more."""
        choosing = self.weight is not None
        n = self.slope.shape[1] if choosing else self.layout.shape[1]
        made = self.partition == 'hard' if choosing else self.layout.dtype != self.work
        return dict(soft=n if choosing else 0, share=n if made or self.mask is not None else 0, row=int(choosing))

    def population(self, mass: Tensor) -> Tensor | int:
        """What the moments are divided by: the mass (B,n,1), or with 'product' the number of real pixels."""
        if self.region:
            return mass.clamp(min=MIN_MASS)
        if self.mask is None:
            return self.x.shape[2]
        return self.mask.double().sum(2, keepdim=True).clamp(min=1)


def lies_around_zero(x: Tensor) -> bool:
    """Whether all channels (B,C,P) have their mean within a deviation from 0, as far as a few pixels tell."""
    batch, channels, pixels = x.shape
    images = max(1, SEEN_ELEMENTS // (channels * min(pixels, RUNS * RUN)))
    few = x[::-(-batch // images)] if images < batch else x
    if pixels > RUNS * RUN:
        image, row, pixel = few.stride()
        few = few.as_strided((len(few), channels, RUNS, RUN), (image, row, pixels // RUNS * pixel, pixel)).flatten(2)
    few = few.float()
    sums = few.sum(2)
    # 2 * mean^2 <= mean square, and 'no' where that is no number. In few operators: on small maps they take longer than
    # the arithmetic.
    return (few * few).sum(2).addcmul_(sums, sums, value=-2 / few.shape[2]).amin().item() >= 0


class Sums:
    """A table (B,rows,columns) of sums over pixels: each tile fills its own, in the precision of the blocks."""

    def __init__(self, inputs: Inputs, rows: int, columns: int):
        batch, tiling = len(inputs.x), inputs.tiling
        self.counts, of_image = (tiling.counts * batch, sum(tiling.counts)) if tiling.chunked else (tiling.counts, 1)
        self.tiles = inputs.x.new_empty((batch, of_image, rows, columns), dtype=inputs.work)

    def __iter__(self) -> Iterator[Tensor]:
        """Of each block what its tiles fill (T,rows,columns)."""
        return iter(self.tiles.flatten(0, 1).split_with_sizes(self.counts))

    def total(self) -> Tensor:
        """The sums of the tiles, in float64."""
        return self.tiles.sum(1, dtype=torch.float64)


class Buffers:
    """Work space that is handed out again and again: fresh pages would cost more than the arithmetic.

    Each name gets `rows` of the largest block. On a CPU all of it is one piece, which the thread keeps for its next
    call once `give_back` says that this one is done.
    """

    def __init__(self, inputs: Inputs, tiling: Tiling, **rows: int):
        pixels = -(-tiling.largest // ALIGNED) * ALIGNED
        sizes = [count * pixels for count in rows.values()]
        self.piece = None
        if inputs.x.device.type == 'cpu' and type(inputs.x) is Tensor:  # a subclass of Tensor may have no memory
            size = sum(sizes) * inputs.work.itemsize
            self.piece = take_piece(size)
            parts = self.piece[:size].view(inputs.work).split_with_sizes(sizes)
        else:
            parts = [torch.empty(size, dtype=inputs.work, device=inputs.x.device) for size in sizes]
        self.rows, self.parts, self.views = rows, dict(zip(rows, parts, strict=True)), {}

    def __call__(self, name: str, block: Block) -> Tensor:
        """(T,rows,p), not set to anything."""
        tiles, _, pixels = block.x.shape
        key = name, tiles, pixels
        if key not in self.views:
            shape = tiles, self.rows[name], pixels
            self.views[key] = self.parts[name][:math.prod(shape)].view(shape)
        return self.views[key]

    def give_back(self) -> None:
        """Leave the piece to the thread's next call; the caller reads nothing of it any more."""
        if self.piece is not None:
            keep_piece(self.piece)
        self.piece = self.parts = self.views = None
