"""Brings the TokenProp loss from inside the backbone into the loss dict of any mmengine model."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError
from ..registry import HOOKS
from .token_prop import TokenProp

LOSS_NAME = 'loss_tokenprop'


def find_token_props(model: nn.Module) -> list[TokenProp]:
    return [module for module in model.modules() if isinstance(module, TokenProp)]


def move_loss(model: nn.Module, args, kwargs, output):
    """Forward hook: puts what the decoders have computed into the dict of `mode='loss'`, else drops it.

    A function without state: copies of the model (mmengine's EMA) carry it along safely.
    """
    values = [value for value in (module.take() for module in find_token_props(model)) if value is not None]
    mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
    if mode == 'loss' and values:
        output[LOSS_NAME] = sum(values)
    return output


def attach(model: nn.Module) -> RemovableHandle:
    """Collect the loss of every decoder in `model`, an unwrapped mmengine model; `.remove()` the result to stop."""
    for module in find_token_props(model):
        module.collected = True
    return model.register_forward_hook(move_loss, with_kwargs=True)


@HOOKS.register_module()
class TokenPropHook(Hook):
    """Adds `loss_tokenprop` to the losses of a model whose backbone has `token_prop=dict(...)`.

    Without a monkey-patch of `loss()`: a forward hook on the unwrapped model, so that DDP, gradient accumulation,
    mixed precision and mmengine's logs treat it as any other loss.
    """

    def __init__(self):
        self.handle = None

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not find_token_props(model):
            raise ConfigError('TokenPropHook is in custom_hooks, but no backbone has a decoder: add '
                              'token_prop=dict() to model.backbone, or remove the hook')
        self.handle = attach(model)

    def after_train(self, runner) -> None:
        self.handle.remove()
