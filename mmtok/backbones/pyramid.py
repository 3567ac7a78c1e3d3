"""What the pyramid trunks share: where the tokens enter, and convolutions that take a map smaller than their kernel."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn


class NormedTokens(nn.Module):
    """Stands where a trunk has its patch embedding: (B,D,h,w) tokens -> normalised (B,h,w,D)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens.permute(0, 2, 3, 1))


def take_small_maps(convolutions: Iterable[nn.Conv2d]) -> None:
    """Pad a map with zeros at the bottom and the right where it is smaller than the kernel; others stay as they are.

    timm and mmdet fail there: spatial reduction by 8 needs images of at least 32 pixels.
    """
    for convolution in convolutions:
        convolution.register_forward_pre_hook(pad_to_kernel)


def pad_to_kernel(convolution: nn.Conv2d, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    x, = args
    missing = [max(0, kernel - 2 * padding - side) for kernel, padding, side in
               zip(convolution.kernel_size, convolution.padding, x.shape[2:], strict=True)]
    return (F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x, )
