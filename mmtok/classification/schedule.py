"""timm's cosine schedule with warm-up, as a parameter scheduler of mmengine."""

from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from timm.scheduler import CosineLRScheduler

from ..registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class CosineLR(_ParamScheduler):
    """Linear warm-up, then a cosine, then the minimum: timm's CosineLRScheduler, number by number.

    With `convert_to_iter_based=True` all steps are iterations; without it the rate changes once an epoch.

    Args:
        optimizer: Given by the Runner.
        epochs: Steps until the minimum, including the warm-up unless `warmup_prefix`.
        warmup: Steps of the warm-up.
        warmup_lr: Learning rate at its start.
        min_lr: Learning rate at the end.
        warmup_prefix: The cosine starts after the warm-up (Swin), and not below it (DeiT).
        begin, by_epoch, last_step, verbose: mmengine's.
        end: Without effect. mmengine gives that of the training, which may be resumed for more epochs; the schedule
            ends by itself.
    """

    def __init__(self, optimizer, epochs: int, warmup: int = 0, warmup_lr: float = 1e-6, min_lr: float = 1e-5,
                 warmup_prefix: bool = False, begin: int = 0, end: int = INF, by_epoch: bool = True,
                 last_step: int = -1, verbose: bool = False):
        self.options = dict(t_initial=epochs - warmup if warmup_prefix else epochs, lr_min=min_lr, warmup_t=warmup,
                            warmup_lr_init=warmup_lr, warmup_prefix=warmup_prefix)
        super().__init__(optimizer, 'lr', begin, INF, last_step, by_epoch, verbose)

    @classmethod
    def build_iter_from_epoch(cls, *args, epochs: int, epoch_length: int, warmup: int = 0, begin: int = 0,
                              end: int = INF, by_epoch: bool = True, **options):
        """mmengine's way to count in iterations what a config gives in epochs."""
        return cls(*args, epochs=epochs * epoch_length, warmup=warmup * epoch_length, begin=begin * epoch_length,
                   by_epoch=False, **options)

    def state_dict(self) -> dict:
        """How far it is; the config says the rest, so that a longer one can be resumed with."""
        return {key: vars(self)[key] for key in ('last_step', '_global_step', '_last_value', 'base_values')}

    def _get_value(self) -> list[float]:
        schedule = CosineLRScheduler(self.optimizer, **self.options)  # has no state but its options
        schedule.step(self.last_step)
        return [group['lr'] for group in self.optimizer.param_groups]
