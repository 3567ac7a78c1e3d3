"""What a training is resumed from: a checkpoint that is there, whole, and of this model and optimizer."""

import contextlib
import os
import pickle
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import find_latest_checkpoint
from torch import nn

from ..errors import ConfigError, StorageError
from .preflight import describe_misfit
from .settings import changed_settings, describe

ANOTHER = 'name another with --cfg-options load_from=FILE'
OPTIMIZER = ('optim_wrapper.optimizer.', 'optim_wrapper.paramwise_cfg.')
AFRESH = 'start from the checkpoint by load_from, without --resume'


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
    if not os.path.isfile(path):
        source = '--resume or load_from' if load_from else os.path.join(work_dir, 'last_checkpoint')
        raise StorageError(f'the checkpoint to resume from, {path!r} (named by {source}), is not there: put it back, '
                           f'or {ANOTHER}')
    return path


def read_resumed(path: str) -> dict:
    """A checkpoint of a training; its tensors are read when they are looked at.

    Raises:
        StorageError: It is damaged, or no such file.
    """
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=False, mmap=True)
        checkpoint['meta'].get('seed'), checkpoint['state_dict'].items()
    except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise StorageError(f'the checkpoint {path!r} cannot be read ({" ".join(str(error).split())[:200]}): it is '
                           f'damaged or no checkpoint of a training; {ANOTHER}') from error
    return checkpoint


def check_resumed(checkpoint: dict, path: str, model: nn.Module, cfg: Config, logger: MMLogger) -> None:
    """It is of this model and this kind of optimizer; says which settings have changed, and which cannot.

    Raises:
        ConfigError: It cannot be gone on with.
    """
    if misfit := describe_misfit(model.state_dict(), checkpoint['state_dict']):
        raise ConfigError(f'the checkpoint to resume from, {path!r}, is not of this model: {misfit}; go on with the '
                          f'settings that it was trained with, or {AFRESH}')
    changes = changed_settings(checkpoint['meta'].get('cfg', ''), cfg)
    if kind := changes.get(f'{OPTIMIZER[0]}type'):
        raise ConfigError(f'the checkpoint to resume from, {path!r}, was trained with the optimizer {kind[0]}, and '
                          f'optim_wrapper.optimizer.type is {kind[1]}: go on with {kind[0]}, or {AFRESH}')
    if changes:
        logger.info(f'Resumed with other settings than before: {describe(changes)}.')
    kept = {path: change for path, change in changes.items() if path.startswith(OPTIMIZER)}
    if kept:
        logger.warning('A resumed optimizer keeps the rate, decay and other options of its checkpoint. These settings '
                       f'have no effect: {describe(kept)}; to change them, {AFRESH}.')


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
