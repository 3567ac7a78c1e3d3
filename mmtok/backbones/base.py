"""What all backbones share: image -> tokenizer -> (TokenProp) -> trunk -> feature maps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..checkpoint import load_pretrained
from ..checkpoint.naming import Rule
from ..errors import ConfigError, check_choice, check_options, check_positive_int, is_number
from ..registry import MODELS
from ..tokenizers.padding import valid_mask
from ..tokenprop.token_prop import TokenProp
from .arguments import as_configs, check_image_size, check_init_cfg, is_pretrained


@dataclass
class Stage:
    """Parts of a trunk in the order in which tokens pass them: modules, or parameters of their own.

    Attributes:
        lead: What prepares the tokens: position embedding, patch merging.
        blocks: Transformer blocks, one layer each.
        tail: Norms of this stage's output.
    """

    lead: list[nn.Module | nn.Parameter] = field(default_factory=list)
    blocks: list[nn.Module] = field(default_factory=list)
    tail: list[nn.Module] = field(default_factory=list)


class TokenBackbone(BaseModule):
    """A tokenizer, the optional TokenProp decoder on its output, and a trunk.

    A subclass sets `self.trunk` and `self.out_channels` (C_k of each output), implements `forward_trunk`, `stages` and
    `options_for`, and calls `freeze` when it is built.

    Args:
        embed_dims: Width D of the tokens that the trunk takes.
        patch_size: Stride p of the tokens that the trunk takes.
        tokenizer: Config of a tokenizer, or a module (image, mask) -> (B,D,H/p,W/p).
        token_prop: Options of `TokenProp`, or None for no decoder.
        mask_padding: Keep the zero padding of a batch out of MoTo's statistics, of TokenProp and of the attention
            inside T2T's tokenizer. It is read off the input, which holds as long as no real pixel is normalised to 0 in
            all channels.
        init_cfg: mmengine's; `dict(type='Pretrained', checkpoint=...)` takes the options of `load_pretrained`.
        frozen_stages: The tokenizer and this many stages, with what leads to the next one (norm of the tokens,
            positions, patch merging), are frozen and stay in eval mode; -1 for none. A stage of a plain vision
            transformer is a block.
        patch_kernel: Kernel of the trunk's plain patch embedding, given to tokenizers that take one.
    """

    public_names: dict[str, tuple[Rule, ...]] = {}  # how others name the tensors
    unseen = ''  # the size of an arch that no tensor shows

    def __new__(cls, *args, **kwargs):
        hint = '; a config that replaces the backbone of its _base_ needs _delete_=True'
        if 'pretrained' in kwargs:  # mmseg's segmentors pass it on
            hint = ': set model.pretrained=None and name a file in model.backbone.init_cfg'
        check_options(f'model.backbone {cls.__name__}', kwargs, cls.__init__, hint)
        if kwargs.get('classifier') and 'out_indices' in kwargs:
            raise ConfigError(f'{cls.__name__} with classifier=True gives one vector, of its last layer: remove '
                              'out_indices')
        rate = kwargs.get('drop_path_rate', 0)
        if not is_number(rate) or not 0 <= rate < 1:
            raise ConfigError(f'drop_path_rate={rate!r} must be a number from 0 to below 1')
        return super().__new__(cls)

    def __init__(self, embed_dims: int, patch_size: int, tokenizer: dict | nn.Module, token_prop: dict | None,
                 mask_padding: bool, init_cfg: dict | None, frozen_stages: int = -1, patch_kernel: int | None = None):
        check_init_cfg(init_cfg)
        super().__init__(init_cfg)
        check_positive_int('patch_size', patch_size)
        self.embed_dims, self.patch_size, self.mask_padding = embed_dims, patch_size, mask_padding
        self.frozen_stages = frozen_stages
        if not isinstance(tokenizer, nn.Module):
            tokenizer = build_tokenizer(tokenizer, embed_dims=embed_dims, patch_size=patch_size,
                                        patch_kernel=patch_kernel)
        for name, ours, theirs in (('embed_dims', embed_dims, getattr(tokenizer, 'embed_dims', embed_dims)),
                                   ('patch_size', patch_size, getattr(tokenizer, 'stride', patch_size))):
            if ours != theirs:
                raise ConfigError(f'the tokenizer has {name}={theirs}, but the trunk of {type(self).__name__} takes '
                                  f'{name}={ours}: remove {name} from the tokenizer or change the trunk')
        self.tokenizer = tokenizer
        self.token_prop = None
        if token_prop is not None:
            if not isinstance(token_prop, dict):
                raise ConfigError(f'token_prop={token_prop!r} must be a dict of options, dict() for the defaults, or '
                                  'None')
            check_options('token_prop', token_prop, TokenProp)
            self.token_prop = TokenProp(embed_dims, **token_prop)
        self._register_load_state_dict_pre_hook(self.drop_foreign_decoder)

    def drop_foreign_decoder(self, state_dict, prefix, *_) -> None:
        """A model without a decoder loads a checkpoint with one, silently. Runs before loading."""
        if self.token_prop is None:
            for key in [key for key in state_dict if key.startswith(f'{prefix}token_prop.')]:
                del state_dict[key]

    def init_weights(self) -> None:
        """mmengine's, with our loader behind `Pretrained`."""
        pretrained = next((cfg for cfg in as_configs(self.init_cfg) if is_pretrained(cfg)), None)
        if pretrained is None:
            super().init_weights()
            return
        options = {key: value for key, value in pretrained.items() if key != 'type'}
        if options.get('img_size') is not None:
            options['img_size'] = check_image_size(options['img_size'], 1)
        load_pretrained(self, **{**options, 'checkpoint': str(options['checkpoint'])})
        self._is_init = True

    @property
    def tokenizer_uses_mask(self) -> bool:
        """Whether padding would change tokens outside of it."""
        return getattr(self.tokenizer, 'uses_mask', True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Normalised images (B,3,H,W) of any size -> feature maps (B,C_k,H_k,W_k).

        Args:
            mask: (B,1,H,W), true where pixels are real; None to read it off the input (`mask_padding`).
        """
        reconstruct = self.training and self.token_prop is not None
        if mask is None and self.mask_padding and (reconstruct or self.tokenizer_uses_mask):
            mask = valid_mask(x)
            whole = all(side % self.patch_size == 0 for side in x.shape[2:])  # else most tokenizers pad by themselves
            whole |= not getattr(self.tokenizer, 'pads', True)
            if whole and x.device.type == 'cpu' and mask.all():  # a GPU would have to be waited for
                mask = None
        tokens = self.tokenizer(x, mask)
        if reconstruct:
            self.token_prop.record(tokens, x, mask)
        return self.forward_trunk(tokens)

    @classmethod
    def options_for(cls, state: dict[str, Tensor]) -> dict | None:
        """Constructor arguments that fit a checkpoint's tensors, under our names; None when it is another trunk.

        What no tensor shows is as usual: 64 channels for each head of a plain vision transformer.
        """
        raise NotImplementedError

    def fit_sizes(self, state: dict[str, Tensor], img_size: Sequence[int] | None) -> list[str]:
        """Resample a checkpoint's tensors that belong to another image or window size, in place.

        Args:
            img_size: (height, width) of the checkpoint's images, None to conclude it from the tensors.

        Returns:
            What was resampled, as 'name 14x14 -> 32x32'.

        Raises:
            CheckpointError: When the old size cannot be told.
        """
        return []

    def forward_trunk(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B,D,h,w) -> feature maps (B,C_k,H_k,W_k), or with `classifier` one vector (B,C)."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """The parts of the trunk, in order; the tokenizer comes before them."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Freeze what `frozen_stages` names."""
        if self.frozen_stages == -1:
            return
        stages = self.stages()
        check_choice('frozen_stages', self.frozen_stages, range(-1, len(stages) + 1))
        parts = [self.tokenizer, *stages[0].lead]
        for i, stage in enumerate(stages[:self.frozen_stages]):
            parts += [*stage.blocks, *stage.tail, *(stages[i + 1].lead if i + 1 < len(stages) else [])]
        for part in parts:
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def train(self, mode: bool = True):
        """nn.Module's, but what is frozen stays in eval mode."""
        super().train(mode)
        self.freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, and the number of depths: what layer-wise learning rate decay counts in.

        As in mmpretrain: the tokenizer and the first embedding are 0, the blocks 1, 2, ..., patch merging has the
        depth of the block before it, and all that follows the blocks, norms of outputs and TokenProp's decoder too, is
        last.
        """
        stages = self.stages()
        last = sum(len(stage.blocks) for stage in stages) + 1
        if not param_name.startswith(prefix):
            return last, last + 1
        parameter = self.get_parameter(param_name[len(prefix):])
        if any(parameter is p for p in self.tokenizer.parameters()):
            return 0, last + 1
        depth = 0
        for stage in stages:
            for step, parts in enumerate((stage.lead, *([block] for block in stage.blocks))):
                depth += step > 0
                if any(parameter is p for part in parts for p in parameters_of(part)):
                    return depth, last + 1
        return last, last + 1


def parameters_of(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def build_tokenizer(cfg: dict, patch_kernel: int | None, **sizes: int) -> nn.Module:
    """The tokenizer of a config, with the trunk's sizes where it gives none itself.

    Raises:
        ConfigError: For an unknown type or option.
    """
    if not isinstance(cfg, dict):
        raise ConfigError(f"tokenizer={cfg!r} must be a dict such as dict(type='mmtok.MoToTokenizer')")
    kind = MODELS.get(cfg['type']) if cfg.get('type') else None
    if kind is None:
        known = sorted(f'mmtok.{name}' for name in MODELS.module_dict if name.endswith('Tokenizer'))
        raise ConfigError(f'tokenizer type {cfg.get("type")!r} is unknown; choose from {", ".join(known)}')
    check_options(f'the tokenizer {cfg["type"]}', cfg, kind)
    if patch_kernel is not None and 'patch_kernel' in signature(kind).parameters:
        sizes['patch_kernel'] = patch_kernel
    return MODELS.build({**sizes, **cfg, 'type': kind})  # not its name again, in the scope of mmseg or mmdet
