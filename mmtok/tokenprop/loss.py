"""Reconstruction losses of TokenProp, and the target that they compare with."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ('l1', 'l2')
REDUCTIONS = ('sum', 'mean')


def output_size(height: int, width: int, scale: int) -> tuple[int, int]:
    """Size of the reconstruction of a (height, width) image: its aspect ratio, and the area of scale x scale.

    A square image gives scale x scale, as in the paper. Keeping the area keeps the cost of the decoder and the
    magnitude of a summed loss the same for every aspect ratio.
    """
    ratio = (height / width) ** 0.5
    return max(1, round(scale * ratio)), max(1, round(scale / ratio))


def make_target(image: Tensor, mask: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The image (B,C,H,W) averaged over cells to (B,C,*size), and how much of each cell is real, (B,1,*size).

    Cells that are partly padding show the mean of their real pixels.
    """
    if mask is None:
        target = F.adaptive_avg_pool2d(image, size)
        return target, torch.ones_like(target[:, :1])
    mask = mask.to(image.dtype)
    real = F.adaptive_avg_pool2d(mask, size)
    return F.adaptive_avg_pool2d(image * mask, size) / real.clamp(min=1e-6), real


def reconstruction_loss(output: Tensor, target: Tensor, real: Tensor, kind: str, reduction: str) -> Tensor:
    """Scalar loss: 'l1' or 'l2' over channels and positions, reduced per image, then averaged over images.

    Args:
        output, target: (B,C,h,w).
        real: Weight of each position (B,1,h,w), 0 in padding.
        kind: One of LOSSES.
        reduction: The weighted 'mean' over the channels and positions of an image, or their 'sum', which is as many
            times the mean as there are channels and positions, those in padding included: the images of a batch weigh
            the same, whatever their sizes.
    """
    difference = output - target
    error = difference.abs() if kind == 'l1' else difference.square()
    per_image = (error * real).sum((1, 2, 3)) / (real.sum((1, 2, 3)).clamp(min=1e-6) * output.shape[1])
    if reduction == 'sum':
        per_image = per_image * output[0].numel()
    return per_image.mean()
