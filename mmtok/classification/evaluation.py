"""Evaluation of the trained weights and of their moving average, one after the other."""

import copy

import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.runner import Runner, autocast
from torch.utils.data import Dataset, IterableDataset

from ..engine.loops import TestLoop, ValLoop
from ..registry import HOOKS, LOOPS
from .checks import CheckedCheckpoint
from .streams import check_count

AVERAGE = 'ema'


@HOOKS.register_module()
class EMAHook(MMEngineEMAHook):
    """mmengine's EMAHook, which leaves it to the loops of this file to test the averages beside the weights.

    With `momentum=1 - decay` and `update_buffers=True` its averages are those of timm's ModelEmaV3. As mmengine's, it
    saves the averages as the model of a checkpoint (`state_dict`), which is what others load.

    Args:
        ema_type, strict_load, begin_iter, begin_epoch, momentum, update_buffers, ...: mmengine's.

    Attributes:
        has_averages: False for a checkpoint to test that has none.
    """

    has_averages = True

    def before_train(self, runner: Runner) -> None:
        """mmengine's; warns of averages that the first weights will never leave."""
        super().before_train(runner)
        momentum = getattr(self.ema_model, 'momentum', 1)  # averages of another kind have none
        left = (1 - momentum) ** (runner.max_iters // getattr(runner.optim_wrapper, '_accumulative_counts', 1))
        if left > 0.01:
            runner.logger.warning(f'With momentum={momentum} of the averages (default_hooks.ema), {100 * left:.0f} % '
                                  'of them will still be the first weights after this training, whose checkpoints '
                                  'hold the averages as their model: raise it, or leave the hook out.')

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """mmengine's, after steps of the optimizer only: `accumulative_counts` iterations are one."""
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, *args, **kwargs)

    def before_val_epoch(self, runner: Runner) -> None:
        """Leaves the weights in place."""

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Leaves the weights in place."""

    before_test_epoch, after_test_epoch = before_val_epoch, after_val_epoch

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """mmengine's; to be tested, weights and averages are taken as if to resume."""
        if 'state_dict' not in checkpoint:  # weights alone
            weights = dict(checkpoint)
            checkpoint.clear()
            checkpoint['state_dict'] = weights
        resume, tested = runner._resume, runner._train_loop is None or isinstance(runner._train_loop, dict)
        self.has_averages = not tested or 'ema_state_dict' in checkpoint
        if not self.has_averages:
            return
        runner._resume = resume or tested
        try:
            super().after_load_checkpoint(runner, checkpoint)
        finally:
            runner._resume = resume


class WithAverages:
    """An evaluator, and a copy of it for the outputs of the averages of a hook, whose metrics begin with `ema/`.

    It counts what a stream gives: of more images than the stream states, mmengine would drop the last.
    """

    def __init__(self, evaluator: Evaluator, hook: EMAHook | None, dataset: Dataset):
        self.evaluator, self.average, self.hook = evaluator, copy.deepcopy(evaluator), hook
        self.dataset, self.count = dataset, 0

    def process(self, data_samples, data_batch=None) -> None:
        self.count += len(data_samples)
        self.evaluator.process(data_samples, data_batch)

    def process_averages(self, data_samples, data_batch) -> None:
        self.average.process(data_samples, data_batch)

    def evaluate(self, size: int) -> dict[str, float]:
        count, self.count = self.count, 0
        if isinstance(self.dataset, IterableDataset):
            check_count(self.dataset, count, size)
        metrics = self.evaluator.evaluate(size)
        if self.hook is not None and self.hook.has_averages:
            found = self.average.evaluate(size)
            metrics.update({f'{AVERAGE}/{name.split("/")[-1]}': value for name, value in found.items()})
        return metrics


class TestsAverages:
    """For both loops: each batch is given to the weights and to the averages."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hook = next((hook for hook in self.runner.hooks if isinstance(hook, EMAHook)), None)
        self.evaluator = WithAverages(self.evaluator, self.hook, self.dataloader.dataset)

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch) -> None:
        super().run_iter(idx, data_batch)
        if self.hook is not None and self.hook.has_averages:
            model = self.hook.ema_model.module.eval()
            with autocast(enabled=self.fp16):
                self.evaluator.process_averages(model.val_step(data_batch), data_batch)


@LOOPS.register_module()
class ClassifierValLoop(TestsAverages, ValLoop):
    """mmtok's ValLoop for a classifier."""


@LOOPS.register_module()
class ClassifierTestLoop(TestsAverages, TestLoop):
    """mmtok's TestLoop for a classifier."""

    checkpoint_hook = CheckedCheckpoint
