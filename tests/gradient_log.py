"""A hook for test_dist.py: what each process sees of the losses and gradients."""

import os
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


@HOOKS.register_module()
class GradientLog(Hook):
    """Writes `rank<R>.pth` into the work directory: losses by iteration, gradients of the last one by name."""

    def before_train(self, runner):
        self.losses, self.gradients = [], {}
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model

        def keep(*_):
            self.gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        runner.optim_wrapper.optimizer.register_step_pre_hook(keep)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: float(value) for name, value in outputs.items()})

    def after_train(self, runner):
        path = Path(runner.work_dir) / f'rank{os.environ.get("RANK", 0)}.pth'
        torch.save(dict(losses=self.losses, gradients=self.gradients), path)
