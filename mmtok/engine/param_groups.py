"""Optimizers with few parameter groups."""

from collections.abc import Collection
from inspect import signature

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS
from torch import nn

from ..errors import ConfigError
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

# What mmengine's constructor reads of paramwise_cfg; it passes over all else
KEYS = ('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult', 'flat_decay_mult',
        'dcn_offset_lr_mult', 'bypass_duplicate')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with the parameters of equal options in one group, stepped together.

    mmengine gives each parameter a group of its own when there is a `paramwise_cfg`, so that an optimizer steps them
    one by one. The groups of timm's scripts, which this gives, are stepped by torch's multi-tensor functions; without
    `foreach` or `fused` in the config also on the CPU, where torch by itself does not, with the same bits in half the
    time.

    Raises:
        ConfigError: When `paramwise_cfg` has a key that nothing reads, or modules share parameters, and
            `bypass_duplicate` is not set.
    """

    OWN_KEYS: tuple[str, ...] = ()

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        known = (*KEYS, *self.OWN_KEYS)
        if 'foreach' in arguments_of(self.optimizer_cfg) and 'fused' not in self.optimizer_cfg:
            self.optimizer_cfg = {'foreach': True, **self.optimizer_cfg}
        if unknown := [key for key in self.paramwise_cfg if key not in known]:
            raise ConfigError(f'optim_wrapper.paramwise_cfg has no option {", ".join(unknown)} with '
                              f'mmtok.{type(self).__name__}; it takes {", ".join(known)}')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **options) -> None:
        super().add_params(params, module, prefix, **options)
        if not prefix:  # it calls itself for each child
            parameters = [id(parameter) for group in params for parameter in group['params']]
            if len(parameters) > len(set(parameters)):  # one group of it would be stepped twice
                raise ConfigError('modules of the model share parameters: set '
                                  'optim_wrapper.paramwise_cfg.bypass_duplicate=True')
            self.set_options(params, module)
            usual = {key: value for key, value in self.optimizer_cfg.items() if key != 'type'}
            params[:] = merge([{**usual, **group} for group in params])

    def set_options(self, params: list[dict], module: nn.Module) -> None:
        """Changes the options of groups that still hold one parameter each."""


def arguments_of(optimizer_cfg: dict) -> Collection[str]:
    """The names of what an optimizer of the registry takes."""
    kind = optimizer_cfg.get('type')
    if isinstance(kind, str):
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    return signature(kind).parameters if callable(kind) else ()


def merge(groups: list[dict]) -> list[dict]:
    """Groups of equal options as one, in order of their first parameter."""
    merged = {}
    for group in groups:
        # The multipliers are in the rate and the decay already
        options = {key: value for key, value in group.items() if key not in ('params', 'lr_mult', 'decay_mult')}
        merged.setdefault(repr(sorted(options.items())), dict(options, params=[]))['params'] += group['params']
    return list(merged.values())
