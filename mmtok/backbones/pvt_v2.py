"""PVTv2 (Wang et al., CVMJ 2022) over timm's PyramidVisionTransformerV2."""

from collections.abc import Sequence

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor

from ..checkpoint.formats import PVT_V2
from ..checkpoint.naming import count_levels
from ..errors import check_positive
from ..registry import MODELS
from .arguments import check_heads, find_arch, find_indices, name_arch
from .base import Stage, TokenBackbone
from .pyramid import NormedTokens, take_small_maps

ARCHS = {
    'b0': dict(embed_dims=(32, 64, 160, 256), depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4)),
    'b1': dict(embed_dims=(64, 128, 320, 512), depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4)),
    'b2': dict(embed_dims=(64, 128, 320, 512), depths=(3, 4, 6, 3), mlp_ratios=(8, 8, 4, 4)),
    'b3': dict(embed_dims=(64, 128, 320, 512), depths=(3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4)),
    'b4': dict(embed_dims=(64, 128, 320, 512), depths=(3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4)),
    'b5': dict(embed_dims=(64, 128, 320, 512), depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
NUM_HEADS, SR_RATIOS, PATCH_KERNEL = (1, 2, 5, 8), (8, 4, 2, 1), 7


@MODELS.register_module()
class PVTv2(TokenBackbone):
    """PVTv2 for any image size; the plain tokenizer is its overlapping 7x7 patch embedding.

    Args:
        arch: 'b0' to 'b5', or a dict with embed_dims, depths and mlp_ratios of four stages.
        tokenizer: Config of the tokenizer.
        token_prop: Options of TokenProp (`dict()` for the paper's), or None.
        out_indices: Stages whose output is returned, negative ones counted from the end.
        classifier: Give the (B,C) mean over the last, normalised map that the authors' classifier takes.
        frozen_stages: The tokenizer and this many stages, with what leads to the next one (norm, positions, patch
            embedding), are frozen and stay in eval mode; -1 for none.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        with_cp: Recompute blocks in backward to save memory.
        norm_eps: Of the norms of patch embeddings and spatial reduction: 1e-5 as the authors and timm have it, 1e-6 for
            weights that mmdet has trained.
        mask_padding: Keep the zero padding of a batch out of the tokenizer and of TokenProp, see `TokenBackbone`.
        init_cfg: mmengine's.

    Raises:
        ConfigError: For a value that cannot work.
    """

    public_names = PVT_V2

    def __init__(self, arch: str | dict = 'b2', tokenizer: dict | None = None, token_prop: dict | None = None,
                 out_indices: Sequence[int] = (0, 1, 2, 3), classifier: bool = False, frozen_stages: int = -1,
                 drop_path_rate: float = 0.1, with_cp: bool = False, norm_eps: float = 1e-5, mask_padding: bool = True,
                 init_cfg: dict | None = None):
        arch = find_arch(arch, ARCHS, stages=4)
        check_positive('norm_eps', norm_eps)
        dims, depths = tuple(arch['embed_dims']), tuple(arch['depths'])
        for width, heads in zip(dims, NUM_HEADS, strict=True):
            check_heads(width, heads)
        super().__init__(dims[0], 4, tokenizer or dict(type='mmtok.PatchTokenizer'), token_prop, mask_padding, init_cfg,
                         frozen_stages, PATCH_KERNEL)
        self.classifier = classifier
        self.out_indices = [len(dims) - 1] if classifier else find_indices(out_indices, len(dims), 'stages')
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.trunk = PyramidVisionTransformerV2(
            num_classes=0, depths=depths, embed_dims=dims, num_heads=NUM_HEADS, sr_ratios=SR_RATIOS,
            mlp_ratios=tuple(arch['mlp_ratios']), drop_path_rate=drop_path_rate)
        blocks = [block for stage in self.trunk.stages for block in stage.blocks]
        for part in (self.trunk.patch_embed, *(stage.downsample for stage in self.trunk.stages[1:]),
                     *(block.attn for block in blocks if block.attn.sr)):
            part.norm.eps = norm_eps
        self.trunk.patch_embed = NormedTokens(self.trunk.patch_embed.norm)
        take_small_maps(block.attn.sr for block in blocks if block.attn.sr)
        self.trunk.set_grad_checkpointing(with_cp)
        self.freeze()

    def stages(self) -> list[Stage]:
        return [Stage([stage.downsample if i else self.trunk.patch_embed], list(stage.blocks), [stage.norm])
                for i, stage in enumerate(self.trunk.stages)]

    @classmethod
    def options_for(cls, state: dict[str, Tensor]) -> dict | None:
        stages = [f'trunk.stages.{i}' for i in range(count_levels(state, 'trunk.stages.'))]
        widths = [len(state.get(f'{stage}.norm.weight', ())) for stage in stages]
        hidden = [len(state.get(f'{stage}.blocks.0.mlp.fc1.weight', ())) for stage in stages]
        if not stages or not all(widths + hidden):
            return None
        return dict(arch=name_arch(
            ARCHS, embed_dims=tuple(widths), depths=tuple(count_levels(state, f'{stage}.blocks.') for stage in stages),
            mlp_ratios=tuple(wide // width for wide, width in zip(hidden, widths, strict=True))))

    def forward_trunk(self, tokens: Tensor) -> tuple[Tensor, ...]:
        x, outs = self.trunk.patch_embed(tokens), []
        for i, stage in enumerate(self.trunk.stages[:self.out_indices[-1] + 1]):
            x = stage(x)  # (B,C,H,W)
            if i in self.out_indices:
                outs.append(x)
        return tuple(out.mean((2, 3)) for out in outs) if self.classifier else tuple(outs)
