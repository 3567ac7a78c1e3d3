"""Tokenizers with MoTo inside.

The slides of the paper show pixel-fine layouts on 16 channels and +0.2 to +0.4 M parameters whatever the trunk's
width, but not where MoTo sits. `stem` is our reading, used for the paper's rows; `token` and `branch` keep the plain
patch embedding, and their gate of 0 makes them start exactly as the plain tokenizer.
"""

import torch
from torch import Tensor, nn

from ..errors import ConfigError, check_choice, check_positive_int, is_number
from ..layers import MoTo
from ..registry import MODELS
from .padding import apply_mask, pad_to_multiple, shrink_mask
from .patch import PatchTokenizer

PLACEMENTS = ('stem', 'token', 'branch')
DEFAULT_GATE = {'stem': None, 'token': 0.0, 'branch': 0.0}


class MoToStem(nn.Module):
    """Overlapping convolution to a few channels, MoTo, activation, projection of the remaining stride.

    Attributes:
        moto: The MoTo layer, on (B,stem_channels,H/stem_stride,W/stem_stride).
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int, stem_channels: int, stem_stride: int,
                 moto: dict):
        super().__init__()
        check_positive_int('stem_channels', stem_channels)
        check_positive_int('stem_stride', stem_stride)
        if patch_size % stem_stride:
            raise ConfigError(f'stem_stride={stem_stride} does not divide patch_size={patch_size}')
        rest = patch_size // stem_stride
        self.patch_size, self.stem_stride = patch_size, stem_stride
        kernel = stem_stride + 1 + stem_stride % 2  # odd, and wider than the stride
        self.conv = nn.Conv2d(in_channels, stem_channels, kernel, stem_stride, padding=kernel // 2)
        self.moto = MoTo(stem_channels, **moto)
        self.act = nn.GELU()
        self.proj = nn.Conv2d(stem_channels, embed_dims, rest, rest)

    def features(self, x: Tensor) -> Tensor:
        """What MoTo sees: (B,C,H,W) -> (B,stem_channels,H/stem_stride,W/stem_stride)."""
        return self.conv(pad_to_multiple(x, self.patch_size))

    def forward(self, x: Tensor, mask: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        x = self.features(x)
        if mask is not None:
            mask = shrink_mask(pad_to_multiple(mask, self.patch_size), self.stem_stride)
        normed = self.moto(x, mask)
        if gate is not None:
            normed = apply_mask(x, mask) + gate * normed
        return self.proj(self.act(normed))


@MODELS.register_module()
class MoToTokenizer(nn.Module):
    """Image -> tokens with MoTo in one of three places.

    - 'stem': overlapping convolution to `stem_channels` at 1/`stem_stride` of the resolution, MoTo, GELU, projection
      of the remaining stride to the trunk's width.
    - 'token': t + g * MoTo(t) on the tokens t of a plain patch embedding (the design of MoTo's ancestor).
    - 'branch': t + g * stem(x).

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels D of a token.
        patch_size: Side p of a patch.
        placement: 'stem', 'token' or 'branch'.
        stem_channels: Channels on which the MoTo of 'stem' and 'branch' works; the paper measures 16.
        stem_stride: Stride of their convolution, a divisor of `patch_size`.
        patch_kernel: Of the plain patch embedding of 'token' and 'branch', see `PatchTokenizer`.
        num_entities, layout_kernel, tau, partition, statistics, backend: Of `mmtok.MoTo`.
        gate: Start value of the learned gate g; None for no gate, 'auto' for 0 with 'token' and 'branch' and none
            with 'stem'. With a gate, 'stem' becomes f + g * MoTo(f) on its feature map f; without one, 'token'
            becomes MoTo(t) and 'branch' t + stem(x).

    Raises:
        ConfigError: For a value that cannot work.
    """

    def __init__(self, in_channels: int = 3, embed_dims: int = 768, patch_size: int = 16, placement: str = 'stem',
                 stem_channels: int = 16, stem_stride: int = 2, num_entities: int = 8, layout_kernel: int = 1,
                 tau: float = 0.1, partition: str = 'soft', statistics: str = 'region',
                 gate: float | str | None = 'auto', backend: str = 'auto', patch_kernel: int | None = None):
        super().__init__()
        check_choice('placement', placement, PLACEMENTS)
        self.placement, self.in_channels, self.embed_dims, self.stride = placement, in_channels, embed_dims, patch_size
        self.plain_patch = None if placement == 'stem' else 'patch.'  # where a plain checkpoint's embedding loads
        moto = dict(num_entities=num_entities, tau=tau, partition=partition, statistics=statistics,
                    kernel_size=layout_kernel, backend=backend)
        if placement != 'stem':
            self.patch = PatchTokenizer(in_channels, embed_dims, patch_size, patch_kernel)
        if placement == 'token':
            self.moto = MoTo(embed_dims, **moto)
        else:
            self.stem = MoToStem(in_channels, embed_dims, patch_size, stem_channels, stem_stride, moto)
        # The name holds 'moto', so that one key of an optimizer wrapper keeps weight decay away from all of MoTo.
        self.moto_gate = make_gate(DEFAULT_GATE[placement] if gate == 'auto' else gate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,C,H,W) -> (B,D,ceil(H/p),ceil(W/p)); mask (B,1,H,W), true where pixels are real, or None."""
        if self.placement == 'stem':
            return self.stem(x, mask, self.moto_gate)
        tokens = self.patch(x)
        if self.placement == 'token':
            change = self.moto(tokens, shrink_mask(mask, self.stride))
            return change if self.moto_gate is None else tokens + self.moto_gate * change
        change = self.stem(x, mask)
        return tokens + (change if self.moto_gate is None else self.moto_gate * change)

    @torch.no_grad()
    def layout(self, x: Tensor) -> Tensor:
        """Learned semantic layout of an image: (B,C,H,W) -> (B,n,h,w) at the resolution where MoTo sits."""
        if self.placement == 'token':
            return self.moto.layout(self.patch(x))
        return self.stem.moto.layout(self.stem.features(x))


def make_gate(start: float | None) -> nn.Parameter | None:
    """A learned scalar (1,), or None for no gate."""
    if start is None:
        return None
    if not is_number(start):
        raise ConfigError(f"gate={start!r} must be a number, None or 'auto'")
    return nn.Parameter(torch.tensor([float(start)]))
