"""Which pixels of a batch are real, and how that carries over to smaller maps.

mmseg's and mmdet's preprocessors normalise and then pad with 0. ImageNet means are not whole numbers, so no real
uint8 pixel becomes exactly 0 in all channels, and padding can be read off the input.
"""

import torch.nn.functional as F
from torch import Tensor


def valid_mask(image: Tensor) -> Tensor:
    """(B,1,H,W) bool: true where the normalised image (B,C,H,W) is no padding."""
    return (image != 0).any(dim=1, keepdim=True)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and the right, until height and width are multiples of `multiple`."""
    height, width = x.shape[-2:]
    if height % multiple == 0 and width % multiple == 0:
        return x
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


def shrink_mask(mask: Tensor | None, stride: int) -> Tensor | None:
    """The mask after a layer of this stride: a position is real when any pixel of its cell is."""
    if mask is None or stride == 1:
        return mask
    return F.max_pool2d(pad_to_multiple(mask.float(), stride), stride) > 0


def apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero what a layer's bias put into the padding."""
    return x if mask is None else x * mask.to(x.dtype)
