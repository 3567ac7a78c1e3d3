"""mmengine's CheckpointHook, made so that a kill or a full disk at any moment leaves a checkpoint to go on from."""

import contextlib
import copy
import os
import random
from collections import deque
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from ..checkpoint.writing import TEMPORARY, write_whole
from ..errors import ConfigError, StorageError
from ..registry import HOOKS
from .resuming import validation_was_due

RNG_KEY = 'mmtok_rng'


@register_backend('mmtok_whole')
class WholeFileBackend(LocalBackend):
    """mmengine's local files, each there whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write `obj`; see `write_whole`."""
        os.makedirs(os.path.dirname(filepath) or '.', exist_ok=True)
        write_whole(str(filepath), obj)


class LateRemoval:
    """A file backend that removes only when `finish` is called, after the successor is safe."""

    def __init__(self, backend) -> None:
        self.backend, self.waiting = backend, []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.waiting.append((self.backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.waiting.append((self.backend.rmtree, path))

    def finish(self) -> None:
        for remove, path in self.waiting:
            remove(path)


def random_states() -> dict:
    """Python's, numpy's and torch's, as plain numbers and tensors."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=(version, list(numbers), gauss),
        numpy=(kind, keys.tolist(), position, has_gauss, cached),
        torch=torch_states())


def torch_states() -> dict:
    """The states that a model draws from: the CPU's and the current GPU's."""
    return dict(cpu=torch.get_rng_state(), cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None)


def set_torch_states(states: dict) -> None:
    """Undo every draw since `torch_states`."""
    torch.set_rng_state(states['cpu'].cpu())
    if states['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


def set_random_states(states: dict) -> None:
    """Undo every draw since `random_states`."""
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states['numpy']
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    set_torch_states(states['torch'])


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's CheckpointHook (same arguments), which cannot lose the last good checkpoint.

    - A file is written under a temporary name, flushed and renamed; then the pointer `last_checkpoint`, in the same
      way; then what `max_keep_ckpts` and `save_best` give up is deleted. mmengine deletes first and writes in place.
      This holds for local files and mmengine's Runner; FlexibleRunner's strategies write in their own way.
    - A checkpoint that cannot be written costs no training: the log says so, the next interval tries again, and only
      a training whose last checkpoint could not be written ends in an error.
    - The random states of all processes are saved, so that a resumed run draws what the uninterrupted one would have.
      What a random pipeline draws in data workers is repeated by IterBasedTrainLoop, which reads all batches again;
      not by EpochBasedTrainLoop with persistent workers, and not with `num_workers=0`.
    - With `save_best`, a validation that was due when the checkpoint was written is repeated on resuming.

    Raises:
        ConfigError: For an option that there is not.
        StorageError: At the end, if the last checkpoint could not be written.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        unknown = [key for key in self.args if key not in signature(Runner.save_checkpoint).parameters]
        if unknown:  # mmengine would say so after the first interval
            raise ConfigError(f'mmtok.CheckpointHook has no option {", ".join(unknown)} (default_hooks.checkpoint): '
                              "correct its name, or remove it; it takes those of mmengine's")
        self.failure = None  # the sentence about the newest checkpoint, where it could not be written
        self.states = None  # random states of all processes at the newest checkpoint, until the next iteration
        self.resumed = None  # this process's, from the checkpoint that is resumed, until the next iteration

    def before_train(self, runner: Runner) -> None:
        """mmengine's; clears away what a kill left half-written, and repeats what it cut short."""
        local = '://' not in str(self.out_dir or runner.work_dir) and self.file_client_args is None
        if local and self.backend_args in (None, dict(backend='local')):
            self.backend_args = dict(backend='mmtok_whole')
        super().before_train(runner)
        if local and is_main_process():
            for path in Path(self.out_dir).glob(f'*{TEMPORARY}'):
                path.unlink(missing_ok=True)
        if (runner._resume and self.save_best and runner.val_loop is not None
                and validation_was_due(runner, self.by_epoch)):
            runner.logger.info('The validation of this checkpoint is repeated, in case it was cut short.')
            runner.val_loop.run()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the random states of all processes."""
        if self.states is not None:
            checkpoint[RNG_KEY] = self.states

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes them out of a checkpoint to resume from."""
        states = checkpoint.get(RNG_KEY)
        if not runner._resume or states is None:
            return
        if len(states) != runner.world_size:
            runner.logger.warning(f'{len(states)} processes saved this checkpoint and {runner.world_size} go on: '
                                  'random numbers start anew from the seed.')
            return
        self.resumed = states[runner.rank]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """The first iteration after a checkpoint draws the same numbers whether the run went on or was resumed."""
        if self.resumed is not None:
            set_random_states(self.resumed)
        elif self.states is not None:
            # Validation and the start of data workers draw from torch in between
            set_torch_states(self.states[runner.rank]['torch'])
        self.resumed = self.states = None

    def after_train(self, runner: Runner) -> None:
        """mmengine's, unless the newest checkpoint could not be written."""
        if self.failure:
            raise StorageError(self.failure)
        super().after_train(runner)

    def _save_checkpoint(self, runner: Runner) -> None:
        """mmengine's, survived; called by all processes."""
        with self.surviving(runner, 'a checkpoint') as failures:
            super()._save_checkpoint(runner)
        self.failure = failures[0] if failures and is_main_process() else None

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """mmengine's, survived; the previous best goes after the new one is written.

        Raises:
            ConfigError: A validation has no metric of the name in `save_best`.
        """
        if not self.save_best:
            return
        unknown = [name for name in self.key_indicators if name not in ('auto', *metrics)]
        if unknown:
            raise ConfigError(f'default_hooks.checkpoint.save_best names {", ".join(map(repr, unknown))}, but a '
                              f'validation gives {", ".join(metrics)}: go on with --resume and one of these')
        backend = self.file_backend
        with self.surviving(runner, 'the best checkpoint'):
            self.file_backend = late = LateRemoval(backend)
            try:
                super()._save_best_checkpoint(runner, metrics)
            finally:
                self.file_backend = backend
            late.finish()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Write, point, then delete; mmengine deletes first. Only the main process touches files."""
        path = self.path_of(step)
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        again = path == self.last_ckpt  # after a validation that found a new best
        if not again:
            kept.append(step)
        # Until the outdated files are gone they stay listed: after a kill, mmengine's before_train deletes them.
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        runner.message_hub.update_info('last_ckpt', path)
        runner.save_checkpoint(
            self.out_dir, self.filename_tmpl.format(step), self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if is_main_process() and not again:
            try:
                write_whole(os.path.join(runner.work_dir, 'last_checkpoint'), path.encode())
            except OSError:
                self.remove(path)  # nothing would know of it
                raise
        self.last_ckpt = path
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(kept[-self.max_keep_ckpts:], self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            for outdated in kept[:-self.max_keep_ckpts]:
                self.remove(self.path_of(outdated))

    def path_of(self, step: int) -> str:
        """Where the checkpoint of an iteration or epoch is."""
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    @master_only
    def remove(self, path: str) -> None:
        """Delete a checkpoint: a file, or a folder where DeepSpeed wrote it."""
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    @contextlib.contextmanager
    def surviving(self, runner: Runner, what: str) -> Iterator[list[str]]:
        """Around a save, on all processes: if the main process cannot write, all forget the save, and go on.

        Nothing inside may wait for other processes, since the main process may leave it early.

        Yields:
            A list, empty until then, which holds the sentence afterwards.
        """
        if self.states is None:
            self.states = all_gather_object(random_states())
        info, failures = runner.message_hub.runtime_info, []
        known, before = copy.deepcopy(dict(info)), self.bookkeeping()
        try:
            yield failures
        except OSError as error:
            good = known.get('last_ckpt')
            failures.append(f'{what} cannot be written to {self.out_dir} ({error.strerror or error}); the last good '
                            f'checkpoint is {good or "none"}')
        broadcast_object_list(result := [list(failures)])
        failures[:] = result[0]
        if not failures:
            return
        written = self.best_paths()
        vars(self).update(before)
        written -= self.best_paths()
        info.clear()
        info.update(known)
        for path in written:
            self.remove(path)
        if is_main_process():
            runner.logger.error(f'{failures[0]}. Training goes on and the next interval tries again: free some space.')

    def bookkeeping(self) -> dict:
        """A copy of what mmengine's hook remembers about its files."""
        names = ('last_ckpt', 'keep_ckpt_ids', 'best_ckpt_path', 'best_ckpt_path_dict')
        return {name: copy.deepcopy(vars(self)[name]) for name in names if name in vars(self)}

    def best_paths(self) -> set[str]:
        """Where the best checkpoints are, one for each metric."""
        paths = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        return paths - {None}
