"""The TokenProp objective: lambda * rec(G(tokens), image), section 3 of the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, check_choice, check_positive_int, is_number
from .loss import LOSSES, REDUCTIONS, make_target, output_size, reconstruction_loss

NOT_COLLECTED = ('the backbone has token_prop=dict(...), but nothing collects its loss: add '
                 "custom_hooks=[dict(type='mmtok.TokenPropHook')] to the config, or remove token_prop")
BASE_WIDTH = 64  # of the decoder at x1; its cost at 64x64 is then 3.5 % of a DeiT-S forward pass


class TokenDecoder(nn.Sequential):
    """Light decoder G: tokens (B,D,h,w) -> image (B,3,*size), resized between its first and second layer."""

    def __init__(self, embed_dims: int, width: int, out_channels: int = 3):
        super().__init__(
            nn.Conv2d(embed_dims, width, 1), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        x = self[1](self[0](tokens))
        smaller = tuple(map(min, x.shape[2:], size))
        if smaller != x.shape[2:]:  # a mean, since bilinear samples would leave tokens out
            x = F.adaptive_avg_pool2d(x, smaller)
        x = F.interpolate(x, size, mode='bilinear', align_corners=False)
        return self[4](self[3](self[2](x)))


class TokenProp(nn.Module):
    """Decoder and loss on the tokenizer's output; lives in the backbone, works in training only.

    Args:
        embed_dims: Channels D of a token.
        loss: 'l1' or 'l2'.
        loss_weight: lambda. The paper's best is 0.001; 1 gave NaN there and stays finite here.
        reduction: 'sum' over the pixels and channels of an image (the default: the paper's NaN at lambda = 1, and
            its best lambda, fit a summed loss), or their 'mean'. Either is averaged over images, which weigh the same
            however much of the batch's size they fill. At output scale 64, 'sum' with lambda = 0.001 weighs as much
            as 'mean' with lambda = 12.3.
        width: Channels of the decoder, as a multiple of 64: the paper's x1, x2, x4.
        output_scale: Side of the reconstruction: the paper's 64, 128, 256.

    Raises:
        ConfigError: For a value that cannot work.
    """

    def __init__(self, embed_dims: int, loss: str = 'l2', loss_weight: float = 0.001, reduction: str = 'sum',
                 width: int = 1, output_scale: int = 64):
        super().__init__()
        check_choice('token_prop.loss', loss, LOSSES)
        check_choice('token_prop.reduction', reduction, REDUCTIONS)
        check_positive_int('token_prop.width', width)
        check_positive_int('token_prop.output_scale', output_scale)
        if not is_number(loss_weight) or loss_weight < 0:
            raise ConfigError(f'token_prop.loss_weight={loss_weight!r} (lambda) must be a number of at least 0')
        self.loss, self.loss_weight, self.reduction, self.output_scale = loss, loss_weight, reduction, output_scale
        self.decoder = TokenDecoder(embed_dims, BASE_WIDTH * width)
        self.collected = False  # whether something fetches `value`: set by `attach`
        self.value: Tensor | None = None
        self._register_load_state_dict_pre_hook(self.keep_own_weights)

    def keep_own_weights(self, state_dict, prefix, *_) -> None:
        """A checkpoint without any decoder is complete: inference has none. Runs before loading."""
        own = self.state_dict(prefix=prefix, keep_vars=True)
        if not any(key in state_dict for key in own):
            state_dict.update((key, value.detach()) for key, value in own.items())

    def forward(self, tokens: Tensor, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weighted loss, a scalar in float32.

        Args:
            tokens: Output of the tokenizer (B,D,h,w).
            image: Its normalised input (B,3,H,W).
            mask: (B,1,H,W), true where pixels are real; padding is not reconstructed.
        """
        size = output_size(*image.shape[2:], self.output_scale)
        output = self.decoder(tokens, size)
        with torch.autocast(image.device.type, enabled=False):
            target, real = make_target(image.float(), mask, size)
            loss = reconstruction_loss(output.float(), target, real, self.loss, self.reduction)
            return self.loss_weight * loss

    def record(self, tokens: Tensor, image: Tensor, mask: Tensor | None) -> None:
        """Compute the loss and keep it for the hook; called by the backbone in training."""
        if not self.collected:
            raise ConfigError(NOT_COLLECTED)
        value = self(tokens, image, mask)
        self.value = value if self.value is None else self.value + value

    def take(self) -> Tensor | None:
        """The loss of the last forward pass, once."""
        value, self.value = self.value, None
        return value
