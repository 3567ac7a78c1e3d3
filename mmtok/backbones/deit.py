"""DeiT (Touvron et al., ICML 2021) over timm's VisionTransformer."""

from collections.abc import Sequence

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import MODELS
from .base import TokenBackbone, find_arch, find_indices

ARCHS = {
    'tiny': dict(embed_dims=192, depth=12, num_heads=3),
    'small': dict(embed_dims=384, depth=12, num_heads=6),
    'base': dict(embed_dims=768, depth=12, num_heads=12),
}


class TokenInput(nn.Module):
    """Stands where timm's trunk expects its patch embedding: passes a token map (B,D,h,w) on as (B,h,w,D)."""

    def __init__(self, img_size: int | tuple[int, int], patch_size: int, **_):
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = -(-height // patch_size), -(-width // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.permute(0, 2, 3, 1)


@MODELS.register_module()
class DeiT(TokenBackbone):
    """Plain vision transformer with a class token, without the distillation token.

    Args:
        arch: 'tiny', 'small', 'base', or a dict with embed_dims, depth and num_heads.
        img_size: Image size whose grid the learned position embedding has; other sizes interpolate it.
        patch_size: Side of a token in pixels.
        tokenizer: Config of the tokenizer.
        token_prop: Options of TokenProp (`dict()` for the paper's), or None.
        out_indices: Blocks whose output is returned, negative ones counted from the end.
        final_norm: Apply the last LayerNorm to every output, as timm does; mmseg's recipe has none.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        with_cp: Recompute blocks in backward to save memory.
        mask_padding: Keep the zero padding of a batch out of MoTo's statistics and of TokenProp.
        init_cfg: mmengine's.

    Raises:
        ConfigError: For a value that cannot work.
    """

    def __init__(self, arch: str | dict = 'small', img_size: int | tuple[int, int] = 224, patch_size: int = 16,
                 tokenizer: dict | None = None, token_prop: dict | None = None, out_indices: Sequence[int] = (-1,),
                 final_norm: bool = False, drop_path_rate: float = 0.0, with_cp: bool = False,
                 mask_padding: bool = True, init_cfg: dict | None = None):
        arch = find_arch(arch, ARCHS)
        depth, width = arch['depth'], arch['embed_dims']
        if width % arch['num_heads']:
            raise ConfigError(f'embed_dims={width} of the arch is no multiple of num_heads={arch["num_heads"]}')
        super().__init__(width, patch_size, tokenizer or dict(type='mmtok.PatchTokenizer'), token_prop,
                         mask_padding, init_cfg)
        self.out_indices, self.final_norm = find_indices(out_indices, depth, 'blocks'), final_norm
        self.out_channels = (width, ) * len(self.out_indices)
        self.trunk = VisionTransformer(
            img_size=img_size, patch_size=patch_size, embed_dim=width, depth=depth,
            num_heads=arch['num_heads'], num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path_rate,
            final_norm=final_norm, embed_layer=TokenInput)
        self.trunk.set_grad_checkpointing(with_cp)

    def forward_trunk(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.trunk.forward_intermediates(tokens, indices=self.out_indices, norm=self.final_norm,
                                                      stop_early=True, intermediates_only=True))
