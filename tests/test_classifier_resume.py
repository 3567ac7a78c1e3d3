"""A resumed training of a classifier: it ends as the uninterrupted one, or says what it cannot go on with."""

import json
import re
import shutil

import pytest
import torch

from classifiers import CONFIG, TRAIN, files, results, weights


def test_a_resumed_training_ends_as_the_uninterrupted_one(trained, train_classifier, tmp_path):
    work_dir = tmp_path / 'work'
    train_classifier(work_dir, 'train_cfg.max_epochs=2')
    train_classifier(work_dir, resume=True)
    whole, resumed = weights(trained / 'epoch_4.pth'), weights(work_dir / 'epoch_4.pth')
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert results(work_dir)['curve'] == results(trained)['curve']


BEST = 'default_hooks.checkpoint.save_best=accuracy/top1'


@pytest.mark.parametrize('options', [[], [BEST], ['train_cfg.val_interval=999'], [BEST, 'train_cfg.val_interval=999']],
                         ids=['', 'best', 'at the end', 'best at the end'])
def test_a_validation_that_was_cut_short_is_made_up_for(options, trained, train_classifier, tmp_path):
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    found = results(work_dir)
    found['curve'].pop()
    (work_dir / 'results.json').write_text(json.dumps({**found, 'metrics': found['curve'][-1]}))
    train_classifier(work_dir, *options, resume=True)
    assert results(work_dir)['curve'] == results(trained)['curve']
    assert len(list(work_dir.glob('best_*.pth'))) == options.count(BEST)


def test_results_are_those_of_the_training_that_is_resumed(trained, train_classifier, tmp_path):
    """Also where another one, which left no checkpoint, wrote its own over them."""
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    train_classifier(work_dir, 'train_cfg.max_epochs=2', 'default_hooks.checkpoint.interval=10',
                     'default_hooks.checkpoint.save_last=False', 'model.backbone.drop_path_rate=0')
    other = (work_dir / 'results.json').read_bytes()
    assert len(results(work_dir)['curve']) == 2 and results(work_dir)['training'] != results(trained)['training']
    output = train_classifier(work_dir, 'train_cfg.max_epochs=5', resume=True)
    assert re.search(r'results\.json is of another training: it is results_\S+ from now on', output)
    found = results(work_dir)
    assert found['curve'][:4] == results(trained)['curve'] and len(found['curve']) == 5
    assert found['training'] == results(trained)['training']
    assert other in [path.read_bytes() for path in work_dir.glob('results_*.json')]


def test_other_settings_than_those_that_are_resumed(trained, train_classifier, tmp_path):
    """Each is named, and what mmengine takes from the checkpoint all the same."""
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    output = train_classifier(work_dir, 'train_dataloader.num_workers=2', resume=True)
    assert 'with other settings' not in output and 'have no effect' not in output
    output = train_classifier(work_dir, 'optim_wrapper.optimizer.lr=0.1', 'model.backbone.drop_path_rate=0',
                   'train_cfg.max_epochs=5', resume=True)
    assert ('Resumed with other settings than before: model.backbone.drop_path_rate was 0.2 and is 0, '
            'train_cfg.max_epochs was 4 and is 5.') in output
    assert 'have no effect: optim_wrapper.optimizer.lr was 0.002 and is 0.1; to change them, start' in output
    assert 'lr=0.002' in (work_dir / 'classifier_tiny.py').read_text()
    output = train_classifier(work_dir, 'train_cfg.max_epochs=6', resume=True)  # what had no effect is forgotten
    assert 'have no effect' not in output and 'max_epochs was 5 and is 6.' in output


def test_other_images_than_those_that_are_resumed(trained, train_classifier, class_folder, tmp_path):
    work_dir, root = shutil.copytree(trained, tmp_path / 'work'), shutil.copytree(class_folder, tmp_path / 'data')
    said = 'Resumed with other training images than before'
    assert said not in train_classifier(work_dir, 'train_cfg.max_epochs=5', resume=True, root=root)
    image, *_ = (root / 'train' / 'dots').iterdir()
    image.rename(image.with_stem('other'))
    assert said in train_classifier(work_dir, 'train_cfg.max_epochs=6', resume=True, root=root)


def test_a_resumed_rate_is_not_scaled_again(trained, class_folder, fork_tool, tmp_path):
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    run = fork_tool(TRAIN, CONFIG, '--work-dir', work_dir, '--resume', '--auto-scale-lr', '--epochs', '5', cwd=tmp_path,
                    env=dict(CIFAR10_ROOT=str(class_folder)))
    assert run.returncode == 0 and 'Scaling the original LR' not in run.stdout, run.stdout[-3000:]
    assert 'auto_scale_lr.enable was None and is True; to change them' in run.stdout


def test_other_classes_than_those_that_are_resumed(trained, train_classifier, class_folder, tmp_path):
    work_dir, root = shutil.copytree(trained, tmp_path / 'work'), shutil.copytree(class_folder, tmp_path / 'data')
    for split in ('train', 'val'):
        (root / split / 'dots').rename(root / split / 'zigzag')
    output = train_classifier(work_dir, 'train_cfg.max_epochs=5', resume=True, root=root, fails=True)
    assert ("mmtok: the checkpoint to resume from has 4 classes and training 4; only the checkpoint to resume from has "
            "'dots', only training has 'zigzag': have the same classes in both") in output


@pytest.mark.parametrize('content, sentence', [
    (b'', 'is empty'), (b'{"a": 1}', 'is a text file'), ('half', 'is damaged or cut short'),
    ('weights', 'is no checkpoint of a training, which holds its state beside the weights'), ('folder', 'is a folder')])
def test_a_damaged_checkpoint_to_resume(content, sentence, trained, fork_tool, class_folder, tmp_path):
    path = tmp_path / 'x.pth'
    if content == 'folder':
        path.mkdir()
    elif content == 'weights':
        torch.save(weights(trained / 'epoch_4.pth'), path)
    else:
        path.write_bytes((trained / 'epoch_4.pth').read_bytes()[:20000] if content == 'half' else content)
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--resume', path, cwd=tmp_path,
                    env=dict(CIFAR10_ROOT=str(class_folder)))
    last = run.stdout.strip().splitlines()[-1]
    assert run.returncode and last.startswith('mmtok: ') and sentence in last and 'Traceback' not in run.stdout


def test_what_a_resumed_training_cannot_change(trained, train_classifier, tmp_path):
    """Nor may the comparison of configs end it: some of what they hold cannot be written down again."""
    work_dir = shutil.copytree(trained, tmp_path / 'work')
    output = train_classifier(work_dir, 'optim_wrapper.optimizer.type=torch.optim.AdamW', 'randomness.seed=7',
                   'param_scheduler.min_lr=0', 'auto_scale_lr.enable=True', resume=True)
    assert 'goes on with the seed of its checkpoint, 0: randomness.seed=7 has no effect' in output
    assert ('no effect: optim_wrapper.optimizer.type was \'AdamW\' and is \'torch.optim.AdamW\', auto_scale_lr.enable '
            'was None and is True; to change them' in output and results(work_dir)['seed'] == 0)
    train_classifier(work_dir, 'optim_wrapper.clip_grad.max_norm=inf', resume=True)


def test_a_resumed_training_is_the_one_that_was_begun(trained, train_classifier, tmp_path):
    """Also where it started from other weights, which `--resume` replaces as the file to load."""
    start = f'load_from={trained}/epoch_1.pth'
    train_classifier(tmp_path / 'whole', start, 'train_cfg.max_epochs=2')
    train_classifier(tmp_path / 'half', start, 'train_cfg.max_epochs=1', 'param_scheduler.epochs=4')
    assert 'load_from was' not in train_classifier(tmp_path / 'half', 'train_cfg.max_epochs=2', resume=True)
    whole, half = results(tmp_path / 'whole'), results(tmp_path / 'half')
    assert whole['config_hash'] == half['config_hash'] and whole['curve'] == half['curve']


def test_a_finished_training_says_so(trained, train_classifier, tmp_path):
    output = train_classifier(shutil.copytree(trained, tmp_path / 'work'), resume=True)
    assert re.search(r'The checkpoint has (\d) of \1 epochs, so that nothing is left to train: to train on, raise '
                     'train_cfg.max_epochs', output)


def test_nothing_to_resume_yet(train_classifier, tmp_path):
    output = train_classifier(tmp_path / 'work', 'train_cfg.max_epochs=1', resume=True)
    assert f'There is nothing to resume in {tmp_path}/work: training starts from the beginning.' in output
    assert 'Auto resumed' not in output and results(tmp_path / 'work')['metrics']['epoch'] == 1


def test_a_checkpoint_to_resume_that_is_not_there(fork_tool, class_folder, tmp_path):
    run = fork_tool(TRAIN, CONFIG, '--work-dir', tmp_path / 'work', '--resume', 'gone.pth', cwd=tmp_path,
                    env=dict(CIFAR10_ROOT=str(class_folder)))
    assert run.stdout.strip().splitlines()[-1] == (
        "mmtok: the checkpoint to resume from, 'gone.pth' (named by --resume or load_from), is not there: put it back, "
        'or name another (--resume FILE, with mmseg --cfg-options load_from=FILE)')


def test_a_repeated_validation_is_one_point_of_the_curve(trained, train_classifier, tmp_path):
    train_classifier(tmp_path / 'work', BEST, 'train_cfg.max_epochs=2')
    train_classifier(tmp_path / 'work', BEST, 'train_cfg.max_epochs=3', resume=True)
    assert results(tmp_path / 'work')['curve'] == results(trained)['curve'][:3]


@pytest.mark.parametrize('option, sentence', [
    ('model.num_classes=5', 'is not of this model: the shapes differ in 2 of their tensors, such as .head.w'),
    ('model.backbone.arch.depth=3', r"is not of this model: it lacks \d+ of the model's tensors, such as 'backbone"),
    ('train_dataloader.batch_size=4', 'the 4 epochs of the checkpoint had 24 iterations, and now each has 12: go on'),
    ('optim_wrapper.optimizer.type=Adam', 'with the optimizer AdamW, and optim_wrapper.optimizer.type is Adam: go on'),
    ('optim_wrapper.constructor=DefaultOptimWrapperConstructor', 'groups its parameters otherwise than this config'),
    ('train_cfg.max_epochs=4', 'Epoch 4 of 4 is done: nothing is left to train')])
def test_what_cannot_be_resumed(option, sentence, trained, train_classifier, tmp_path):
    work_dir, refused = shutil.copytree(trained, tmp_path / 'work'), 'max_epochs' not in option
    before = files(work_dir)
    output = train_classifier(work_dir, option, 'default_hooks.checkpoint.max_keep_ckpts=1', resume=True, fails=refused)
    assert files(work_dir) == before or not refused
    assert re.search(sentence, output) and 'Traceback' not in output and 'Epoch(train)' not in output
