"""What a classifier learns of real images (slow): it memorises a few, and generalises from many."""

import json
import time

import pytest

from conftest import ROOT

CONFIG = ROOT / 'configs' / 'cifar10' / 'deit-nano_1xb64-32e_cifar10.py'
TRAIN = ROOT / 'tools' / 'train_classifier.py'


def results(run_tool, root, work_dir, *options, timeout=2700) -> dict:
    run = run_tool(TRAIN, CONFIG, '--work-dir', work_dir, *['--cfg-options'][:bool(options)], *options, timeout=timeout,
                    cwd=work_dir.parent, env=dict(CIFAR10_ROOT=str(root)))
    assert run.returncode == 0, run.stdout[-3000:]
    return json.loads((work_dir / 'results.json').read_text())


@pytest.mark.slow
def test_260_images_are_memorised(run_tool, cifar10, tmp_path):
    """Trained without augmentation, and tested on the same images."""
    few = 'dataset.fraction=0.01024'  # 26 of each class
    found = results(
        run_tool, cifar10, tmp_path / 'work', 'train_dataloader.dataset.transform.is_training=False',
        'train_dataloader.dataset.transform.crop_pct=1.0', f'train_dataloader.{few}',
        f'val_dataloader.{few}', 'val_dataloader.dataset.split=train', 'train_dataloader.batch_size=26',
        'train_cfg.max_epochs=150', 'param_scheduler.epochs=150', 'train_cfg.val_interval=50',
        'optim_wrapper.optimizer.weight_decay=0')
    assert found['metrics']['accuracy/top1'] == 100.0


@pytest.mark.slow
def test_the_plain_recipe_on_25000_images(run_tool, cifar10, tmp_path):
    """Within 40 minutes on 2 CPU cores."""
    begun = time.monotonic()
    found = results(run_tool, cifar10, tmp_path / 'work', timeout=2400)
    seconds = time.monotonic() - begun
    print(found['metrics'], found['images_per_second'], f'{seconds:.0f} s')
    assert found['metrics']['accuracy/top1'] >= 65.0 and seconds <= 2400
