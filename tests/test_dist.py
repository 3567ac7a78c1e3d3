"""Several processes: `tools/dist_train.sh` on CPU processes equals one process on the same global batch."""

import math
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, logged_steps
from test_detection_configs import LEAVES, check_start, short

CONFIG = ROOT / 'tests' / 'configs' / 'tiny_drawn-128x128.py'
DIST_TRAIN = ROOT / 'tools' / 'dist_train.sh'
ITERATIONS = 5
MODEL = '''
import torch
from mmengine.model import BaseModel
class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def forward(self, *args, **kwargs):
        return {}
'''


def run_script(tool, *arguments, cwd, file_limit=None, **env) -> subprocess.CompletedProcess:
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    return subprocess.run([str(tool), *map(str, arguments)], cwd=cwd, text=True, stdout=subprocess.PIPE, timeout=900,
                          stderr=subprocess.STDOUT, env={**os.environ, 'PYTHON': sys.executable, **env},
                          preexec_fn=limit if file_limit else None)


def options(data_root, batch_size: int) -> list[str]:
    """No drop path, no dropout; the same images a step however many processes share them."""
    return ['--cfg-options', 'randomness.seed=0', f'train_cfg.max_iters={ITERATIONS}',
            f'train_dataloader.batch_size={batch_size}', 'model.backbone.drop_path_rate=0.0',
            'model.decode_head.dropout_ratio=0', 'model.auxiliary_head.dropout_ratio=0',
            *(f'{name}_dataloader.dataset.data_root={data_root}' for name in ('train', 'val', 'test'))]


@pytest.fixture(scope='module')
def runs(drawn_ade, run_tool, tmp_path_factory):
    """[one process on batches of 2], [two processes on batches of 1]: what GradientLog wrote."""
    root = tmp_path_factory.mktemp('dist')
    config = root / 'logged.py'
    config.write_text(f"_base_ = {str(CONFIG)!r}\ncustom_imports = dict(imports=['gradient_log'])\n"
                      "custom_hooks = [dict(type='mmtok.TokenPropHook'), dict(type='GradientLog')]\n")
    env = {'PYTHONPATH': str(ROOT / 'tests')}
    one = run_tool('train', config, '--work-dir', root / 'one', *options(drawn_ade, 2), cwd=root, env=env)
    assert one.returncode == 0, one.stdout[-3000:]
    two = run_script(DIST_TRAIN, 'mmseg', config, 2, '--work-dir', root / 'two', *options(drawn_ade, 1), cwd=root,
                     **env)
    assert two.returncode == 0, two.stdout[-3000:]
    assert 'No GPU: gradients are averaged over CPU processes (gloo)' in two.stdout
    load = [torch.load(path, weights_only=False) for path in sorted(root.glob('*/rank*.pth'))]
    assert len(load) == 3  # one/rank0, two/rank0, two/rank1
    return load[:1], load[1:]


def test_the_loss_of_two_processes_is_that_of_one(runs):
    (one,), two = runs
    for i in range(ITERATIONS):
        for name in ('loss', 'decode.loss_ce', 'aux.loss_ce', 'loss_tokenprop'):
            mean = sum(rank['losses'][i][name] for rank in two) / 2
            assert mean == pytest.approx(one['losses'][i][name], rel=1e-5), (i, name)
    assert two[0]['losses'][0]['loss'] != two[1]['losses'][0]['loss']  # they saw different images


def test_gradients_are_equal_on_both_and_none_is_missing(runs):
    (one,), two = runs
    for name, gradient in one['gradients'].items():
        assert gradient is not None, name
        assert torch.equal(two[0]['gradients'][name], two[1]['gradients'][name]), name
        scale = gradient.abs().max().clamp(min=1e-8)
        assert ((two[0]['gradients'][name] - gradient).abs().max() / scale) < 1e-3, name


def test_two_processes_resume_as_if_nothing_had_happened(drawn_ade, tmp_path):
    """Drop path draws differently on each process: each gets its own random state back."""
    shared = ['--cfg-options', 'randomness.seed=0', 'randomness.diff_rank_seed=True', 'train_cfg.max_iters=6',
              'train_dataloader.batch_size=1', 'default_hooks.checkpoint.max_keep_ckpts=-1',
              *(f'{name}_dataloader.dataset.data_root={drawn_ade}' for name in ('train', 'val', 'test'))]
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    run = run_script(DIST_TRAIN, 'mmseg', CONFIG, 2, '--work-dir', whole, *shared, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    again.mkdir()
    shutil.copy(whole / 'iter_3.pth', again)
    (again / 'last_checkpoint').write_text(str(again / 'iter_3.pth'))
    run = run_script(DIST_TRAIN, 'mmseg', CONFIG, 2, '--work-dir', again, '--resume', *shared, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    states = torch.load(again / 'iter_3.pth', weights_only=False)['mmtok_rng']
    assert len(states) == 2 and not torch.equal(states[0]['torch']['cpu'], states[1]['torch']['cpu'])
    losses, expected = ({step: line['loss'] for step, line in logged_steps(path).items()} for path in (again, whole))
    assert losses == pytest.approx({step: expected[step] for step in (4, 5, 6)}, rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_and_resume_a_detector(drawn_coco, tmp_path):
    config, = (ROOT / 'configs' / 'demo').glob('mask-rcnn*.py')
    shared = ['--auto-scale-lr', '--cfg-options', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2',
              'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=1',
              'train_dataloader.dataset.pipeline.2.prob=0.0',  # flips come from data workers, which start anew
              *(f'{name}_dataloader.dataset.data_root={drawn_coco}' for name in ('train', 'val', 'test')),
              *(f'{name}_evaluator.ann_file={drawn_coco}/annotations/instances_val2017.json'
                for name in ('val', 'test'))]
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    run = run_script(DIST_TRAIN, 'mmdet', config, 2, '--work-dir', whole, *shared, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    assert 'the current batch size is 4. Scaling the original LR by 0.25.' in run.stdout
    again.mkdir()
    shutil.copy(whole / 'epoch_1.pth', again)
    (again / 'last_checkpoint').write_text(str(again / 'epoch_1.pth'))
    run = run_script(DIST_TRAIN, 'mmdet', config, 2, '--work-dir', again, '--resume', *shared, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    losses, expected = ({step: line['loss'] for step, line in logged_steps(path).items()} for path in (again, whole))
    assert len(expected) == 4 and losses == pytest.approx({step: expected[step] for step in (3, 4)}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('leaf', LEAVES, ids=lambda path: path.stem)
def test_two_processes_train_and_resume_a_leaf(leaf, coco, starting_point, tmp_path):
    """SyncBN of Cascade's heads becomes BN; scales and crops are drawn by data workers, which start anew."""
    work, env = tmp_path / 'work', {'COCO_ROOT': str(coco), **starting_point(leaf, tmp_path)}
    for resume in ([], ['--resume']):
        run = run_script(DIST_TRAIN, 'mmdet', leaf, 2, '--work-dir', work, *resume, '--auto-scale-lr', '--cfg-options',
                         *short(leaf), 'train_cfg.max_epochs=2', cwd=tmp_path, **env)
        assert run.returncode == 0, run.stdout[-3000:]
        # A resumed optimizer brings its rate
        assert ('the current batch size is 4. Scaling the original LR by 0.25.' in run.stdout) == (not resume)
        check_start(run.stdout)
        steps = logged_steps(work)
        assert list(steps) == ([2] if resume else [1, 2])  # of 4 images, 2 for each process
        assert all(math.isfinite(value) for step in steps.values() for value in step.values())
        assert 'Epoch(val) [2][1/1]' in run.stdout
        assert ('SyncBN, which needs GPUs, becomes BN' in run.stdout) == ('cascade' in leaf.stem)
        (work / 'epoch_2.pth').unlink()
        (work / 'last_checkpoint').write_text(str(work / 'epoch_1.pth'))


SWIN = """_base_ = {base!r}
model = dict(
    backbone=dict(
        _delete_=True, type='mmtok.Swin', arch=dict(embed_dims=16, depths=(2, 1, 1, 1), num_heads=(1, 1, 1, 1)),
        tokenizer=dict(type={tokenizer!r}), token_prop={token_prop}, with_cp={with_cp}),
    neck=None,
    decode_head=dict(in_channels=[16, 32, 64, 128]),
    auxiliary_head=dict(in_channels=64, in_index=2))
custom_hooks = {hooks}
"""


@pytest.mark.parametrize('tokenizer, token_prop, with_cp', [
    ('mmtok.PatchTokenizer', None, False), ('mmtok.MoToTokenizer', dict(output_scale=32), True)], ids=['plain', 'MoTo'])
def test_swin_leaves_no_parameter_unused_and_a_full_disk_blocks_nobody(tokenizer, token_prop, with_cp, drawn_ade,
                                                                     tmp_path):
    """The main process cannot write its checkpoints; the other must not wait for it, best checkpoints included."""
    config = tmp_path / 'swin.py'
    hooks = [dict(type='mmtok.TokenPropHook')] if token_prop else []
    config.write_text(SWIN.format(base=str(CONFIG), tokenizer=tokenizer, token_prop=token_prop, with_cp=with_cp,
                                  hooks=hooks))
    run = run_script(DIST_TRAIN, 'mmseg', config, 2, '--work-dir', tmp_path / 'work', '--cfg-options',
                   'train_dataloader.batch_size=1', 'train_cfg.max_iters=4', 'train_cfg.val_interval=2',
                   'default_hooks.checkpoint.save_best=mIoU',
                   *(f'{name}_dataloader.dataset.data_root={drawn_ade}' for name in ('train', 'val', 'test')),
                   cwd=tmp_path, file_limit=400_000)
    assert list(logged_steps(tmp_path / 'work')) == [1, 2, 3, 4], run.stdout[-3000:]
    assert 'used in producing loss' not in run.stdout and 'Grad strides do not match' not in run.stdout
    assert run.stdout.count('a checkpoint cannot be written to') == 5  # four times while training, and at the end
    # torch 2.8 puts the rank before what a process dies of
    assert re.search(r'\n(?:\[rank0\]: )?mmtok: a checkpoint cannot be written to .* \(File too large\); '
                     'the last good checkpoint is none', run.stdout)
    assert 'ChildFailedError' not in run.stdout
    assert run.stdout.strip().splitlines()[-1].startswith(
        'mmtok: the training has ended, because process 0 ended with exit code 1; what it says of that')
    assert not list((tmp_path / 'work').glob('*.pth*'))


@pytest.mark.parametrize('arguments, sentence', [
    (['mmseg', CONFIG], 'usage: '),
    (['mmseg', CONFIG, 'two'], 'usage: '),
    (['mmocr', CONFIG, 2], "mmtok: no training script for 'mmocr'; choose from mmseg, mmdet"),
    (['mmseg', 'no.py', 2], "mmtok: the config 'no.py' is not there"),
], ids=lambda value: str(value)[:20] if isinstance(value, str) else 'x')
def test_wrong_arguments(arguments, sentence, tmp_path):
    run = run_script(DIST_TRAIN, *arguments, cwd=tmp_path)
    assert run.returncode != 0 and run.stdout.startswith(sentence) and len(run.stdout.splitlines()) == 1


def test_a_package_that_is_not_installed(tmp_path):
    """The system's Python without mmseg stands for an environment that was not activated."""
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    python.chmod(0o755)
    run = run_script(DIST_TRAIN, 'mmseg', CONFIG, 2, cwd=tmp_path, PYTHON=str(python))
    assert run.returncode == 1 and 'mmtok: mmseg is not installed for' in run.stdout


def test_slurm_asks_for_what_the_script_says(tmp_path):
    """A stand-in for srun prints what it was given."""
    (tmp_path / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    run = run_script(ROOT / 'tools' / 'slurm_train.sh', 'gpu', 'job', 'mmseg', CONFIG, '--amp', cwd=tmp_path, GPUS='16',
                   SRUN_ARGS='--quiet --time=1:00', PATH=f'{tmp_path}:{os.environ["PATH"]}')
    words = run.stdout.splitlines()
    assert run.returncode == 0
    assert words[:8] == ['-p', 'gpu', '--job-name=job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8',
                         '--cpus-per-task=5', '--kill-on-bad-exit=1']
    assert words[8:11] == ['--quiet', '--time=1:00', sys.executable]
    assert words[-4:] == [str(CONFIG), '--launcher', 'slurm', '--amp']


def test_what_a_launcher_and_a_config_may_bring(tmp_path):
    """mmengine needs RANK, WORLD_SIZE and LOCAL_RANK only; a config may set device_ids itself, and a timeout."""
    script = tmp_path / 'script.py'
    script.write_text(MODEL + """
from mmtok.engine.runner import Runner
runner = Runner(Model(), 'work', launcher='pytorch', log_level='ERROR',
                env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60)),
                cfg=dict(model_wrapper_cfg=dict(device_ids=None, find_unused_parameters=True)))
print(type(runner.model).__name__, runner.model.find_unused_parameters, torch.distributed.get_backend())
""")
    env = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='29517')
    env = {**{key: value for key, value in os.environ.items() if key != 'LOCAL_WORLD_SIZE'}, **env}
    run = subprocess.run([sys.executable, script], cwd=tmp_path, text=True, capture_output=True, env=env)
    assert run.stdout.strip().endswith('MMDistributedDataParallel True gloo'), run.stderr[-2000:]


def test_processes_end_with_their_own_exit_code(tmp_path):
    """Not by an abort (-6), nor never, because gloo still has a tensor of the last exchange when Python ends.

    Python does not change threads unasked, so that gloo comes late. Before mmtok saw to it, every fifth process failed:
    by the last line, by an error, and with a runner that is held to the end.
    """
    script = tmp_path / 'script.py'
    script.write_text(MODEL + """
import os, signal, socket, sys, mmtok
from mmengine.dist import broadcast_object_list
from mmtok.engine.runner import Runner
torch.set_num_threads(1)
def main(rank, port, end):
    global held
    signal.alarm(60)  # a process that never ends does so with -14
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=str(port))
    runner = Runner(Model(), 'work', launcher='pytorch', experiment_name=f'{port}_{rank}', log_level='ERROR',
                    cfg=dict(find_unused_parameters=True))
    sys.setswitchinterval(1000)
    for _ in range(20):
        broadcast_object_list([['some', 'words']])
    if end == 'error':
        raise mmtok.errors.StorageError('the disk is full')
    if end == 'held':
        held = runner
for end in ['last line', 'error', 'held'] * 4:
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        process = os.fork()
        if process == 0:  # ends as a script does, past the last line
            main(rank, port, end)
            sys.exit(0)
        processes.append(process)
    print(end, *(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes), flush=True)
""")
    env = {**os.environ, 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
           'CUDA_VISIBLE_DEVICES': ''}
    run = subprocess.run([sys.executable, script], cwd=tmp_path, text=True, capture_output=True, env=env, timeout=600)
    # gloo writes there too
    found = re.findall(r'(last line|error|held) (-?\d+) (-?\d+)$', run.stdout, re.MULTILINE)
    assert found == [('last line', '0', '0'), ('error', '1', '1'), ('held', '0', '0')] * 4, run.stderr[-2000:]
    assert run.stderr.count('mmtok: the disk is full') == 8
