"""Training and testing a classifier by the tools, on a drawn image folder."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from conftest import ROOT, logged_steps
from mmtok.classification.results import config_hash

CONFIG = ROOT / 'tests' / 'configs' / 'classifier_tiny.py'
TRAIN, TEST = ROOT / 'tools' / 'train_classifier.py', ROOT / 'tools' / 'test_classifier.py'


@pytest.fixture(scope='module')
def folder(draw_folder):
    return draw_folder(train=12, val=3)  # 6 iterations an epoch


@pytest.fixture(scope='module')
def train(fork_tool, folder):
    """Train in a work directory with config options; returns the output."""
    def run(work_dir, *options, resume=False, root=folder, config=CONFIG, fails=False) -> str:
        arguments = [*['--resume'][:resume], *['--cfg-options'][:bool(options)], *options]
        run = fork_tool(TRAIN, config, '--work-dir', work_dir, *arguments, cwd=work_dir.parent,
                         env=dict(CIFAR10_ROOT=str(root)))
        assert (run.returncode != 0) == fails, run.stdout[-3000:]
        return run.stdout
    return run


@pytest.fixture(scope='module')
def trained(train, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained') / 'work'
    work_dir.parent.mkdir(exist_ok=True)
    train(work_dir)
    return work_dir


def results(work_dir) -> dict:
    return json.loads((work_dir / 'results.json').read_text())


def weights(path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def test_results_say_what_was_trained(trained):
    found = results(trained)
    assert found['config'] == 'classifier_tiny' and re.fullmatch('[0-9a-f]{12}', found['config_hash'])
    assert found['seed'] == 0 and found['epochs'] == 4 and found['processes'] == 1
    assert {'mmtok', 'torch', 'timm', 'python'} <= set(found['versions'])
    assert [line['epoch'] for line in found['curve']] == [1, 2, 3, 4] and found['metrics'] == found['curve'][-1]
    assert set(found['metrics']) == {'epoch', 'accuracy/top1', 'accuracy/top5', 'ema/top1', 'ema/top5'}
    assert found['images_per_second'] > 0 and found['parameters'] > 1000
    losses = logged_steps(trained)
    assert all('loss_tokenprop' in line for line in losses.values()) and len(losses) >= 20


def test_the_test_tool_finds_the_same_accuracies(trained, fork_tool, folder, tmp_path):
    run = fork_tool(TEST, CONFIG, trained / 'epoch_4.pth', '--work-dir', tmp_path / 'test', cwd=tmp_path,
                     env=dict(CIFAR10_ROOT=str(folder)))
    assert run.returncode == 0, run.stdout[-3000:]
    line = [line for line in run.stdout.splitlines() if 'Epoch(test)' in line][-1]
    for name, value in results(trained)['metrics'].items():
        if name != 'epoch':
            assert f'{name}: {value:.4f}' in line
    assert 'Traceback' not in run.stdout


def test_a_resumed_training_ends_as_the_uninterrupted_one(trained, train, tmp_path):
    work_dir = tmp_path / 'work'
    train(work_dir, 'train_cfg.max_epochs=2')
    train(work_dir, resume=True)
    whole, resumed = weights(trained / 'epoch_4.pth'), weights(work_dir / 'epoch_4.pth')
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert results(work_dir)['curve'] == results(trained)['curve']


def test_two_processes_end_as_one_and_resume(train, folder, tmp_path):
    """Without what each process draws for itself; of the 11 validation images one has 6 and the other 5."""
    root = shutil.copytree(folder, tmp_path / 'data')
    (root / 'val' / 'dots' / '0001.png').unlink()
    plain = ['model.backbone.drop_path_rate=0', 'model.data_preprocessor.mixup=None',
             'model.data_preprocessor.erase=None']
    train(tmp_path / 'one', *plain, 'train_cfg.max_epochs=2', root=root)
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


def test_tar_files_train_as_their_folders(trained, train, folder, tmp_path):
    for split in ('train', 'val'):
        with tarfile.open(tmp_path / f'{split}.tar', 'w') as tar:
            for child in sorted((folder / split).iterdir()):
                tar.add(child, child.name)
    train(tmp_path / 'work', f'train_dataloader.dataset.data_root={tmp_path}/train.tar', root=tmp_path)
    assert results(tmp_path / 'work')['curve'] == results(trained)['curve']
    with tarfile.open(tmp_path / 'both.tar', 'w') as tar:
        tar.add(folder, 'data')
    (tmp_path / 'one').mkdir()
    train(tmp_path / 'one' / 'work', 'train_cfg.max_epochs=1', root=tmp_path / 'both.tar')
    assert results(tmp_path / 'one' / 'work')['curve'] == results(trained)['curve'][:1]


@pytest.mark.parametrize('options', [[], ['default_hooks.checkpoint.save_best=accuracy/top1']], ids=['', 'best'])
def test_a_validation_that_was_cut_short_is_made_up_for(options, trained, train, tmp_path):
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    found = results(work_dir)
    found['curve'].pop()
    (work_dir / 'results.json').write_text(json.dumps({**found, 'metrics': found['curve'][-1]}))
    train(work_dir, *options, resume=True)
    assert results(work_dir)['curve'] == results(trained)['curve']
    assert len(list(work_dir.glob('best_*.pth'))) == len(options)


def test_other_settings_than_those_that_are_resumed(trained, train, tmp_path):
    """Each is named, and what mmengine takes from the checkpoint all the same."""
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    output = train(work_dir, 'train_dataloader.num_workers=2', resume=True)
    assert 'with other settings' not in output and 'have no effect' not in output
    output = train(work_dir, 'optim_wrapper.optimizer.lr=0.1', 'model.backbone.drop_path_rate=0',
                   'train_cfg.max_epochs=5', resume=True)
    assert ('Resumed with other settings than before: model.backbone.drop_path_rate was 0.2 and is 0, '
            'train_cfg.max_epochs was 4 and is 5.') in output
    assert 'have no effect: optim_wrapper.optimizer.lr was 0.002 and is 0.1; to change them, start' in output
    assert 'lr=0.002' in (work_dir / 'classifier_tiny.py').read_text()
    output = train(work_dir, 'train_cfg.max_epochs=6', resume=True)  # what had no effect is forgotten
    assert 'have no effect' not in output and 'max_epochs was 5 and is 6.' in output


def test_a_resumed_rate_is_not_scaled_again(trained, folder, fork_tool, tmp_path):
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    run = fork_tool(TRAIN, CONFIG, '--work-dir', work_dir, '--resume', '--auto-scale-lr', '--epochs', '5', cwd=tmp_path,
                    env=dict(CIFAR10_ROOT=str(folder)))
    assert run.returncode == 0 and 'Scaling the original LR' not in run.stdout, run.stdout[-3000:]
    assert 'auto_scale_lr.enable was None and is True; to change them' in run.stdout


def test_a_refused_resume_leaves_the_config_of_its_work_directory(trained, train, tmp_path):
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    before = (work_dir / 'classifier_tiny.py').read_text()
    train(work_dir, 'model.num_classes=5', resume=True, fails=True)
    assert (work_dir / 'classifier_tiny.py').read_text() == before


def test_other_classes_than_those_that_are_resumed(trained, train, folder, tmp_path):
    work_dir, root = shutil.copytree(trained, tmp_path / 'work'), shutil.copytree(folder, tmp_path / 'data')
    for split in ('train', 'val'):
        (root / split / 'dots').rename(root / split / 'zigzag')
    output = train(work_dir, 'train_cfg.max_epochs=5', resume=True, root=root, fails=True)
    assert ("mmtok: the checkpoint to resume from has 4 classes and training 4; only the checkpoint to resume from has "
            "'dots', only training has 'zigzag': have the same classes in both") in output


@pytest.mark.parametrize('content, sentence', [
    (b'', 'is empty'), (b'{"a": 1}', 'is a text file'), ('half', 'is damaged or cut short'),
    ('weights', 'is no checkpoint of a training, which holds its state beside the weights'), ('folder', 'is a folder')])
def test_a_damaged_checkpoint_to_resume(content, sentence, trained, fork_tool, folder, tmp_path):
    path = tmp_path / 'x.pth'
    if content == 'folder':
        path.mkdir()
    elif content == 'weights':
        torch.save(weights(trained / 'epoch_4.pth'), path)
    else:
        path.write_bytes((trained / 'epoch_4.pth').read_bytes()[:20000] if content == 'half' else content)
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--resume', path, cwd=tmp_path,
                    env=dict(CIFAR10_ROOT=str(folder)))
    last = run.stdout.strip().splitlines()[-1]
    assert run.returncode and last.startswith('mmtok: ') and sentence in last and 'Traceback' not in run.stdout


def test_what_a_resumed_training_cannot_change(trained, train, tmp_path):
    """Nor may the comparison of configs end it: some of what they hold cannot be written down again."""
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    output = train(work_dir, 'optim_wrapper.optimizer.type=torch.optim.AdamW', 'randomness.seed=7',
                   'param_scheduler.min_lr=0', 'auto_scale_lr.enable=True', resume=True)
    assert 'goes on with the seed of its checkpoint, 0: randomness.seed=7 has no effect' in output
    assert ('no effect: optim_wrapper.optimizer.type was \'AdamW\' and is \'torch.optim.AdamW\', auto_scale_lr.enable '
            'was None and is True; to change them' in output and results(work_dir)['seed'] == 0)
    train(work_dir, 'optim_wrapper.clip_grad.max_norm=inf', resume=True)


def test_a_resumed_training_is_the_one_that_was_begun(trained, train, tmp_path):
    """Also where it started from other weights, which `--resume` replaces as the file to load."""
    start = f'load_from={trained}/epoch_1.pth'
    train(tmp_path / 'whole', start, 'train_cfg.max_epochs=2')
    train(tmp_path / 'half', start, 'train_cfg.max_epochs=1', 'param_scheduler.epochs=4')
    assert 'load_from was' not in train(tmp_path / 'half', 'train_cfg.max_epochs=2', resume=True)
    whole, half = results(tmp_path / 'whole'), results(tmp_path / 'half')
    assert whole['config_hash'] == half['config_hash'] and whole['curve'] == half['curve']


def test_nothing_to_resume_yet(train, tmp_path):
    output = train(tmp_path / 'work', 'train_cfg.max_epochs=1', resume=True)
    assert f'There is nothing to resume in {tmp_path}/work: training starts from the beginning.' in output
    assert 'Auto resumed' not in output and results(tmp_path / 'work')['metrics']['epoch'] == 1


def test_a_checkpoint_to_resume_that_is_not_there(fork_tool, folder, tmp_path):
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--resume', 'gone.pth', cwd=tmp_path,
                    env=dict(CIFAR10_ROOT=str(folder)))
    assert run.stdout.strip().splitlines()[-1] == (
        "mmtok: the checkpoint to resume from, 'gone.pth' (named by --resume or load_from), is not there: put it back, "
        'or name another (--resume FILE, with mmseg --cfg-options load_from=FILE)')


def test_a_repeated_validation_is_one_point_of_the_curve(trained, train, tmp_path):
    train(tmp_path / 'work', 'train_cfg.max_epochs=2', 'default_hooks.checkpoint.save_best=accuracy/top1')
    train(tmp_path / 'work', 'train_cfg.max_epochs=3', 'default_hooks.checkpoint.save_best=accuracy/top1', resume=True)
    assert results(tmp_path / 'work')['curve'] == results(trained)['curve'][:3]


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


def test_epochs_and_schedule_change_together(folder, fork_tool, tmp_path):
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--epochs', '2', '--cfg-options',
                     'param_scheduler.warmup=0', 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None',
                     cwd=tmp_path, env=dict(CIFAR10_ROOT=str(folder)))
    assert run.returncode == 0, run.stdout[-3000:]
    rates = [line['lr'] for line in logged_steps(tmp_path / 'work').values()]
    assert len(rates) == 12 and rates[0] == 2e-3 and rates[-1] < 1e-4


def test_weights_alone_to_start_from(trained, train, tmp_path):
    """Of a model that is trained with averages."""
    torch.save(weights(trained / 'epoch_4.pth'), tmp_path / 'weights.pth')
    (tmp_path / 'one').mkdir()
    output = train(tmp_path / 'one' / 'work', f'load_from={tmp_path}/weights.pth', 'train_cfg.max_epochs=1')
    assert f'Load checkpoint from {tmp_path}/weights.pth' in output


def test_the_rate_is_scaled_by_the_batch_of_a_step(folder, fork_tool, tmp_path):
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--auto-scale-lr', '--cfg-options',
                     'optim_wrapper.accumulative_counts=4', 'param_scheduler.warmup=0', 'train_cfg.max_epochs=1',
                     cwd=tmp_path, env=dict(CIFAR10_ROOT=str(folder)))
    assert run.returncode == 0, run.stdout[-3000:]
    assert logged_steps(tmp_path / 'work')[1]['lr'] == pytest.approx(2e-3 * 4 * 8 / 64)


def test_averages_that_the_first_weights_never_leave(train, tmp_path):
    output = train(tmp_path / 'work', 'train_cfg.max_epochs=1', 'default_hooks.ema.momentum=0.01')
    assert 'With momentum=0.01 of the averages (default_hooks.ema), 94 % of them' in output


@pytest.mark.parametrize('option, sentence', [
    ('model.num_classes=5', 'is not of this model: 2 tensors have another shape, such as .head.weight.; go on'),
    ('model.backbone.arch.depth=3', r"is not of this model: \d+ tensors of the model are not in it, such as 'backbone"),
    ('train_dataloader.batch_size=4', 'the 4 epochs of the checkpoint had 24 iterations, and now each has 12: go on'),
    ('optim_wrapper.optimizer.type=Adam', 'with the optimizer AdamW, and optim_wrapper.optimizer.type is Adam: go on'),
    ('optim_wrapper.constructor=DefaultOptimWrapperConstructor', 'groups its parameters otherwise than this config'),
    ('train_cfg.max_epochs=4', 'Epoch 4 of 4 is done: nothing is left to train')])
def test_what_cannot_be_resumed(option, sentence, trained, train, tmp_path):
    work_dir, refused = shutil.copytree(trained, tmp_path / 'work'), 'max_epochs' not in option
    saved = sorted(work_dir.glob('*.pth'))
    output = train(work_dir, option, 'default_hooks.checkpoint.max_keep_ckpts=1', resume=True, fails=refused)
    assert len(saved) > 1 and (sorted(work_dir.glob('*.pth')) == saved or not refused)
    assert re.search(sentence, output) and 'Traceback' not in output and 'Epoch(train)' not in output


def test_what_a_config_may_mean(train, tmp_path):
    (tmp_path / 'file').touch()
    output = train(tmp_path / 'file', fails=True)
    assert f"mmtok: the work directory '{tmp_path}/file' cannot be made (File exists): name another" in output
    output = train(tmp_path / 'work', 'modle.num_classes=5', fails=True)
    assert "mmtok: --cfg-options modle.num_classes: the config has no 'modle'; is 'model' meant?" in output
    output = train(tmp_path / 'work', 'data_root=/nowhere', fails=True)
    assert ("mmtok: --cfg-options data_root: 'data_root' is a variable of the config file, which has been put in "
            'place; change the settings themselves: train_dataloader.dataset.data_root, val_dataloader') in output
    output = train(tmp_path / 'work', 'model.num_classes=9', 'train_cfg.max_epochs=1')
    assert 'model.num_classes=9, but the data have 4 classes: the others are never right' in output
    assert re.search(r'Training images: 48 of 4 classes in \S+/data/train, 6 batches of 8 for each process', output)
    assert re.search(r'Validation images: 12 of 4 classes in \S+/data/val, 3 batches of 5 for each process', output)
    assert 'All 1 epochs are warm-up of the learning rate (param_scheduler.warmup=1), which never' in output
    assert 'The schedule of the learning rate has 4 epochs, and the training 1: --epochs 1 fits it.' in output


def test_a_part_of_the_images_is_listed(train, tmp_path):
    train(tmp_path / 'work', 'train_dataloader.dataset.fraction=0.5', 'train_cfg.max_epochs=1')
    names = (tmp_path / 'work' / 'train_images.txt').read_text().split()
    assert len(names) == 24 and sum('/dots/' in name for name in names) == 6


WRONG = {
    'more classes than outputs': (['model.num_classes=3'], 'model.num_classes=3, but the data have 4 classes'),
    'no data': (['train_dataloader.dataset.data_root=nowhere'], "the data root 'nowhere' .* is not there"),
    'odd batch to mix': (['train_dataloader.batch_size=7'], 'Mixup pairs the images of a batch'),
    'amp without a GPU': (['optim_wrapper.type=AmpOptimWrapper'], 'needs a GPU, and none is visible'),
    'fewer images than a batch': (['train_dataloader.batch_size=50'], '48 training images are not one batch'),
    'training images to validate on': (
        ['train_dataloader.dataset.data_root=DATA/train', 'val_dataloader.dataset.data_root=DATA/train'],
        "/train has no folders 'train' and 'val', so that training and validation would read the same"),
    'compressed': (['train_dataloader.dataset.data_root=DATA/x.tar.xz'], "/x.tar.xz' is compressed, and images"),
    'maps': (['model.backbone.classifier=False'], 'has classifier=False and gives maps'),
    'decoder without hook': (['custom_hooks=[]'], 'TokenPropHook'),
    'misspelt data': (['train_dataloader.dataset.fractoin=0.1'],
                      r"ImageDataset has no option 'fractoin' \(dataloader.dataset.fractoin\): correct its name"),
    'another optimizer': (['optim_wrapper.optimizer.type=SGD'],
                          r"SGD has no option 'betas' \(optim_wrapper.optimizer.betas.0\): .*, _delete_=True in"),
    'misspelt hook': (['default_hooks.logger.intervall=1'], "LoggerHook has no option 'intervall'"),
    'misspelt schedule': (['param_scheduler.warmpu=0.1'], "CosineLR has no option 'warmpu'"),
    'misspelt checkpoint': (['default_hooks.checkpoint.intervl=1'], 'mmtok.CheckpointHook has no option intervl'),
    'misspelt clipping': (['optim_wrapper.clip_grad.max_nrm=1'], 'optim_wrapper.clip_grad has no option max_nrm'),
    'misspelt metric': (['val_evaluator.top=1'], r"Accuracy has no option 'top' \(evaluator.top\)"),
    'misspelt loader': (['train_dataloader.batchsize=1'], r"DataLoader has no option 'batchsize'"),
    'misspelt loop': (['val_cfg.typo=1'], r"ClassifierValLoop has no option 'typo'|ValLoop has no option 'typo'"),
    'misspelt seed': (['randomness.sed=1'], r"set_randomness has no option 'sed' \(randomness.sed\)"),
    'misspelt model': (['model.num_class=4'], r"ImageClassifier has no option 'num_class' \(model.num_class\)"),
    'iterations': (['train_cfg._delete_=True', 'train_cfg.type=IterBasedTrainLoop', 'train_cfg.max_iters=9'],
                   'mmtok.ResultsHook counts epochs, but train_cfg counts iterations'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said_before_the_first_iteration(case, train, folder, tmp_path):
    options, sentence = WRONG[case]
    options = [option.replace('DATA', str(folder)) for option in options]
    (folder / 'x.tar.xz').touch()
    output = train(tmp_path / 'work', *options, fails=True)
    assert re.search(f'^mmtok: .*{sentence}', output, re.M) and 'Traceback' not in output
    assert 'Epoch(train)' not in output


def test_other_classes_in_validation(train, folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / 'data')
    (root / 'val' / 'dots').rename(root / 'val' / 'points')
    output = train(tmp_path / 'work', root=root, fails=True)
    assert ("mmtok: training has 4 classes and validation 4; only training has 'dots', only validation has 'points': "
            'have the same') in output


@pytest.fixture(scope='module')
def test_tool(fork_tool, folder):
    def run(checkpoint, *options, root=folder) -> str:
        run = fork_tool(TEST, CONFIG, checkpoint, '--work-dir', checkpoint.parent / 'test', *options,
                         cwd=checkpoint.parent, env=dict(CIFAR10_ROOT=str(root)))
        assert 'Traceback' not in run.stdout
        return run.stdout
    return run


def test_other_classes_than_the_checkpoint_s(trained, test_tool, folder, tmp_path):
    root, checkpoint = shutil.copytree(folder, tmp_path / 'data'), shutil.copy(trained / 'epoch_4.pth', tmp_path)
    shutil.copytree(root / 'val' / 'dots', root / 'val' / 'waves')
    assert 'mmtok: model.num_classes=4, but the data have 5 classes' in test_tool(Path(checkpoint), root=root)
    shutil.rmtree(root / 'val' / 'waves')
    shutil.rmtree(root / 'val' / 'checks')
    output = test_tool(Path(checkpoint), root=root)
    assert "mmtok: the checkpoint has 4 classes and the test data 3; only the checkpoint has 'checks': have" in output
    assert 'Epoch(test)' not in output


@pytest.mark.parametrize('size', [0, 300, 100_000])
def test_a_damaged_checkpoint(size, trained, test_tool, tmp_path):
    content = (trained / 'epoch_4.pth').read_bytes()
    (tmp_path / 'half.pth').write_bytes(content[:size])
    last = test_tool(tmp_path / 'half.pth').strip().splitlines()[-1]
    assert last.startswith(f"mmtok: checkpoint '{tmp_path}/half.pth' is ")


def test_a_model_that_was_trained_otherwise(trained, test_tool, tmp_path):
    """Its tensors have the same shapes. Of a file without a config nothing is known."""
    whole = torch.load(trained / 'epoch_4.pth', weights_only=False)
    torch.save(dict(whole, meta={}), tmp_path / 'bare.pth')
    assert 'with other settings' not in test_tool(tmp_path / 'bare.pth')
    output = test_tool(trained / 'epoch_4.pth', '--cfg-options', 'model.backbone.arch.num_heads=4',
                       'model.backbone.drop_path_rate=0')
    assert ('was trained with other settings than it is tested with: model.backbone.arch.num_heads was 2 and is 4.'
            in output and 'Epoch(test)' in output)


def test_a_checkpoint_of_another_model(trained, test_tool, tmp_path):
    whole = torch.load(trained / 'epoch_4.pth', weights_only=False)
    torch.save({'foo': torch.zeros(3)}, tmp_path / 'foo.pth')
    output = test_tool(tmp_path / 'foo.pth')
    assert re.search(r'^mmtok: the checkpoint does not fit the model of the config: \d+ tensors of the model are not '
                     r"in it, such as 'backbone\S+; 1 of its tensors are not in the model, such as 'foo'", output, re.M)
    published = {name: value for name, value in whole['state_dict'].items() if 'token_prop' not in name}
    torch.save(published, tmp_path / 'some.pth')
    line = [line for line in test_tool(tmp_path / 'some.pth').splitlines() if 'Epoch(test)' in line][-1]
    assert f'accuracy/top1: {results(trained)["metrics"]["ema/top1"]:.4f}' in line and 'ema/' not in line
