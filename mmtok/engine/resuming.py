"""What a training is resumed from: a checkpoint that is there, whole, and of this model and optimizer."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from ..checkpoint.reading import read_checkpoint
from ..errors import CheckpointError, ConfigError, StorageError
from .preflight import describe_misfit
from .settings import changed_settings, describe, parse

ANOTHER = 'name another (--resume FILE, with mmseg --cfg-options load_from=FILE)'
AFRESH = 'start from the checkpoint by load_from, without --resume'
# Settings that mmengine replaces by what the checkpoint holds
RESTORED = re.compile(
    r'(optim_wrapper\.(\w+\.)?(optimizer|paramwise_cfg|loss_scale)|param_scheduler|auto_scale_lr)\b')


def find_resumed(load_from: str | None, work_dir: str) -> str | None:
    """The checkpoint to resume from; None where the work directory has none yet.

    Raises:
        StorageError: It is not there.
    """
    path = load_from or find_latest_checkpoint(work_dir)
    if path is None or '://' in path:
        return path
    beside = os.path.join(work_dir, os.path.basename(path))
    if not os.path.isfile(path) and load_from is None and os.path.isfile(beside):
        return beside  # the work directory was moved
    if os.path.isdir(path):
        raise StorageError(f'the checkpoint to resume from, {path!r}, is a folder: name a file in it')
    if not os.path.isfile(path):
        source = '--resume or load_from' if load_from else os.path.join(work_dir, 'last_checkpoint')
        raise StorageError(f'the checkpoint to resume from, {path!r} (named by {source}), is not there: put it back, '
                           f'or {ANOTHER}')
    return path


def validation_was_due(runner: Runner, by_epoch: bool) -> bool:
    """Whether mmengine validates after the epoch, or iteration, that a training goes on from; always after the last."""
    done, last = (runner.epoch, runner.max_epochs) if by_epoch else (runner.iter, runner.max_iters)
    return done >= max(1, runner.val_begin) and (done % runner.val_interval == 0 or done == last)


def read_resumed(path: str) -> dict:
    """A checkpoint of a training; its tensors are read when they are looked at.

    Raises:
        CheckpointError: It is damaged.
        StorageError: It holds weights alone.
    """
    try:
        checkpoint = dict(torch.load(path, map_location='cpu', weights_only=False, mmap=True))
    except Exception:  # torch's older format cannot be mapped; all else is damaged, which this says better
        try:
            checkpoint = read_checkpoint(path, weights_only=False)
        except CheckpointError as error:
            raise CheckpointError(f'{error}, or {ANOTHER}') from error
    if not isinstance(checkpoint.get('meta'), dict) or 'state_dict' not in checkpoint:
        raise StorageError(f'{path!r} is no checkpoint of a training, which holds its state beside the weights: '
                           f'{ANOTHER}, or start from these weights by load_from, without --resume')
    return checkpoint


def check_resumed(checkpoint: dict, path: str, model: nn.Module, cfg: Config, logger: MMLogger) -> None:
    """It is of this model and this kind of optimizer; says which settings have changed, and which cannot.

    What the checkpoint replaces, and what the training started from, are taken into `cfg`, which goes on to say what is
    trained.

    Raises:
        ConfigError: It cannot be gone on with.
    """
    if misfit := describe_misfit(model.state_dict(), checkpoint['state_dict']):
        raise ConfigError(f'the checkpoint to resume from, {path!r}, is not of this model: {misfit}; go on with the '
                          f'settings that it was trained with, or {AFRESH}')
    before = parse(checkpoint['meta'].get('cfg'))
    cfg.load_from = before.get('load_from') if before else None
    kinds = [optimizer_of(config) for config in (before, cfg)]
    if all(kinds) and kinds[0] is not kinds[1]:
        raise ConfigError(f'the checkpoint to resume from, {path!r}, was trained with the optimizer '
                          f'{kinds[0].__name__}, and optim_wrapper.optimizer.type is {kinds[1].__name__}: go on with '
                          f'{kinds[0].__name__}, or {AFRESH}')
    changes = changed_settings(before, cfg)
    kept = {key: change for key, change in changes.items() if 'optimizer' in checkpoint and RESTORED.match(key)
            and not (key.startswith('param_scheduler.') and ours_schedules(cfg))}
    others = {key: change for key, change in changes.items() if key not in kept}
    if others:
        logger.info(f'Resumed with other settings than before: {describe(others)}.')
    if kept:
        logger.warning('Optimizer and schedule go on as they are in the checkpoint. These settings have no effect: '
                       f'{describe(kept)}; to change them, {AFRESH}.')
        for part in {RESTORED.match(key)[0] for key in kept}:
            take_back(cfg, before, part.split('.'))


def take_back(cfg: Config, before: Config, path: list[str]) -> None:
    """A part of the config as it was."""
    *above, name = path
    for key in above:
        cfg, before = cfg.get(key), before.get(key)
    if cfg is None or before is None:  # one of several optimizers that the other config does not have
        return
    if name in before:
        cfg[name] = before[name]
    else:
        cfg.pop(name, None)


def optimizer_of(cfg: Config | None) -> type | None:
    """The class of the one optimizer, None where it is not known."""
    kind = (((cfg or {}).get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    return OPTIMIZERS.get(kind) if isinstance(kind, str) else kind


def ours_schedules(cfg: Config) -> bool:
    """Whether the schedule is mmtok.CosineLR, which takes its settings from the config."""
    schedule = cfg.get('param_scheduler')
    return isinstance(schedule, dict) and schedule.get('type') == 'mmtok.CosineLR'


@contextlib.contextmanager
def explained_optimizer(path: str) -> Iterator[None]:
    """One sentence where the optimizer of a checkpoint has other groups of parameters.

    Raises:
        ConfigError: They differ.
    """
    try:
        yield
    except ValueError as error:
        if 'parameter group' not in str(error):  # torch's words
            raise
        raise ConfigError(f'the optimizer in {path!r} groups its parameters otherwise than this config does: go on '
                          'with the optim_wrapper.constructor and paramwise_cfg of that training (earlier versions of '
                          f"mmtok's had mmengine's DefaultOptimWrapperConstructor), or {AFRESH}") from error
