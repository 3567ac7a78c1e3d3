"""The plain vision transformer that DeiT and T2T-ViT share: timm's, on a token map of any size."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..checkpoint.naming import count_levels
from ..errors import CheckpointError
from ..layers.positions import PositionCache, source_grid
from .arguments import check_heads, check_image_size, find_indices, name_arch, usual_heads
from .base import Stage, TokenBackbone


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


class PlainTrunk(VisionTransformer):
    """timm's VisionTransformer with a class token, whose resampled positions are kept in eval mode.

    Args:
        antialias: How bicubic resampling of positions works: timm's way, or without, as mmpretrain's.
    """

    def __init__(self, *, antialias: bool, **options):
        super().__init__(num_classes=0, dynamic_img_size=True, embed_layer=TokenInput, **options)
        self.antialias = antialias
        self.position_cache = PositionCache(partial(resample_positions, old_size=self.patch_embed.grid_size,
                                                    antialias=antialias))

    def train(self, mode: bool = True):
        self.position_cache.clear()
        return super().train(mode)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """(B,h,w,D) -> (B,1+hw,D)."""
        positions = self.position_cache(self.pos_embed, tuple(x.shape[1:3]), self.training)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], 1)
        return self.pos_drop(x + positions)


def patch_size_of(state: dict[str, Tensor]) -> int:
    """Stride of the tokens in a checkpoint under our names, 16 where no tensor shows it."""
    for name in ('tokenizer.proj.weight', 'tokenizer.patch.proj.weight'):
        if name in state:
            return state[name].shape[-1]
    if 'tokenizer.stem.proj.weight' in state:  # behind a convolution whose kernel is by 1 wider than its stride
        return state['tokenizer.stem.proj.weight'].shape[-1] * (state['tokenizer.stem.conv.weight'].shape[-1] - 1)
    return 16


def resample_positions(positions: Tensor, size: tuple[int, int], old_size: tuple[int, int], antialias: bool) -> Tensor:
    """Positions (1,1+HW,D) with that of the class token first -> (1,1+hw,D)."""
    return resample_abs_pos_embed(positions, new_size=size, old_size=old_size, antialias=antialias)


class PlainViT(TokenBackbone):
    """A tokenizer before a `PlainTrunk`; all outputs have the stride of the tokens. See `DeiT` for the arguments."""

    unseen = 'num_heads'

    def __init__(self, arch: dict, img_size: int | tuple[int, int], patch_size: int, tokenizer: dict | nn.Module,
                 token_prop: dict | None, out_indices: Sequence[int], final_norm: bool, classifier: bool,
                 frozen_stages: int, drop_path_rate: float, with_cp: bool, mask_padding: bool, init_cfg: dict | None,
                 antialias: bool = True, trunk: Callable[..., PlainTrunk] = PlainTrunk, **trunk_options):
        depth, width = arch['depth'], arch['embed_dims']
        check_heads(width, arch['num_heads'])
        img_size = check_image_size(img_size, 1)
        super().__init__(width, patch_size, tokenizer, token_prop, mask_padding, init_cfg, frozen_stages)
        self.classifier = classifier
        self.out_indices = [depth - 1] if classifier else find_indices(out_indices, depth, 'blocks')
        self.out_channels = (width, ) * len(self.out_indices)
        self.final_norm = final_norm or classifier
        self.trunk = trunk(img_size=img_size, patch_size=patch_size, embed_dim=width, depth=depth,
                           num_heads=arch['num_heads'], drop_path_rate=drop_path_rate, final_norm=self.final_norm,
                           antialias=antialias, **trunk_options)
        self.trunk.set_grad_checkpointing(with_cp)
        self.freeze()

    def stages(self) -> list[Stage]:
        stages = [Stage(blocks=[block]) for block in self.trunk.blocks]
        stages[0].lead = [p for p in (self.trunk.cls_token, self.trunk.pos_embed) if isinstance(p, nn.Parameter)]
        stages[-1].tail = [self.trunk.norm]
        return stages

    @classmethod
    def options_for(cls, state: dict[str, Tensor]) -> dict | None:
        cls_token, biased = state.get('trunk.cls_token'), 'trunk.blocks.0.attn.qkv.bias' in state
        if cls_token is None or biased != cls.qkv_bias or 'trunk.blocks.0.attn.qkv.weight' not in state:
            return None
        width = cls_token.shape[-1]
        options = dict(arch=name_arch(cls.archs, embed_dims=width, depth=count_levels(state, 'trunk.blocks.'),
                                      num_heads=usual_heads(width)))
        patch = patch_size_of(state)
        if patch != 16:
            options['patch_size'] = patch
        side = math.isqrt(state['trunk.pos_embed'].shape[1] - 1) if 'trunk.pos_embed' in state else 0
        if side and side**2 + 1 == state['trunk.pos_embed'].shape[1]:
            options['img_size'] = side * patch
        return options

    def fit_sizes(self, state: dict[str, Tensor], img_size: Sequence[int] | None) -> list[str]:
        name, grid = 'trunk.pos_embed', self.trunk.patch_embed.grid_size
        old, new = state.get(name), self.trunk.pos_embed
        if old is None or old.shape[::2] != new.shape[::2]:
            return []
        try:
            before = source_grid(old.shape[1] - 1, grid, img_size, self.patch_size, name)
        except CheckpointError:
            if math.isqrt(old.shape[1])**2 != old.shape[1] or img_size is not None:
                raise
            raise CheckpointError(f'has {old.shape[1]} positions in {name}, none of them for the class token, as in '
                                  'DeiT III: this trunk has one') from None
        state[name] = resample_positions(old, grid, before, self.trunk.antialias)
        return [f'{name} {before[0]}x{before[1]} -> {grid[0]}x{grid[1]}'] if before != grid else []

    def forward_trunk(self, tokens: Tensor) -> tuple[Tensor, ...]:
        if self.classifier:
            return (self.trunk(tokens), )
        return tuple(self.trunk.forward_intermediates(tokens, indices=self.out_indices, norm=self.final_norm,
                                                      stop_early=True, intermediates_only=True))
