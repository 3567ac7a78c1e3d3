"""Swin (Liu et al., ICCV 2021) over timm's blocks, with the two window rules that exist in the field."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import resize_rel_pos_bias_table, to_2tuple
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from ..checkpoint.formats import SWIN
from ..checkpoint.naming import count_levels
from ..errors import check_choice, check_positive_int
from ..registry import MODELS
from .arguments import check_heads, find_arch, find_indices, name_arch
from .base import Stage, TokenBackbone
from .pyramid import NormedTokens

ARCHS = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
}
TABLE = 'attn.relative_position_bias_table'
WINDOW_RULES = ('dense', 'classification')


@lru_cache(maxsize=16)  # four image sizes; each entry stays on the device, 13 MiB for the first stage at 800x1333
def shifted_window_mask(height: int, width: int, window: int, shift: tuple[int, int], device: torch.device,
                        dtype: torch.dtype) -> Tensor:
    """(windows, window^2, window^2): -100 between positions that only the cyclic shift brought together."""
    region = torch.zeros(1, height, width, 1, device=device, dtype=dtype)
    for axis, (size, step) in enumerate(zip((height, width), shift, strict=True)):
        cuts = torch.zeros(size, device=device, dtype=dtype)
        if step:
            cuts[size - window:] = 1
            cuts[size - step:] = 2
        region += (cuts[:, None, None] * 3 if axis == 0 else cuts[:, None])
    region = window_partition(region, (window, window)).flatten(1)
    return torch.where(region[:, None] == region[:, :, None], 0.0, -100.0).to(dtype)


class WindowRuleBlock(SwinTransformerBlock):
    """timm's block whose windows follow one of two rules and keep their size on every map.

    Both pad, then roll. 'dense' (mmdet, mmseg, the authors' detection code) always shifts; 'classification' (timm
    and the authors' classifier at 224) does not shift along an axis that is no longer than the window.
    """

    def __init__(self, *args, window_rule: str, **kwargs):
        super().__init__(*args, always_partition=True, dynamic_mask=True, **kwargs)
        self.window_rule = window_rule

    def _attn(self, x: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        _, height, width, channels = x.shape
        window = self.window_size[0]
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        padded = x.shape[1:3]
        shift = self.shift_size
        if self.window_rule == 'classification':
            shift = tuple(0 if size <= window else step for size, step in zip((height, width), shift, strict=True))
        mask = None
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
            mask = shifted_window_mask(*padded, window, shift, x.device, x.dtype)
        windows = window_partition(x, self.window_size).view(-1, self.window_area, channels)
        windows = self.attn(windows, mask=mask).view(-1, window, window, channels)
        x = window_reverse(windows, self.window_size, *padded)
        if any(shift):
            x = torch.roll(x, shift, (1, 2))
        return x[:, :height, :width].contiguous()


class TokenInput(NormedTokens):
    """What timm's Swin builds where it expects its patch embedding."""

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, norm_layer, **_):
        super().__init__(norm_layer(embed_dim))
        self.grid_size = tuple(size // patch_size for size in to_2tuple(img_size))


@MODELS.register_module()
class Swin(TokenBackbone):
    """Swin with a LayerNorm on each output, for any image size.

    Args:
        arch: 'tiny', 'small', or a dict with embed_dims, depths and num_heads.
        window_size: Side of a window in tokens; bias tables belong to it and never shrink.
        window_rule: 'dense' equals mmdet's and mmseg's Swin at every size, 'classification' timm's at 224.
        patch_size: Side of a token in pixels.
        tokenizer: Config of the tokenizer.
        token_prop: Options of TokenProp (`dict()` for the paper's), or None.
        out_indices: Stages whose output is returned, negative ones counted from the end.
        classifier: Give the (B,C) mean over the last, normalised map that the authors' classifier takes.
        frozen_stages: The tokenizer and this many stages, with their output norms and the patch merging behind them,
            are frozen and stay in eval mode; -1 for none, 0 for the tokenizer alone, as in mmdet.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        with_cp: Recompute stages in backward to save memory.
        mask_padding: Keep the zero padding of a batch out of the tokenizer and of TokenProp, see `TokenBackbone`.
        init_cfg: mmengine's.

    Raises:
        ConfigError: For a value that cannot work.
    """

    public_names = SWIN

    def __init__(self, arch: str | dict = 'tiny', window_size: int = 7, window_rule: str = 'dense',
                 patch_size: int = 4, tokenizer: dict | None = None, token_prop: dict | None = None,
                 out_indices: Sequence[int] = (0, 1, 2, 3), classifier: bool = False, frozen_stages: int = -1,
                 drop_path_rate: float = 0.2, with_cp: bool = False, mask_padding: bool = True,
                 init_cfg: dict | None = None):
        arch = find_arch(arch, ARCHS)
        check_choice('window_rule', window_rule, WINDOW_RULES)
        check_positive_int('window_size', window_size)
        width, depths, heads = arch['embed_dims'], tuple(arch['depths']), tuple(arch['num_heads'])
        for i, number in enumerate(heads):
            check_heads(width << i, number)
        super().__init__(width, patch_size, tokenizer or dict(type='mmtok.PatchTokenizer'), token_prop, mask_padding,
                         init_cfg, frozen_stages)
        stages = len(depths)
        self.classifier = classifier
        self.out_indices = [stages - 1] if classifier else find_indices(out_indices, stages, 'stages')
        self.out_channels = tuple(width << i for i in self.out_indices)
        self.trunk = SwinTransformer(
            img_size=window_size * patch_size << (stages - 1), patch_size=patch_size, embed_dim=width, depths=depths,
            num_heads=heads, window_size=window_size, num_classes=0, drop_path_rate=drop_path_rate,
            always_partition=True, dynamic_img_size=True, embed_layer=TokenInput)
        self.trunk.norm = nn.Identity()  # each output has its own
        for stage in self.trunk.layers:
            stage.grad_checkpointing = with_cp
            for i, block in enumerate(stage.blocks):
                stage.blocks[i] = WindowRuleBlock(
                    block.dim, block.input_resolution, num_heads=block.attn.num_heads, window_size=window_size,
                    shift_size=block.target_shift_size, window_rule=window_rule,
                    drop_path=getattr(block.drop_path1, 'drop_prob', 0.0))
        self.trunk.init_weights()  # the new blocks too
        self.norms = nn.ModuleDict({str(i): nn.LayerNorm(width << i) for i in self.out_indices})
        self.freeze()

    def stages(self) -> list[Stage]:
        layers = self.trunk.layers
        return [Stage([layer.downsample if i else self.trunk.patch_embed], list(layer.blocks),
                      [self.norms[str(i)]] if i in self.out_indices else []) for i, layer in enumerate(layers)]

    @classmethod
    def options_for(cls, state: dict[str, Tensor]) -> dict | None:
        tables = [state.get(f'trunk.layers.{i}.blocks.0.{TABLE}') for i in range(count_levels(state, 'trunk.layers.'))]
        width = state.get('trunk.layers.0.blocks.0.norm1.weight')
        if not tables or width is None or any(table is None for table in tables):
            return None
        depths = tuple(count_levels(state, f'trunk.layers.{i}.blocks.') for i in range(len(tables)))
        return dict(arch=name_arch(ARCHS, embed_dims=len(width), depths=depths,
                                   num_heads=tuple(table.shape[1] for table in tables)),
                    window_size=(math.isqrt(len(tables[0])) + 1) // 2)

    def fit_sizes(self, state: dict[str, Tensor], img_size: Sequence[int] | None) -> list[str]:
        """Bias tables of another window size, resampled as timm does."""
        resized = []
        for i, stage in enumerate(self.trunk.layers):
            for j, block in enumerate(stage.blocks):
                name, new = f'trunk.layers.{i}.blocks.{j}.{TABLE}', block.attn.relative_position_bias_table
                old = state.get(name)
                if old is None or old.shape == new.shape or old.shape[1:] != new.shape[1:]:
                    continue
                before, after = ((math.isqrt(len(table)) + 1) // 2 for table in (old, new))
                if (2 * before - 1)**2 != len(old):
                    continue  # no square window: reported as a tensor that does not fit
                state[name] = resize_rel_pos_bias_table(old, block.window_size, new.shape)
                resized.append(f'{name} {before}x{before} -> {after}x{after}')
        return resized

    def forward_trunk(self, tokens: Tensor) -> tuple[Tensor, ...]:
        x = self.trunk.patch_embed(tokens)
        outs = []
        for i, stage in enumerate(self.trunk.layers[:self.out_indices[-1] + 1]):
            x = stage(x)
            if i in self.out_indices:
                outs.append(self.norms[str(i)](x).permute(0, 3, 1, 2).contiguous())
        return tuple(out.mean((2, 3)) for out in outs) if self.classifier else tuple(outs)
