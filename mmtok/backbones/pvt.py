"""PVT v1 (Wang et al., ICCV 2021) over mmdet's body."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..checkpoint.formats import PVT as NAMES
from ..checkpoint.naming import count_levels
from ..errors import ConfigError
from ..registry import MODELS
from .arguments import check_image_size, find_arch, find_indices, name_arch
from .base import Stage, TokenBackbone

ARCHS = {
    'small': dict(depths=(3, 4, 6, 3)),
    'medium': dict(depths=(3, 4, 18, 3)),
}
EMBED_DIMS, NUM_HEADS = 64, (1, 2, 5, 8)  # a stage is EMBED_DIMS wide for each of its heads


@MODELS.register_module()
class PVT(TokenBackbone):
    """PVT v1 for any image size. Needs mmdet, whose pyramid it is; timm has none.

    An image whose sides are no multiples of 4 is padded to the next, where mmdet drops the rest.

    Args:
        arch: 'small', 'medium', or a dict with the depths of four stages.
        img_size: Image size whose grids the learned position embeddings have; other sizes interpolate them.
        tokenizer: Config of the tokenizer.
        token_prop: Options of TokenProp (`dict()` for the paper's), or None.
        out_indices: Stages whose output is returned, negative ones counted from the end.
        classifier: Give the normalised class token (B,C) of the authors' classifier, in place of maps.
        frozen_stages: The tokenizer and this many stages, with what leads to the next one (norm, positions, patch
            embedding), are frozen and stay in eval mode; -1 for none.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        with_cp: Recompute blocks in backward to save memory.
        mask_padding: Keep the zero padding of a batch out of the tokenizer and of TokenProp, see `TokenBackbone`.
        init_cfg: mmengine's.

    Raises:
        ConfigError: For a value that cannot work, and without mmdet.
    """

    public_names = NAMES

    def __init__(self, arch: str | dict = 'small', img_size: int | tuple[int, int] = 224,
                 tokenizer: dict | None = None, token_prop: dict | None = None,
                 out_indices: Sequence[int] = (0, 1, 2, 3), classifier: bool = False, frozen_stages: int = -1,
                 drop_path_rate: float = 0.1, with_cp: bool = False, mask_padding: bool = True,
                 init_cfg: dict | None = None):
        try:
            from .pvt_trunk import PVTTrunk
        except (ImportError, AssertionError) as error:  # mmdet asserts the versions that it takes
            raise ConfigError(f'mmtok.PVT is built on mmdet, which cannot be imported ({error}): install it with '
                              "pip install '.[openmmlab]' or '.[onedl]' in mmtok's folder, or take mmtok.PVTv2; "
                              'python -m mmtok.check_env says what fits') from error
        img_size = check_image_size(img_size, 32)  # the stride of the last stage
        depths = tuple(find_arch(arch, ARCHS, stages=4)['depths'])
        super().__init__(EMBED_DIMS, 4, tokenizer or dict(type='mmtok.PatchTokenizer'), token_prop, mask_padding,
                         init_cfg, frozen_stages)
        self.classifier = classifier
        self.out_indices = [len(depths) - 1] if classifier else find_indices(out_indices, len(depths), 'stages')
        self.out_channels = tuple(EMBED_DIMS * NUM_HEADS[i] for i in self.out_indices)
        self.trunk = PVTTrunk(classifier, with_cp, pretrain_img_size=img_size, embed_dims=EMBED_DIMS, num_layers=depths,
                              num_heads=NUM_HEADS, out_indices=self.out_indices, drop_path_rate=drop_path_rate)
        self.freeze()

    def stages(self) -> list[Stage]:
        stages = [Stage([embed, positions], blocks) for embed, (positions, *blocks), _ in self.trunk.layers]
        if self.trunk.classifier:
            stages[-1].lead.append(self.trunk.cls_token)
            stages[-1].tail = [self.trunk.norm]
        return stages

    @classmethod
    def options_for(cls, state: dict[str, Tensor]) -> dict | None:
        positions = state.get('trunk.layers.0.1.0.pos_embed')
        if positions is None:
            return None
        depths = tuple(count_levels(state, f'trunk.layers.{i}.1.') - 1
                       for i in range(count_levels(state, 'trunk.layers.')))
        options = dict(arch=name_arch(ARCHS, depths=depths), classifier='trunk.cls_token' in state)
        side = math.isqrt(positions.shape[1])
        return {**options, 'img_size': 4 * side} if side**2 == positions.shape[1] else options

    def fit_sizes(self, state: dict[str, Tensor], img_size: Sequence[int] | None) -> list[str]:
        return self.trunk.fit_positions(state, img_size)

    def forward_trunk(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.trunk(tokens))
