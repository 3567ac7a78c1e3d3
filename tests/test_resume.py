"""A training that is killed at any moment, or whose disk fills, goes on with `--resume` as if nothing had happened."""

import random
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, logged_steps

CONFIG = ROOT / 'tests' / 'configs' / 'tiny_drawn-128x128.py'
SEED = 'randomness.seed=0'


@pytest.fixture(scope='module')
def train(start_mmseg, drawn_ade):
    """Start a training in a work directory with config options, resumed or not."""
    roots = [f'{name}_dataloader.dataset.data_root={drawn_ade}' for name in ('train', 'val', 'test')]

    def start(work_dir: Path, *options: str, resume: bool = False, **limits):
        return start_mmseg('train', CONFIG, '--work-dir', work_dir, *['--resume'][:resume], '--cfg-options', *roots,
                           *options, cwd=work_dir.parent, **limits)
    return start


@pytest.fixture(scope='module')
def finish(train):
    """Train to the end; returns the losses by iteration."""
    def run(work_dir: Path, *options: str, resume: bool = False) -> dict[int, float]:
        finished = train(work_dir, *options, resume=resume).finish()
        assert finished.returncode == 0, finished.stdout[-3000:]
        return {step: line['loss'] for step, line in logged_steps(work_dir).items()}
    return run


@pytest.fixture(scope='module')
def uninterrupted(finish, tmp_path_factory) -> dict[int, float]:
    return finish(tmp_path_factory.mktemp('whole') / 'work', SEED)


def lines_logged(work_dir: Path) -> int:
    return sum(log.read_text().count('"loss"') for log in work_dir.glob('*/vis_data/scalars.json'))


def kill_while(process, moment, patience: float = 120) -> None:
    """SIGKILL as soon as `moment()` is true."""
    deadline = time.monotonic() + patience
    while not moment():
        assert process.is_alive() and time.monotonic() < deadline, 'the moment to kill never came'
        time.sleep(0.0003)
    process.kill()
    process.join()


@pytest.mark.parametrize('number', range(20))
def test_killed_training_goes_on_as_if_nothing_had_happened(number, train, finish, uninterrupted, tmp_path):
    """Twelve kills a random time after a random iteration, eight while a checkpoint is being written."""
    work_dir, draw = tmp_path / 'work', random.Random(number)
    process = train(work_dir, SEED).process
    iterations, delay = draw.randrange(0, 8), draw.uniform(0, 0.1)
    if number < 12:
        def moment():
            if lines_logged(work_dir) < iterations:
                return False
            time.sleep(delay)
            return True
    else:
        unfinished = work_dir / f'iter_{iterations + 1}.pth.unfinished'
        moment = unfinished.exists
    kill_while(process, moment)
    resumed = finish(work_dir, SEED, resume=True)
    first = min(resumed)
    assert first <= 10 and len(resumed) == 15 - first >= 5
    assert resumed == pytest.approx({step: uninterrupted[step] for step in resumed}, rel=1e-5)
    assert [path.name for path in work_dir.glob('iter_*')] == ['iter_14.pth']  # max_keep_ckpts=1, nothing half-written


def test_a_run_without_a_seed_resumes_with_its_own(finish, tmp_path):
    """The drawn seed decides the order of the images: the resumed run must have it before it builds its loader."""
    work_dir = tmp_path / 'work'
    whole = finish(work_dir, 'default_hooks.checkpoint.max_keep_ckpts=-1', 'train_cfg.val_interval=6')
    again = tmp_path / 'moved'  # the pointer then names a file that is somewhere else
    again.mkdir()
    shutil.copy(work_dir / 'iter_6.pth', again)
    (again / 'last_checkpoint').write_text('/where/it/was/iter_6.pth')
    resumed = finish(again, 'train_cfg.val_interval=6', resume=True)
    assert min(resumed) == 7
    assert resumed == pytest.approx({step: whole[step] for step in range(7, 15)}, rel=1e-5)


def test_drop_path_draws_on_where_it_stopped(finish, uninterrupted, tmp_path):
    """The test above would pass without random states if nothing random were in the model."""
    work_dir = tmp_path / 'work'
    finish(work_dir, SEED, 'train_cfg.max_iters=6', 'default_hooks.checkpoint.interval=6')
    path = work_dir / 'iter_6.pth'
    checkpoint = torch.load(path, weights_only=False)
    assert len(checkpoint['mmtok_rng']) == 1
    del checkpoint['mmtok_rng']
    torch.save(checkpoint, path)
    resumed = finish(work_dir, SEED, resume=True)
    assert any(abs(loss / uninterrupted[step] - 1) > 1e-4 for step, loss in resumed.items())


def test_a_full_disk_does_not_cost_the_last_checkpoint(train, finish, uninterrupted, tmp_path):
    """A limit on the size of a file fails a write in its middle, as a full disk does."""
    work_dir = tmp_path / 'work'
    finish(work_dir, SEED, 'train_cfg.max_iters=6')
    run = train(work_dir, SEED, resume=True, file_limit=1_000_000).finish()
    output = run.stdout
    assert run.returncode == 1 and 'Traceback' not in output
    sentence = r'iter_{}.pth cannot be written \(File too large\); the last good checkpoint is .*/work/iter_6.pth'
    assert re.search(sentence.format(7) + r'. Training goes on and the next interval tries again: free some', output)
    assert re.match('mmtok: .*' + sentence.format(14) + '$', output.strip().splitlines()[-1])
    assert sorted(path.name for path in work_dir.glob('iter_*')) == ['iter_6.pth']
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'iter_6.pth')
    resumed = finish(work_dir, SEED, resume=True)
    assert min(resumed) == 7 and resumed == pytest.approx({s: uninterrupted[s] for s in range(7, 15)}, rel=1e-5)


def test_the_best_checkpoint_outlives_its_replacement(finish, tmp_path):
    """`save_best`: one best file at the end, and none is deleted before the next is there."""
    work_dir = tmp_path / 'work'
    finish(work_dir, SEED, 'train_cfg.val_interval=2', 'default_hooks.checkpoint.save_best=mIoU')
    best = [path.name for path in work_dir.glob('best_*')]
    assert len(best) == 1 and re.fullmatch(r'best_mIoU_iter_\d+.pth', best[0])
    assert [path.name for path in work_dir.glob('iter_*')] == ['iter_14.pth']


def test_a_lost_checkpoint_is_named(train, tmp_path):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_3.pth'))
    run = train(work_dir, SEED, resume=True).finish()
    last = run.stdout.strip().splitlines()[-1]
    assert run.returncode == 1
    assert re.match(r"mmtok: the checkpoint to resume from, '.*iter_3.pth' \(named by .*last_checkpoint\), is not",
                    last)
