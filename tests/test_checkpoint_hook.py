"""`mmtok.CheckpointHook` alone: what it forgets after a write that failed, and what outlives it."""

import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.fileio import get_file_backend
from mmengine.logging import MessageHub

from mmtok.engine import checkpoint_hook
from mmtok.engine.checkpoint_hook import CheckpointHook, write_whole
from mmtok.errors import ConfigError


class StubRunner(SimpleNamespace):
    """As much of mmengine's Runner as the hook uses; files hold the iteration that they were saved at."""

    def save_checkpoint(self, out_dir, filename, file_client_args=None, backend_args=None, **_):
        get_file_backend(out_dir, backend_args=backend_args).put(str(self.iter).encode(), f'{out_dir}/{filename}')


@pytest.fixture
def runner(tmp_path):
    name = str(tmp_path).replace('/', '_')
    return StubRunner(work_dir=str(tmp_path), message_hub=MessageHub.get_instance(name), logger=logging.getLogger(name),
                      iter=0, epoch=0, rank=0, world_size=1, _resume=False, val_loop=None)


@pytest.fixture
def full(monkeypatch):
    """A set of beginnings of file names that do not fit onto the disk."""
    refused = set()

    def write(path, data):
        if any(Path(path).name.startswith(name) for name in refused):
            raise OSError(errno.ENOSPC, 'No space left on device')
        write_whole(path, data)
    monkeypatch.setattr(checkpoint_hook, 'write_whole', write)
    return refused


def files(tmp_path) -> dict[str, str]:
    return {path.name: path.read_text() for path in tmp_path.glob('*.pth')}


def save(hook, runner, iteration, **metrics):
    """A save after `iteration`, and a validation where there are metrics, in the order of mmengine's loop."""
    runner.iter = iteration - 1
    hook._save_checkpoint(runner)
    runner.iter = iteration
    if metrics:
        hook.after_val_epoch(runner, metrics)
    hook.before_train_iter(runner, 0)


def make_hook(runner, **options):
    hook = CheckpointHook(by_epoch=False, interval=1, max_keep_ckpts=1, **options)
    hook.before_train(runner)
    return hook


def test_a_best_checkpoint_outlives_a_successor_that_cannot_be_written(runner, full, tmp_path):
    hook = make_hook(runner, save_best='mIoU')
    save(hook, runner, 1, mIoU=0.1)
    full.add('best_mIoU_iter_2')
    save(hook, runner, 2, mIoU=0.2)
    assert files(tmp_path) == {'best_mIoU_iter_1.pth': '1', 'iter_2.pth': '1'}
    assert runner.message_hub.get_info('best_score') == 0.1
    full.clear()
    save(hook, runner, 3, mIoU=0.15)  # the next one that is better than what was kept
    assert files(tmp_path) == {'best_mIoU_iter_3.pth': '3', 'iter_3.pth': '3'}


def test_one_of_two_best_checkpoints_cannot_be_written(runner, full, tmp_path):
    """Both are forgotten: no file without a record, no record without a file."""
    hook = make_hook(runner, save_best=['mIoU', 'aAcc'])
    save(hook, runner, 1, mIoU=0.1, aAcc=0.1)
    full.add('best_aAcc_iter_2')
    save(hook, runner, 2, mIoU=0.2, aAcc=0.2)
    assert set(files(tmp_path)) == {'best_mIoU_iter_1.pth', 'best_aAcc_iter_1.pth', 'iter_2.pth'}
    assert {Path(path).name for path in hook.best_ckpt_path_dict.values()} == {
        'best_mIoU_iter_1.pth', 'best_aAcc_iter_1.pth'}


def test_a_best_of_a_metric_that_there_is_not(runner):
    hook = make_hook(runner, save_best='mAP')
    with pytest.raises(ConfigError, match=r"save_best names 'mAP', but a validation gives coco/bbox_mAP: go on with"):
        save(hook, runner, 1, **{'coco/bbox_mAP': 0.1})


@pytest.mark.parametrize('refused', ['iter_2', 'last_checkpoint'])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(refused, runner, full, tmp_path):
    hook = make_hook(runner)
    save(hook, runner, 1)
    full.add(refused)
    save(hook, runner, 2)
    assert 'iter_1.pth' in files(tmp_path)
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_1.pth') == hook.last_ckpt
    assert runner.message_hub.get_info('keep_ckpt_ids') == [1]
    full.clear()
    save(hook, runner, 3)
    assert set(files(tmp_path)) == {'iter_3.pth'} and hook.failure is None


def test_a_file_system_that_cannot_flush_folders(runner, tmp_path, monkeypatch):
    """As some network file systems: the files are written all the same."""
    flush = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f'/proc/self/fd/{descriptor}'):
            raise OSError(errno.EINVAL, 'Invalid argument')
        flush(descriptor)
    monkeypatch.setattr(os, 'fsync', fsync)
    hook = make_hook(runner)
    save(hook, runner, 1)
    save(hook, runner, 2)
    assert set(files(tmp_path)) == {'iter_2.pth'} and hook.failure is None


def test_half_written_files_of_a_killed_run_are_cleared_away(runner, tmp_path):
    (tmp_path / 'iter_7.pth.unfinished').write_text('half')
    make_hook(runner)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('done, interval, repeated', [(4, 999, True), (3, 999, False), (2, 2, True), (0, 2, False)])
def test_a_validation_is_repeated_where_one_was_due(done, interval, repeated, by_epoch, runner):
    """At the last epoch, or iteration, one always is."""
    runs = []
    vars(runner).update(_resume=True, val_loop=SimpleNamespace(run=lambda: runs.append(done)), val_begin=1,
                        val_interval=interval, max_epochs=4 if by_epoch else 1, max_iters=4 if not by_epoch else 40,
                        **{'epoch' if by_epoch else 'iter': done})
    CheckpointHook(by_epoch=by_epoch, interval=1, save_best='mIoU').before_train(runner)
    assert runs == [done] * repeated


def test_a_validation_without_training(runner, tmp_path):
    """`Runner.val()`: nothing was prepared, and there is nothing to save."""
    CheckpointHook(by_epoch=False).after_val_epoch(runner, dict(mIoU=0.5))
    assert not list(tmp_path.iterdir())


def test_a_backend_of_the_user_s_own_is_kept(runner):
    hook = CheckpointHook(by_epoch=False, backend_args=dict(backend='local'))
    hook.before_train(runner)
    assert hook.backend_args == dict(backend='mmtok_whole')  # local files in every spelling
    hook = CheckpointHook(by_epoch=False, backend_args=dict(backend='http'))
    hook.before_train(runner)
    assert hook.backend_args == dict(backend='http')
