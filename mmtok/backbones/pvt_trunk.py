"""mmdet's PyramidVisionTransformer on tokens, with what the authors' classifier has. Imported only where mmdet is."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmdet.models.backbones.pvt import AbsolutePositionEmbedding, PyramidVisionTransformer
from timm.layers import trunc_normal_
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from ..layers.positions import PositionCache, source_grid
from .pyramid import NormedTokens, take_small_maps


class Positions(AbsolutePositionEmbedding):
    """mmdet's learned positions, bilinear at other sizes, kept in eval mode; with a class token also one for it."""

    def __init__(self, pos_shape: tuple[int, int], pos_dim: int, class_token: bool):
        super().__init__(pos_shape, pos_dim)
        if class_token:  # first, as in the authors' files
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.pos_embed.shape[1], pos_dim))
        self.class_token = class_token
        self.position_cache = PositionCache(self.resample)

    def resample(self, positions: Tensor, size: tuple[int, int]) -> Tensor:
        grid = self.resize_pos_embed(positions, size)
        return torch.cat([positions[:, :1], grid], 1) if self.class_token else grid

    def fit(self, positions: Tensor, size: tuple[int, int]) -> Tensor:
        """Positions of a grid, with or without that of a class token, made those of this module."""
        first, grid = positions.split([positions.shape[1] - size[0] * size[1], size[0] * size[1]], 1)
        grid = grid.to(torch.promote_types(grid.dtype, torch.float32)).transpose(1, 2).unflatten(2, size)
        grid = F.interpolate(grid, self.pos_shape, mode='bilinear')
        if not self.class_token:
            first = first[:, :0]
        elif not first.shape[1]:
            first = self.pos_embed[:, :1].detach()  # the file has none: as initialised
        return torch.cat([first, grid.flatten(2).transpose(1, 2).to(first.dtype)], 1)

    def train(self, mode: bool = True):
        self.position_cache.clear()
        return super().train(mode)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B,N,C) -> (B,N,C); size is that of the map, without a class token."""
        return x + self.position_cache(self.pos_embed, size, self.training)


class PVTTrunk(PyramidVisionTransformer):
    """Tokens -> pyramid, or the authors' class token.

    `classifier` adds their class token in the last stage, its position and the final norm, and takes their epsilon of
    1e-5 for the norms of patch embeddings and spatial reduction, which mmdet sets to 1e-6.
    """

    def __init__(self, classifier: bool, with_cp: bool, **options):
        super().__init__(**options)
        self.classifier, self.with_cp = classifier, with_cp
        last = self.num_stages - 1
        for i, (embed, blocks, _) in enumerate(self.layers):
            old = blocks[0]
            blocks[0] = Positions(tuple(int(side) for side in old.pos_shape), old.pos_dim, classifier and i == last)
            norms = [embed.norm, *(block.attn.norm for block in blocks[1:] if block.attn.sr_ratio > 1)]
            if classifier:
                for norm in norms:
                    norm.eps = 1e-5
            if i:
                take_small_maps([embed.projection])
            take_small_maps(block.attn.sr for block in blocks[1:] if block.attn.sr_ratio > 1)
        self.layers[0][0] = NormedTokens(self.layers[0][0].norm)
        if classifier:
            width = self.layers[last][1][0].pos_dim
            self.cls_token, self.norm = nn.Parameter(torch.zeros(1, 1, width)), nn.LayerNorm(width, eps=1e-6)
        self.init_weights()

    def init_weights(self) -> None:
        """As the authors start: linear layers, positions and the class token with deviation 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Linear) or getattr(module, 'kernel_size', None) == (1, 1):  # mmdet's MLP
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                trunc_normal_(module.in_proj_weight, std=0.02)
                nn.init.zeros_(module.in_proj_bias)
            elif isinstance(module, Positions):
                trunc_normal_(module.pos_embed, std=0.02)
        if self.classifier:
            trunc_normal_(self.cls_token, std=0.02)

    def fit_positions(self, state: dict[str, Tensor], img_size: Sequence[int] | None) -> list[str]:
        """Make those of another image size, or with or without a class token, fit; returns what was resampled."""
        resized = []
        for i, (_, (positions, *_), _) in enumerate(self.layers):
            name, grid = f'trunk.layers.{i}.1.0.pos_embed', positions.pos_shape
            old, new = state.get(name), positions.pos_embed
            if old is None or old.shape[-1] != new.shape[-1]:
                continue
            with_class = i == self.num_stages - 1 and 'trunk.cls_token' in state
            before = source_grid(old.shape[1] - with_class, grid, img_size, 4 << i, name)
            if before == grid and old.shape == new.shape:
                continue
            state[name] = positions.fit(old, before)
            if before != grid:
                resized.append(f'{name} {before[0]}x{before[1]} -> {grid[0]}x{grid[1]}')
        return resized

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (B,D,h,w) -> maps (B,C_k,H_k,W_k) of `out_indices`, or [(B,C)] with `classifier`."""
        x, outs = tokens, []
        for i, (embed, (positions, *blocks), _) in enumerate(self.layers):
            x = embed(x)
            x, size = (x.flatten(1, 2), tuple(x.shape[1:3])) if i == 0 else x  # (B,N,C)
            with_class = self.classifier and i == self.num_stages - 1
            if with_class:
                x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            x = positions(x, size)
            shape = (x.shape[1], 1) if with_class else size  # without reduction, all the same to the blocks
            for block in blocks:
                run = partial(checkpoint, block) if self.with_cp and self.training else block
                x = run(x, shape)
            if with_class:
                return [self.norm(x[:, 0])]
            x = x.transpose(1, 2).unflatten(2, size)
            if i in self.out_indices:
                outs.append(x)
            if i == self.out_indices[-1] and not self.classifier:
                break
        return outs
