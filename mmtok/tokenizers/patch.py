"""Patchify: the tokenizer of ViT and DeiT, trained or frozen."""

import math

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ..errors import ConfigError, check_positive_int
from ..registry import MODELS


@MODELS.register_module()
class PatchTokenizer(PatchEmbed):
    """timm's patch embedding that keeps the token map and takes any image size.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels D of a token.
        patch_size: Side p of a patch; images are padded with zeros at the bottom and the right to its multiple.
        patch_kernel: Odd kernel of an overlapping embedding with stride p, as PVTv2 has it; None for p.
    """

    uses_mask = False  # padding with zeros changes no token of real pixels
    plain_patch = ''  # a plain checkpoint's patch embedding loads right here

    def __init__(self, in_channels: int = 3, embed_dims: int = 768, patch_size: int = 16,
                 patch_kernel: int | None = None):
        super().__init__(img_size=None, patch_size=patch_size, in_chans=in_channels, embed_dim=embed_dims,
                         output_fmt='NCHW', strict_img_size=False, dynamic_img_pad=True)
        if patch_kernel is not None:
            check_positive_int('patch_kernel', patch_kernel)
            if patch_kernel % 2 == 0 or patch_kernel <= patch_size:
                raise ConfigError(f'patch_kernel={patch_kernel} must be odd and larger than patch_size={patch_size}')
            self.proj = nn.Conv2d(in_channels, embed_dims, patch_kernel, patch_size, padding=patch_kernel // 2)
            nn.init.kaiming_normal_(self.proj.weight, mode='fan_out')  # as PVTv2 starts
            nn.init.zeros_(self.proj.bias)
        self.in_channels, self.embed_dims, self.stride = in_channels, embed_dims, patch_size

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,C,H,W) -> (B,D,ceil(H/p),ceil(W/p)); the mask is ignored."""
        return super().forward(x)


@MODELS.register_module()
class FrozenTokenizer(PatchTokenizer):
    """A random patch embedding that is never trained: row 'Frozen' of Table 1, as in MoCo v3.

    Drawn as MoCo v3 draws it (Xavier-uniform over a flattened patch, zero bias). `requires_grad` is false, so the
    optimizer leaves it alone, weight decay included, and an average of its weights is the weights. A plain
    checkpoint does not replace it; one that was trained with a frozen tokenizer does.
    """

    plain_patch = None

    def __init__(self, in_channels: int = 3, embed_dims: int = 768, patch_size: int = 16,
                 patch_kernel: int | None = None):
        super().__init__(in_channels, embed_dims, patch_size, patch_kernel)
        bound = math.sqrt(6.0 / (in_channels * self.proj.kernel_size[0]**2 + embed_dims))
        with torch.no_grad():
            nn.init.uniform_(self.proj.weight, -bound, bound)
            nn.init.zeros_(self.proj.bias)
        self.requires_grad_(False)
