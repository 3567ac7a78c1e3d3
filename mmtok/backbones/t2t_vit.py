"""T2T-ViT (Yuan et al., ICCV 2021): the tokens-to-token tokenizer before a plain trunk with fixed positions."""

from collections.abc import Sequence
from functools import partial

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..checkpoint.formats import T2T
from ..registry import MODELS
from ..tokenizers import T2TTokenizer
from .arguments import find_arch
from .vit import PlainTrunk, PlainViT

ARCHS = {
    '14': dict(embed_dims=384, depth=14, num_heads=6),
    '19': dict(embed_dims=448, depth=19, num_heads=7),
}


def sinusoids(count: int, dims: int) -> Tensor:
    """The fixed table (1,count,dims) of 'Attention Is All You Need', sine and cosine in turns."""
    even = torch.arange(dims, dtype=torch.float64) // 2 * 2
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000**(even / dims)
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles[None].float()


class SinusoidTrunk(PlainTrunk):
    """A plain trunk whose positions are no parameters. timm's initialisation would draw them."""

    def init_weights(self, *args, **kwargs) -> None:
        super().init_weights(*args, **kwargs)
        table = sinusoids(*self.pos_embed.shape[1:]).to(self.pos_embed)
        del self.pos_embed
        self.register_buffer('pos_embed', table)


@MODELS.register_module()
class T2TViT(PlainViT):
    """T2T-ViT with a class token: MLP ratio 3, no bias in query, key and value, sinusoid positions.

    Args:
        arch: '14', '19', or a dict with embed_dims, depth and num_heads.
        img_size: Image size whose grid the position table has; other sizes resample it, bicubic as in mmpretrain.
        tokenizer: Config of the tokenizer, `mmtok.T2TTokenizer` by default; its `moto=dict()` adds MoTo.
        token_prop, out_indices, final_norm, classifier, frozen_stages, with_cp, mask_padding, init_cfg: As for `DeiT`.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: For a value that cannot work.
    """

    public_names, archs, qkv_bias = T2T, ARCHS, False

    def __init__(self, arch: str | dict = '14', img_size: int | tuple[int, int] = 224, tokenizer: dict | None = None,
                 token_prop: dict | None = None, out_indices: Sequence[int] = (-1,), final_norm: bool = False,
                 classifier: bool = False, frozen_stages: int = -1, drop_path_rate: float = 0.0,
                 with_cp: bool = False, mask_padding: bool = True, init_cfg: dict | None = None):
        super().__init__(find_arch(arch, ARCHS), img_size, 16, tokenizer or dict(type='mmtok.T2TTokenizer'),
                         token_prop, out_indices, final_norm, classifier, frozen_stages, drop_path_rate, with_cp,
                         mask_padding, init_cfg, antialias=False, trunk=SinusoidTrunk, mlp_ratio=3.0, qkv_bias=False,
                         norm_layer=partial(nn.LayerNorm, eps=1e-5))
        if not isinstance(self.tokenizer, T2TTokenizer):
            MMLogger.get_current_instance().warning(
                f'{type(self.tokenizer).__name__} takes the place of the tokens-to-token module that T2T-ViT has its '
                "name from; tokenizer=dict(type='mmtok.T2TTokenizer', moto=dict()) keeps it and puts MoTo inside")
