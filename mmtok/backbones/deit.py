"""DeiT (Touvron et al., ICML 2021) over timm's VisionTransformer."""

from collections.abc import Sequence

from ..checkpoint.formats import DEIT
from ..registry import MODELS
from .arguments import find_arch
from .vit import PlainViT

ARCHS = {
    'tiny': dict(embed_dims=192, depth=12, num_heads=3),
    'small': dict(embed_dims=384, depth=12, num_heads=6),
    'base': dict(embed_dims=768, depth=12, num_heads=12),
}


@MODELS.register_module()
class DeiT(PlainViT):
    """Plain vision transformer with a class token, without the distillation token.

    Args:
        arch: 'tiny', 'small', 'base', or a dict with embed_dims, depth and num_heads.
        img_size: Image size whose grid the learned position embedding has; other sizes interpolate it.
        patch_size: Side of a token in pixels.
        tokenizer: Config of the tokenizer.
        token_prop: Options of TokenProp (`dict()` for the paper's), or None.
        out_indices: Blocks whose output is returned, negative ones counted from the end.
        final_norm: Apply the last LayerNorm to every output, as timm does; mmseg's recipe has none.
        classifier: Give the normalised class token (B,D) that the authors' classifier takes, in place of maps.
        frozen_stages: The tokenizer, the position embedding and this many blocks are frozen and stay in eval mode;
            -1 for none.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        with_cp: Recompute blocks in backward to save memory.
        mask_padding: Keep the zero padding of a batch out of the tokenizer and of TokenProp, see `TokenBackbone`.
        init_cfg: mmengine's.

    Raises:
        ConfigError: For a value that cannot work.
    """

    public_names, archs, qkv_bias = DEIT, ARCHS, True

    def __init__(self, arch: str | dict = 'small', img_size: int | tuple[int, int] = 224, patch_size: int = 16,
                 tokenizer: dict | None = None, token_prop: dict | None = None, out_indices: Sequence[int] = (-1,),
                 final_norm: bool = False, classifier: bool = False, frozen_stages: int = -1,
                 drop_path_rate: float = 0.0, with_cp: bool = False, mask_padding: bool = True,
                 init_cfg: dict | None = None):
        super().__init__(find_arch(arch, ARCHS), img_size, patch_size,
                         tokenizer or dict(type='mmtok.PatchTokenizer'), token_prop, out_indices, final_norm,
                         classifier, frozen_stages, drop_path_rate, with_cp, mask_padding, init_cfg)
