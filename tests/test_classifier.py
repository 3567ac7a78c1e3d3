"""Training a classifier by its tool, on a drawn image folder."""

import contextlib
import copy
import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch.utils.data import DataLoader

from classifiers import CONFIG, TRAIN, files, results, weights
from conftest import ROOT, logged_steps
from mmtok.classification import results as results_module
from mmtok.classification.preprocessor import ImagePreprocessor
from mmtok.classification.results import ResultsHook, config_hash
from mmtok.engine.preflight import check_mixed_batches
from mmtok.errors import ConfigError
from mmtok.machine import processor_name

sys.path.insert(0, str(ROOT / 'tools'))
from train_classifier import load_config, parse_args


def test_results_say_what_was_trained(trained):
    found = results(trained)
    assert found['config'] == 'classifier_tiny' and re.fullmatch('[0-9a-f]{12}', found['config_hash'])
    assert found['seed'] == 0 and found['epochs'] == 4 and found['processes'] == 1
    assert {'mmtok', 'torch', 'timm', 'python'} <= set(found['versions'])
    assert [line['epoch'] for line in found['curve']] == [1, 2, 3, 4] and found['metrics'] == found['curve'][-1]
    assert set(found['metrics']) == {'epoch', 'accuracy/top1', 'accuracy/top5', 'ema/top1', 'ema/top5'}
    assert found['images_per_second'] > 0 and found['parameters'] > 1000
    assert found['device'] == processor_name()
    assert {**found['data'], 'hash': len(found['data']['hash'])} == dict(images=48, classes=4, hash=12)
    losses = logged_steps(trained)
    assert all('loss_tokenprop' in line for line in losses.values()) and len(losses) >= 20


def test_two_processes_end_as_one_and_resume(train_classifier, class_folder, tmp_path):
    """Without what each process draws for itself; of the 11 validation images one has 6 and the other 5."""
    root = shutil.copytree(class_folder, tmp_path / 'data')
    (root / 'val' / 'dots' / '0001.png').unlink()
    plain = ['model.backbone.drop_path_rate=0', 'model.data_preprocessor.mixup=None',
             'model.data_preprocessor.erase=None']
    train_classifier(tmp_path / 'one', *plain, 'train_cfg.max_epochs=2', root=root)
    for epochs in (1, 2):
        run = subprocess.run(
            [str(ROOT / 'tools' / 'dist_train.sh'), 'classifier', str(CONFIG), '2', '--work-dir',
             str(tmp_path / 'two'), '--resume', '--cfg-options', *plain, f'train_cfg.max_epochs={epochs}',
             'train_dataloader.batch_size=4'], cwd=tmp_path, text=True, capture_output=True,
            env={**os.environ, 'PYTHON': sys.executable, 'CIFAR10_ROOT': str(root), 'OMP_NUM_THREADS': '1'})
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    one, two = weights(tmp_path / 'one' / 'epoch_2.pth'), weights(tmp_path / 'two' / 'epoch_2.pth')
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-5), name
    assert results(tmp_path / 'two')['processes'] == 2
    assert results(tmp_path / 'two')['curve'] == results(tmp_path / 'one')['curve']


def test_tar_files_train_as_their_folders(trained, train_classifier, class_folder, tmp_path):
    for split in ('train', 'val'):
        with tarfile.open(tmp_path / f'{split}.tar', 'w') as tar:
            for child in sorted((class_folder / split).iterdir()):
                tar.add(child, child.name)
    train_classifier(tmp_path / 'work', f'train_dataloader.dataset.data_root={tmp_path}/train.tar', root=tmp_path)
    assert results(tmp_path / 'work')['curve'] == results(trained)['curve']
    with tarfile.open(tmp_path / 'both.tar', 'w') as tar:
        tar.add(class_folder, 'data')
    (tmp_path / 'one').mkdir()
    train_classifier(tmp_path / 'one' / 'work', 'train_cfg.max_epochs=1', root=tmp_path / 'both.tar')
    assert results(tmp_path / 'one' / 'work')['curve'] == results(trained)['curve'][:1]
    assert results(tmp_path / 'work')['data'] == results(tmp_path / 'one' / 'work')['data'] == results(trained)['data']


def test_the_hash_knows_the_training_and_not_its_place(trained):
    cfg = Config.fromfile(CONFIG)
    wanted = config_hash(cfg)
    place = ('work_dir', 'randomness.seed', 'train_dataloader.num_workers', 'train_dataloader.dataset.data_root')
    training = ('optim_wrapper.optimizer.lr', 'model.backbone.arch.depth', 'train_dataloader.batch_size', 'load_from',
                'model.backbone.init_cfg.checkpoint')
    for key in (*place, *training):
        other = copy.deepcopy(cfg)
        other.merge_from_dict({key: 5})
        assert (config_hash(other) == wanted) == (key in place), key


def test_epochs_and_schedule_change_together(class_folder, fork_tool, tmp_path):
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--epochs', '2', '--cfg-options',
                     'param_scheduler.warmup=0', 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None',
                     cwd=tmp_path, env=dict(CIFAR10_ROOT=str(class_folder)))
    assert run.returncode == 0, run.stdout[-3000:]
    rates = [line['lr'] for line in logged_steps(tmp_path / 'work').values()]
    assert len(rates) == 12 and rates[0] == 2e-3 and rates[-1] < 1e-4


def test_epochs_said_twice(class_folder, fork_tool, tmp_path):
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--epochs', '2', '--cfg-options',
                    'train_cfg.max_epochs=3', cwd=tmp_path, env=dict(CIFAR10_ROOT=str(class_folder)))
    assert run.stdout.endswith('\nmmtok: --epochs 2 and --cfg-options train_cfg.max_epochs=3 contradict each other: '
                               'give one of them\n')


def test_weights_alone_to_start_from(trained, train_classifier, tmp_path):
    """Of a model that is trained with averages."""
    torch.save(weights(trained / 'epoch_4.pth'), tmp_path / 'weights.pth')
    (tmp_path / 'one').mkdir()
    output = train_classifier(tmp_path / 'one' / 'work', f'load_from={tmp_path}/weights.pth', 'train_cfg.max_epochs=1')
    assert f'Load checkpoint from {tmp_path}/weights.pth' in output


def test_the_rate_is_scaled_by_the_batch_of_a_step(class_folder, fork_tool, tmp_path):
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--auto-scale-lr', '--cfg-options',
                     'optim_wrapper.accumulative_counts=4', 'param_scheduler.warmup=0', 'train_cfg.max_epochs=1',
                     cwd=tmp_path, env=dict(CIFAR10_ROOT=str(class_folder)))
    assert run.returncode == 0, run.stdout[-3000:]
    assert logged_steps(tmp_path / 'work')[1]['lr'] == pytest.approx(2e-3 * 4 * 8 / 64)


def test_averages_that_the_first_weights_never_leave(train_classifier, tmp_path):
    output = train_classifier(tmp_path / 'work', 'train_cfg.max_epochs=1', 'default_hooks.ema.momentum=0.01')
    assert 'With momentum=0.01 of the averages (default_hooks.ema), 94 % of them' in output


def test_what_a_config_may_mean(train_classifier, tmp_path):
    (tmp_path / 'file').touch()
    output = train_classifier(tmp_path / 'file', fails=True)
    assert f"mmtok: the work directory '{tmp_path}/file' cannot be made (File exists): name another" in output
    output = train_classifier(tmp_path / 'work', 'modle.num_classes=5', fails=True)
    assert "mmtok: --cfg-options modle.num_classes: the config has no 'modle'; is 'model' meant?" in output
    output = train_classifier(tmp_path / 'work', 'data_root=/nowhere', fails=True)
    assert ("mmtok: --cfg-options data_root: 'data_root' is a variable of the config file, which has been put in "
            'place; change the settings themselves: train_dataloader.dataset.data_root, val_dataloader') in output
    output = train_classifier(tmp_path / 'work', 'vis_backends.0.type=TensorboardVisBackend', fails=True)
    assert output.endswith("mmtok: --cfg-options vis_backends.0.type: 'vis_backends' is a variable of the config file, "
                           'which has been put in place; change the settings themselves: visualizer.vis_backends\n')
    output = train_classifier(tmp_path / 'work', 'model.num_classes=9', 'train_cfg.max_epochs=1')
    assert ('model.num_classes=9, but the data have 4 classes: the others are never right; model.num_classes=4 leaves '
            'them out') in output
    assert 'The learning rate of the recipe is for steps of 64 images, and a step has 8 here: --auto' in output
    assert re.search(r'Training images: 48 of 4 classes in \S+/data/train, 6 batches of 8 for each process', output)
    assert re.search(r'Validation images: 12 of 4 classes in \S+/data/val, 3 batches of 5 for each process', output)
    assert 'warms up to the end of the training (param_scheduler.warmup=1, train_cfg.max_epochs=1) and' in output
    assert 'The schedule of the learning rate has 4 epochs, and the training 1: --epochs 1 fits it.' in output


ITERATIONS = ['train_cfg._delete_=True', 'train_cfg.type=IterBasedTrainLoop', 'train_cfg.max_iters=9']


@pytest.mark.parametrize('options, kept', [
    (['default_hooks.results=None', 'train_cfg.max_epochs=1'], 'ema'),
    (['default_hooks.results=None', *ITERATIONS], 'ema'),
    (['default_hooks.ema=None', 'train_cfg.max_epochs=1'], 'results')], ids=['results', 'iterations', 'ema'])
def test_a_hook_that_is_left_out(options, kept, train_classifier, tmp_path):
    """As the messages about it advise."""
    output = train_classifier(tmp_path / 'work', *options)
    assert (tmp_path / 'work' / 'results.json').is_file() == (kept == 'results')
    assert 'accuracy/top1: ' in output and ('ema/top1: ' in output) == (kept == 'ema')


def test_a_part_of_the_images_is_listed(train_classifier, tmp_path):
    train_classifier(tmp_path / 'work', 'train_dataloader.dataset.fraction=0.5', 'train_cfg.max_epochs=1')
    names = (tmp_path / 'work' / 'train_images.txt').read_text().split()
    assert len(names) == 24 and sum('/dots/' in name for name in names) == 6


WRONG = {
    'more classes than outputs': (['model.num_classes=3'], 'model.num_classes=3, but the data have 4 classes'),
    'no data': (['train_dataloader.dataset.data_root=nowhere'], "the data root 'nowhere' .* is not there"),
    'odd batch to mix': (['train_dataloader.batch_size=7', 'default_hooks.results=None'], '=7 is odd: make it even'),
    'no options to mix': (['model.data_preprocessor.mixup=1'], 'data_preprocessor.mixup=1 must be a dict of options'),
    'no augmentation': (['train_dataloader.dataset.transform.auto_augment=randm9'],
                        "timm can make no transform of .*'randm9'.*; auto_augment is such as 'rand-m9"),
    'no interpolation': (['train_dataloader.dataset.transform.interpolation=bogus'],
                         r"timm can make no transform of .*\(KeyError: 'bogus'\)$"),
    'amp without a GPU': (['optim_wrapper.type=AmpOptimWrapper'], 'needs a GPU, and none is visible'),
    'fewer images than a batch': (['train_dataloader.batch_size=50'], '48 training images are not one batch'),
    'training images to validate on': (
        ['train_dataloader.dataset.data_root=DATA/train', 'val_dataloader.dataset.data_root=DATA/train'],
        "/train has no folders 'train' and 'val', so that training and validation would read the same"),
    'compressed': (['train_dataloader.dataset.data_root=DATA/x.tar.xz'], "/x.tar.xz' is compressed, and images"),
    'maps': (['model.backbone.classifier=False'], 'has classifier=False and gives maps'),
    'decoder without hook': (['custom_hooks=[]'], 'TokenPropHook'),
    'misspelt data': (['train_dataloader.dataset.fractoin=0.1'],
                      r"ImageDataset has no option 'fractoin' \(train_dataloader.dataset.fractoin\): correct its name"),
    'another optimizer': (['optim_wrapper.optimizer.type=SGD'],
                          r"SGD has no option 'betas' \(optim_wrapper.optimizer.betas.0\): .*, _delete_=True in"),
    'misspelt hook': (['default_hooks.logger.intervall=1'], "LoggerHook has no option 'intervall'"),
    'misspelt schedule': (['param_scheduler.warmpu=0.1'], "CosineLR has no option 'warmpu'"),
    'misspelt checkpoint': (['default_hooks.checkpoint.intervl=1'], 'mmtok.CheckpointHook has no option intervl'),
    'misspelt groups': (['optim_wrapper.paramwise_cfg.flat_decay=0'],
                        'paramwise_cfg has no option flat_decay with mmtok.OptimWrapperConstructor; it takes custom'),
    'misspelt clipping': (['optim_wrapper.clip_grad.max_nrm=1'], 'optim_wrapper.clip_grad has no option max_nrm'),
    'misspelt metric': (['val_evaluator.top=1'], r"Accuracy has no option 'top' \(val_evaluator.top\)"),
    'misspelt loader': (['train_dataloader.batchsize=1'], r"DataLoader has no option 'batchsize'"),
    'misspelt loop': (['val_cfg.typo=1'], r"ClassifierValLoop has no option 'typo'|ValLoop has no option 'typo'"),
    'misspelt seed': (['randomness.sed=1'], r"set_randomness has no option 'sed' \(randomness.sed\)"),
    'misspelt model': (['model.num_class=4'], r"ImageClassifier has no option 'num_class' \(model.num_class\)"),
    'iterations': (ITERATIONS, 'mmtok.ResultsHook counts epochs, but train_cfg counts iterations'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said_before_the_first_iteration(case, train_classifier, class_folder, tmp_path):
    options, sentence = WRONG[case]
    options = [option.replace('DATA', str(class_folder)) for option in options]
    (class_folder / 'x.tar.xz').touch()
    output = train_classifier(tmp_path / 'work', *options, fails=True)
    assert re.search(f'^mmtok: .*{sentence}', output, re.M) and 'Traceback' not in output
    assert 'Epoch(train)' not in output


@pytest.mark.parametrize('images, batch, drop, wrong', [
    (9, 4, False, 'last batch of an epoch has 1'), (9, 4, True, None), (10, 4, False, None), (9, 3, True, 'is odd')])
def test_batches_that_are_mixed_are_even(images, batch, drop, wrong):
    loader = DataLoader(range(images), batch_size=batch, drop_last=drop)
    check_mixed_batches(loader, torch.nn.Identity())
    with pytest.raises(ConfigError, match=wrong) if wrong else contextlib.nullcontext():
        check_mixed_batches(loader, ImagePreprocessor(mixup=dict(mixup_alpha=0.2)))


def test_an_option_without_a_value(capsys):
    with pytest.raises(SystemExit):
        parse_args([str(CONFIG), '--cfg-options', 'seed'])
    assert 'error: --cfg-options seed: write KEY=VALUE, such as train_dataloader.' in capsys.readouterr().err


@pytest.mark.parametrize('options, epochs', [([], 4), (['--epochs', '2'], 2)])
def test_the_hash_is_that_of_the_training_however_it_was_asked_for(options, epochs):
    said = load_config(parse_args([str(CONFIG), *options]))
    assert said.epochs == said.train_cfg.max_epochs == said.param_scheduler.epochs == epochs
    keys = [f'{key}={epochs}' for key in ('train_cfg.max_epochs', 'param_scheduler.epochs')]
    assert config_hash(said) == config_hash(load_config(parse_args([str(CONFIG), '--cfg-options', *keys])))


def test_a_backend_without_its_package(train_classifier, tmp_path):
    """Whether or not there is one here."""
    config = tmp_path / 'config.py'
    config.write_text(f"""import sys
sys.modules.update({{name: None for name in ('tensorboardX', 'tensorboard', 'torch.utils.tensorboard')}})
del sys
_base_ = {str(CONFIG)!r}
""")
    output = train_classifier(tmp_path / 'work', 'visualizer.vis_backends.0.type=TensorboardVisBackend', config=config,
                              fails=True)
    assert re.search('^mmtok: a backend of visualizer.vis_backends cannot be used .*: install what', output, re.M)
    assert 'Traceback' not in output


def test_a_training_in_the_folder_of_an_earlier_one(trained, train_classifier, tmp_path):
    """Says so, and keeps its results and list of images; one that cannot begin changes nothing."""
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    (work_dir / 'train_images.txt').write_text('of the earlier training')
    before = files(work_dir)
    for option in ('train_dataloader.dataset.data_root=nowhere', 'train_dataloader.batch_size=50',
                   f'load_from={tmp_path}/gone.pth'):
        assert 'holds checkpoints' not in train_classifier(work_dir, option, fails=True)
        assert files(work_dir) == before
    output = train_classifier(work_dir, 'train_cfg.max_epochs=1')
    assert f'{work_dir} holds checkpoints of an earlier training' in output
    assert re.search(r'results\.json is of another training: it is (\S+) from now on', output)
    kept, = work_dir.glob('results_*.json')
    images, = work_dir.glob('train_images*.txt')
    assert kept.read_bytes() == before['results.json'] and results(work_dir)['epochs'] == 1
    assert images.read_bytes() == before['train_images.txt']
    assert images.stem == kept.stem.replace('results', 'train_images')
    assert output.rstrip().endswith(f'Results: {work_dir}/results.json')


@pytest.mark.parametrize('fails', ['rename', 'write'])
def test_a_list_of_images_that_could_not_be_written_is_written_later(fails, tmp_path, monkeypatch):
    """And an earlier list is put aside, whether or not there are results beside it."""
    (tmp_path / 'train_images.txt').write_text('before')
    data = type('Data', (), dict(indices=[0, 1], filename=lambda self, i: f'{i}.png', __len__=lambda self: 2))()
    runner = SimpleNamespace(work_dir=str(tmp_path), _resume=False, logger=logging.getLogger('test'),
                             train_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=data)))
    hook, checkpoint = ResultsHook(), dict(meta={})

    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space'):
        patch.setattr(*((Path, 'rename') if fails == 'rename' else (results_module, 'write_whole')), full)
        hook.before_save_checkpoint(runner, checkpoint)
    hook.before_save_checkpoint(runner, checkpoint)
    assert (tmp_path / 'train_images.txt').read_text() == '0.png\n1.png\n'
    kept, = tmp_path.glob('train_images_*.txt')
    assert kept.read_text() == 'before'


def interrupt(class_folder, work_dir, said: str, *options: str) -> str:
    """Ctrl-C, as a terminal sends it, once a line of the log begins so; returns what stands in the log after it."""
    with subprocess.Popen(
            [sys.executable, str(TRAIN), str(CONFIG), '--work-dir', str(work_dir), '--epochs', '500', *options],
            text=True, cwd=work_dir.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what a shell's background job ignores
            env={**os.environ, 'CIFAR10_ROOT': str(class_folder), 'OMP_NUM_THREADS': '1'}) as process:
        limit = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
        limit.start()
        try:
            for line in process.stdout:
                if said in line:
                    break
            os.killpg(process.pid, signal.SIGINT)
            rest = process.stdout.read()
        finally:
            limit.cancel()
    assert process.returncode == -signal.SIGINT and 'Traceback' not in rest
    return rest


def test_an_interrupted_training_says_how_to_go_on(class_folder, tmp_path):
    rest = interrupt(class_folder, tmp_path / 'work', 'Epoch(val)')
    assert re.search(rf'^mmtok: interrupted; --resume goes on after {tmp_path}/work/epoch_\d+\.pth$', rest, re.M)


def test_a_training_that_is_interrupted_before_its_first_checkpoint(trained, train_classifier, class_folder, tmp_path):
    """In the folder of an earlier one, which goes on as if nothing had happened."""
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    rest = interrupt(class_folder, work_dir, 'Epoch(train)', '--cfg-options', 'train_dataloader.batch_size=2')
    assert 'mmtok: interrupted; it has no checkpoint yet\n' in rest
    assert not list(work_dir.glob('results_*')) and results(work_dir) == results(trained)
    train_classifier(work_dir, 'train_cfg.max_epochs=5', 'param_scheduler.epochs=5', resume=True)
    assert results(work_dir)['curve'][:4] == results(trained)['curve']


def test_other_classes_in_validation(train_classifier, class_folder, tmp_path):
    root = shutil.copytree(class_folder, tmp_path / 'data')
    (root / 'val' / 'dots').rename(root / 'val' / 'points')
    output = train_classifier(tmp_path / 'work', root=root, fails=True)
    assert ("mmtok: training has 4 classes and validation 4; only training has 'dots', only validation has 'points': "
            f'have the same classes in both (training in {root}/train, validation in {root}/val)') in output
