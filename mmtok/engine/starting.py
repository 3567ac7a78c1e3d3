"""What a training starts from by `load_from`."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..backbones.base import TokenBackbone
from ..errors import ConfigError
from .preflight import describe_misfit, tensors_of, tested, unwrapped


class StartingCheckpoint(Hook):
    """The checkpoint holds most of the model's trunk; what it lacks besides, or has more, stands in the log.

    mmengine takes what fits, and prints the rest where no log holds it.

    Raises:
        ConfigError: It is that of another model.
    """

    priority = 'VERY_HIGH'  # before the others take tensors out of it

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model, found = unwrapped(runner.model), tested(tensors_of(checkpoint))
        wanted = tested(model.state_dict())
        misfit = describe_misfit(wanted, found)
        if not misfit:
            return
        fits = {name for name, tensor in wanted.items() if name in found and found[name].shape == tensor.shape}
        for prefix in (name for name, module in model.named_modules() if isinstance(module, TokenBackbone)):
            trunk = {name for name in wanted if name.startswith(f'{prefix}.')}
            if 2 * len(trunk & fits) < len(trunk):
                raise ConfigError(f'load_from={runner._load_from!r} holds {len(trunk & fits)} of the {len(trunk)} '
                                  f'tensors of model.{prefix} ({misfit}): name a checkpoint of this model; one of a '
                                  f'backbone alone goes into model.{prefix}.init_cfg')
        runner.logger.warning(f'{len(fits)} of the {len(wanted)} tensors of the model come from load_from='
                              f'{runner._load_from!r}, the others stay as they were: {misfit}.')
