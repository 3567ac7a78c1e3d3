"""Layer-wise learning rate decay (Clark et al., ICLR 2020) for backbones that know the depth of their parameters."""

from inspect import signature

from mmengine.logging import MMLogger
from torch import nn

from ..errors import ConfigError, is_number
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS
from .param_groups import OptimWrapperConstructor


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(OptimWrapperConstructor):
    """mmtok's constructor, whose learning rates fall by a factor with each layer from the head down.

    `paramwise_cfg=dict(layer_decay_rate=0.75, ...)` multiplies the learning rate of depth d among D depths (see
    `TokenBackbone.get_layer_depth`; mmpretrain's backbones have the same method) by `0.75 ** (D - 1 - d)`: 1 for
    heads, least for the tokenizer. All other keys of `paramwise_cfg` keep their meaning, `lr_mult` of `custom_keys` is
    one more factor.

    Raises:
        ConfigError: Without a rate in (0, 1], without a learning rate, or when no backbone of the model tells depths.
    """

    OWN_KEYS = ('layer_decay_rate',)

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        ours = [key for key in ('num_layers', 'decay_rate', 'decay_type') if key in (paramwise_cfg or {})]
        if ours:
            raise ConfigError(f'optim_wrapper.paramwise_cfg has {", ".join(ours)} of mmseg\'s constructor: remove it; '
                              'layer_decay_rate is the rate here, and the layers are counted')
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.rate = self.paramwise_cfg.get('layer_decay_rate')
        if not is_number(self.rate) or not 0 < self.rate <= 1:
            raise ConfigError(f'optim_wrapper.paramwise_cfg.layer_decay_rate={self.rate!r} must be a number above 0 '
                              f'and at most 1; paramwise_cfg has {", ".join(self.paramwise_cfg) or "no keys"}')
        if self.base_lr is None:
            raise ConfigError('layer_decay_rate scales the learning rate: give optim_wrapper.optimizer an lr')

    def set_options(self, params: list[dict], module: nn.Module) -> None:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        # mmpretrain's classifiers have a method of this name too, which takes no prefix
        start, backbone = next(((name, m) for name, m in module.named_modules() if hasattr(m, 'get_layer_depth')
                                and 'prefix' in signature(m.get_layer_depth).parameters), (None, None))
        if backbone is None:
            raise ConfigError(f'layer_decay_rate needs a backbone with get_layer_depth, such as those of mmtok and '
                              f'mmpretrain; none is in this {type(module).__name__}')
        start = f'{start}.' if start else ''
        _, count = backbone.get_layer_depth('', '-')  # of no parameter of the backbone
        for group in params:
            depth, _ = backbone.get_layer_depth(names[id(group['params'][0])], start)
            group['lr'] = group.get('lr', self.base_lr) * self.rate ** (count - 1 - depth)
        MMLogger.get_current_instance().info(
            f'Layer-wise decay: learning rates times {self.rate} for each of the {count - 1} layers below the head, '
            f'down to {self.rate ** (count - 1):.3g} for the tokenizer')
