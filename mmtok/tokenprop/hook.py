"""Brings the TokenProp loss from inside the backbone into the loss dict of any mmengine model."""

from collections.abc import Callable

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ..errors import ConfigError
from ..registry import HOOKS
from .token_prop import TokenProp

LOSS_NAME = 'loss_tokenprop'


def find_token_props(model: nn.Module) -> list[TokenProp]:
    """All decoders inside a model."""
    return [module for module in model.modules() if isinstance(module, TokenProp)]


# Functions without state: copies of the model (mmengine's EMA) carry these hooks along safely.


def drop_stale_loss(model: nn.Module, args) -> None:
    """Forward pre-hook: forgets what an iteration that failed between backbone and head has left behind."""
    if model.training:
        for module in find_token_props(model):
            module.take()


def move_loss(model: nn.Module, args, kwargs, output):
    """Forward hook: puts what the decoders have computed into the dict of `mode='loss'`, else drops it."""
    if not model.training:
        return output
    values = [value for value in (module.take() for module in find_token_props(model)) if value is not None]
    mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
    if mode == 'loss' and values:
        output[LOSS_NAME] = sum(values)
    return output


def attach(model: nn.Module) -> Callable[[], None]:
    """Collect the loss of every decoder in `model`, an unwrapped mmengine model; call the result to stop."""
    handles = [model.register_forward_pre_hook(drop_stale_loss),
               model.register_forward_hook(move_loss, with_kwargs=True)]
    for module in find_token_props(model):
        module.collected = True

    def detach() -> None:
        for handle in handles:
            handle.remove()
        for module in find_token_props(model):
            module.collected = False
            module.take()
    return detach


@HOOKS.register_module()
class TokenPropHook(Hook):
    """Adds `loss_tokenprop` to the losses of a model whose backbone has `token_prop=dict(...)`.

    Without a monkey-patch of `loss()`: a forward hook on the unwrapped model, so that DDP, gradient accumulation,
    mixed precision and mmengine's logs treat it as any other loss.
    """

    def __init__(self):
        self.detach = None

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not find_token_props(model):
            raise ConfigError('TokenPropHook is in custom_hooks, but no backbone has a decoder: add '
                              'token_prop=dict() to model.backbone, or remove the hook')
        from ..engine.preflight import check_model  # imports the backbones, which import TokenProp
        check_model(model, runner.cfg)
        self.detach = attach(model)

    def after_train(self, runner) -> None:
        self.detach()
