"""A training that is killed at any moment, or whose disk fills, goes on with `--resume` as if nothing had happened."""

import contextlib
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, logged_steps

CONFIG = ROOT / 'tests' / 'configs' / 'tiny_drawn-128x128.py'
SEED = 'randomness.seed=0'


@pytest.fixture(scope='module')
def train(start_tool, drawn_ade):
    """Start a training in a work directory with config options, resumed or not."""
    roots = [f'{name}_dataloader.dataset.data_root={drawn_ade}' for name in ('train', 'val', 'test')]

    def start(work_dir: Path, *options: str, config: Path = CONFIG, resume: bool = False, **limits):
        return start_tool('train', config, '--work-dir', work_dir, *['--resume'][:resume], '--cfg-options', *roots,
                           *options, cwd=work_dir.parent, **limits)
    return start


@pytest.fixture(scope='module')
def finish(train):
    """Train to the end; returns the losses by iteration."""
    def run(work_dir: Path, *options: str, **how) -> dict[int, float]:
        finished = train(work_dir, *options, **how).finish()
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


def goes_on(finish, work_dir, uninterrupted, *options) -> None:
    """A resumed run ends, its losses are those of the uninterrupted one, and no other checkpoint is left."""
    resumed = finish(work_dir, SEED, *options, resume=True)
    first = min(resumed)
    assert first <= 10 and len(resumed) == 15 - first >= 5
    assert resumed == pytest.approx({step: uninterrupted[step] for step in resumed}, rel=1e-5)
    assert [path.name for path in work_dir.glob('iter_*')] == ['iter_14.pth']  # max_keep_ckpts=1, nothing half-written


@pytest.mark.parametrize('number', [*range(5), *(pytest.param(i, marks=pytest.mark.slow) for i in range(5, 12))])
def test_killed_at_a_random_moment(number, train, finish, uninterrupted, tmp_path):
    work_dir, draw = tmp_path / 'work', random.Random(number)
    process = train(work_dir, SEED).process
    iterations, delay = draw.randrange(0, 8), draw.uniform(0, 0.1)

    def moment():
        if lines_logged(work_dir) < iterations:
            return False
        time.sleep(delay)
        return True
    kill_while(process, moment)
    goes_on(finish, work_dir, uninterrupted)


# What one save does with files; the first save has nothing to delete
SAVE = ['flush the checkpoint', 'rename it', 'flush the folder', 'flush the pointer', 'rename it too',
        'flush the folder again', 'delete the previous checkpoint']


@pytest.mark.parametrize('number', range(8), ids=[f'before: {event}' for event in SAVE] + ['before: the very first'])
def test_killed_while_saving(number, train, finish, uninterrupted, tmp_path):
    """The process kills itself inside a save drawn at random, at each of its steps."""
    work_dir = tmp_path / 'work'
    save = random.Random(number).randrange(1, 8)
    event = (len(SAVE) - 1) + (save - 1) * len(SAVE) + number if number < len(SAVE) else 0
    killed = train(work_dir, SEED, fatal_event=event).finish()
    assert killed.returncode == -9
    before = sorted(path.name for path in work_dir.glob('iter_*'))
    if number < len(SAVE):
        new, old = f'iter_{save + 1}.pth', f'iter_{save}.pth'
        assert before == sorted({0: [old, f'{new}.unfinished'], 1: [old, f'{new}.unfinished']}.get(number, [old, new]))
        pointer = (work_dir / 'last_checkpoint').read_text()
        assert pointer == str(work_dir / (old if number < 5 else new))
    goes_on(finish, work_dir, uninterrupted)


def test_killed_during_the_validation_that_follows_a_checkpoint(train, finish, tmp_path):
    """The resumed run validates first: its best checkpoint is that of the uninterrupted run, and so are its losses."""
    options = ('train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=4',
               'default_hooks.checkpoint.save_best=mIoU')
    whole, work_dir = tmp_path / 'whole', tmp_path / 'work'
    expected = finish(whole, SEED, *options)
    # The first save has 6 events, the 7th flushes the best checkpoint that the validation has found
    assert train(work_dir, SEED, *options, fatal_event=6).finish().returncode == -9
    assert [path.name for path in work_dir.glob('best_*')] == ['best_mIoU_iter_4.pth.unfinished']
    resumed = finish(work_dir, SEED, *options, resume=True)
    assert resumed == pytest.approx({step: expected[step] for step in range(5, 15)}, rel=1e-5)
    best = [{path.name for path in folder.glob('best_*')} for folder in (whole, work_dir)]
    assert best[0] == best[1] and len(best[0]) == 1


def test_epochs_resume_as_iterations_do(finish, tmp_path):
    config = tmp_path / 'epochs.py'
    config.write_text(f"""_base_ = {str(CONFIG)!r}
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)
train_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=True))
default_hooks = dict(checkpoint=dict(by_epoch=True, save_best='mIoU', max_keep_ckpts=-1))
randomness = dict(seed=0)
""")
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    expected = finish(whole, config=config)
    again.mkdir()
    shutil.copy(whole / 'epoch_1.pth', again)
    (again / 'last_checkpoint').write_text(str(again / 'epoch_1.pth'))
    resumed = finish(again, config=config, resume=True)
    assert resumed == pytest.approx({step: expected[step] for step in range(5, 13)}, rel=1e-5)
    assert [path.name for path in again.glob('epoch_*')] and (again / 'epoch_3.pth').is_file()


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
    """Without the saved random states the losses differ: what the tests above see is not the absence of chance."""
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
    sentence = (r'a checkpoint cannot be written to .*/work \(File too large\); the last good checkpoint is '
                r'.*/work/iter_6.pth')
    assert len(re.findall(sentence + r'. Training goes on and the next interval tries again: free some', output)) == 8
    assert re.match(f'mmtok: {sentence}$', output.strip().splitlines()[-1])
    assert sorted(path.name for path in work_dir.glob('iter_*')) == ['iter_6.pth']
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'iter_6.pth')
    resumed = finish(work_dir, SEED, resume=True)
    assert min(resumed) == 7 and resumed == pytest.approx({s: uninterrupted[s] for s in range(7, 15)}, rel=1e-5)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB; a checkpoint takes 2."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('mounting a small file system needs root')
    yield disk
    subprocess.run(['umount', disk], check=True)


def test_a_disk_full_to_the_last_byte_ends_in_one_sentence(train, finish, small_disk):
    """Logs do not fit either, and mmengine does not go on without them."""
    work_dir = small_disk / 'work'
    finish(work_dir, SEED, 'train_cfg.max_iters=2', 'default_hooks.checkpoint.interval=2')
    last = work_dir / 'iter_2.pth'
    content = last.read_bytes()
    with (small_disk / 'filler').open('wb', buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(512)):
            pass
    run = train(work_dir, SEED, resume=True).finish()
    assert run.returncode == 1 and 'Traceback' not in run.stdout
    assert run.stdout.strip().splitlines()[-1] == (
        f'mmtok: a file in {work_dir} cannot be written (No space left on device): free some space, then go on from '
        'the last checkpoint with --resume')
    assert last.read_bytes() == content and (work_dir / 'last_checkpoint').read_text() == str(last)
    (small_disk / 'filler').unlink()


def test_a_damaged_checkpoint_is_named(train, finish, tmp_path):
    work_dir = tmp_path / 'work'
    finish(work_dir, SEED, 'train_cfg.max_iters=2')
    file = work_dir / 'iter_2.pth'
    file.write_bytes(file.read_bytes()[:1_000_000])
    run = train(work_dir, SEED, resume=True).finish()
    assert run.returncode == 1 and 'Traceback' not in run.stdout
    assert run.stdout.strip().splitlines()[-1].startswith(f"mmtok: checkpoint '{file}' is damaged or cut short (")


def test_a_lost_checkpoint_is_named(train, tmp_path):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_3.pth'))
    run = train(work_dir, SEED, resume=True).finish()
    last = run.stdout.strip().splitlines()[-1]
    assert run.returncode == 1
    assert re.match(r"mmtok: the checkpoint to resume from, '.*iter_3.pth' \(named by .*last_checkpoint\), is not",
                    last)
