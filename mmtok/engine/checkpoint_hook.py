"""mmengine's CheckpointHook, made so that a kill or a full disk at any moment leaves a checkpoint to go on from."""

import contextlib
import copy
import os
import random
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from ..errors import StorageError
from ..registry import HOOKS

TEMPORARY = '.unfinished'  # behind the name of a file that is being written
RNG_KEY = 'mmtok_rng'


def write_whole(path: str, data: bytes) -> None:
    """Write a file that is there whole or not at all: temporary name, flush to the disk, rename.

    Raises:
        OSError: Nothing is left of the temporary file; what stood at `path` before still does.
    """
    temporary = f'{path}{TEMPORARY}'
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself, which a power cut could lose
    finally:
        os.close(folder)


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
    - If the disk is full, training goes on, the log says so, and the next interval tries again; a training whose last
      checkpoint could not be written ends in an error.
    - The random states of all processes are saved, so that a resumed run draws what the uninterrupted one would have.
      What a random pipeline draws in data workers follows from their seed alone; with `num_workers=0` it draws in the
      main process and is not repeated exactly.

    Raises:
        StorageError: At the end, if the last checkpoint could not be written.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.last_good = None  # path
        self.failure = None  # the sentence about the newest checkpoint, where it could not be written
        self.states = None  # of all processes, while a checkpoint is saved
        self.saved = self.resumed = None  # this process's, until the next iteration starts

    def before_train(self, runner: Runner) -> None:
        """mmengine's; clears away what a kill left half-written."""
        local = '://' not in str(self.out_dir or runner.work_dir)
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='mmtok_whole')
        super().before_train(runner)
        self.last_good = runner.message_hub.runtime_info.get('last_ckpt')
        if local and is_main_process():
            for path in Path(self.out_dir).glob(f'*{TEMPORARY}'):
                path.unlink(missing_ok=True)

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
        elif self.saved is not None:
            set_torch_states(self.saved)  # validation and the start of data workers draw from torch in between
        self.resumed = self.saved = None

    def after_train(self, runner: Runner) -> None:
        """mmengine's, unless the newest checkpoint could not be written."""
        if self.failure:
            raise StorageError(self.failure)
        super().after_train(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Write, point, then delete; mmengine deletes first."""
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        if step not in kept:
            kept.append(step)
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        own = random_states()
        self.states, self.saved = all_gather_object(own), own['torch']
        with self.surviving_full_disk(runner, path) as failures:
            # Until the outdated files are gone they stay listed: after a kill, mmengine's before_train deletes them.
            if self.max_keep_ckpts > 0:
                runner.message_hub.update_info('keep_ckpt_ids', kept)
            runner.message_hub.update_info('last_ckpt', path)
            runner.save_checkpoint(
                self.out_dir, self.filename_tmpl.format(step), self.file_client_args,
                save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler, meta=meta,
                by_epoch=self.by_epoch, backend_args=self.backend_args, **self.args)
            if is_main_process():
                write_whole(os.path.join(runner.work_dir, 'last_checkpoint'), path.encode())
            self.last_ckpt = self.last_good = path
            if self.max_keep_ckpts > 0:
                self.keep_ckpt_ids = deque(kept[-self.max_keep_ckpts:], self.max_keep_ckpts)
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
                self.remove(self.filename_tmpl.format(outdated) for outdated in kept[:-self.max_keep_ckpts])
        self.states, self.failure = None, failures[0] if failures else None

    @master_only
    def remove(self, names: Iterable[str]) -> None:
        """Delete checkpoints: files, or folders where DeepSpeed wrote them."""
        for name in names:
            path = self.file_backend.join_path(self.out_dir, name)
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """mmengine's, but the previous best goes after the new one is written."""
        backend = self.file_backend
        best = {key: value for key, value in vars(self).items() if key.startswith('best_ckpt_path')}
        with self.surviving_full_disk(runner, f'the best checkpoint in {self.out_dir}') as failures:
            self.file_backend = LateRemoval(backend)
            super()._save_best_checkpoint(runner, metrics)
            self.file_backend.finish()
        self.file_backend = backend
        if failures:
            vars(self).update(best)

    @contextlib.contextmanager
    def surviving_full_disk(self, runner: Runner, path: str) -> Iterator[list[str]]:
        """If `path` cannot be written, log it, restore what the message hub knew, and go on.

        Yields:
            A list, empty until then, which holds the sentence afterwards.
        """
        known, failures = copy.deepcopy(dict(runner.message_hub.runtime_info)), []
        try:
            yield failures
        except OSError as error:
            failures.append(f'{path} cannot be written ({error.strerror or error}); the last good checkpoint is '
                            f'{self.last_good or "none"}')
            runner.message_hub.runtime_info.clear()
            runner.message_hub.runtime_info.update(known)
            runner.logger.error(f'{failures[0]}. Training goes on and the next interval tries again: free some space.')
