"""The configs of configs/imagenet and configs/cifar10: they fit together, with each other and with those downstream."""

import re
from itertools import chain

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from conftest import ROOT, logged_steps

IMAGENET = sorted((ROOT / 'configs' / 'imagenet').glob('*.py'))
CIFAR10 = sorted((ROOT / 'configs' / 'cifar10').glob('*.py'))
TRUNKS = ('deit-s', 'deit-b', 't2t-vit-14', 't2t-vit-19', 'pvt-s', 'pvt-m', 'pvtv2-b1', 'pvtv2-b2', 'swin-t',
          'swin-s')
DOWNSTREAM = ('upernet', 'retinanet', 'mask_rcnn', 'cascade_rcnn')
TOOL = ROOT / 'tools' / 'train_classifier.py'


def of_trunk(trunk: str, variant: str = ''):
    found, = (path for path in IMAGENET if re.fullmatch(rf'{trunk}{variant}_8xb\d+-3[01]0e_in1k', path.stem))
    return found


def test_each_trunk_has_four_variants():
    for trunk in TRUNKS:
        for variant in ('', '_moto', '_tokenprop', '_moto-tokenprop'):
            assert of_trunk(trunk, variant)
    assert len(IMAGENET) == 4 * len(TRUNKS) + 1 + 3 + 8 + 3  # frozen, SGD, parts of the images, linear


@pytest.mark.parametrize('path', IMAGENET + CIFAR10, ids=lambda path: path.stem)
def test_name_and_content_agree(path):
    cfg, name = Config.fromfile(path), path.stem
    backbone = cfg.model.backbone
    moto = 'moto' in backbone.get('tokenizer', {}) or backbone.get('tokenizer', {}).get('type') == 'mmtok.MoToTokenizer'
    assert moto == ('moto' in name)
    hooks = [hook['type'] for hook in cfg.get('custom_hooks', [])]
    assert (backbone.get('token_prop') is not None) == ('mmtok.TokenPropHook' in hooks) == ('tokenprop' in name)
    assert (backbone.get('tokenizer', {}).get('type') == 'mmtok.FrozenTokenizer') == ('frozen' in name)
    processes, batch, epochs = map(int, re.search(r'_(\d)xb(\d+)-(\d+)e_', name).groups())
    assert cfg.train_cfg.max_epochs == epochs and epochs % cfg.default_hooks.checkpoint.interval == 0
    assert cfg.train_dataloader.batch_size == batch and cfg.auto_scale_lr.base_batch_size == processes * batch
    part = re.search(r'-(\d+)pct', name)
    assert cfg.train_dataloader.dataset.get('fraction', 1) == (int(part[1]) / 100 if part else 1)
    assert len(path.read_text().splitlines()) <= 30


def test_downstream_configs_name_what_these_write():
    wanted = 0
    for leaf in chain.from_iterable((ROOT / 'configs' / name).glob('*.py') for name in DOWNSTREAM):
        checkpoint = Config.fromfile(leaf).model.backbone.init_cfg.checkpoint
        if checkpoint.startswith('work_dirs/'):
            wanted += 1
            folder, epoch = re.fullmatch(r'work_dirs/(.+)/epoch_(\d+)\.pth', checkpoint).groups()
            source, ours = Config.fromfile(ROOT / 'configs' / 'imagenet' / f'{folder}.py'), Config.fromfile(leaf)
            assert source.train_cfg.max_epochs == int(epoch)
            for option in ('type', 'arch', 'tokenizer'):
                assert source.model.backbone.get(option) == ours.model.backbone.get(option)
    assert wanted >= 22


def size_of(path) -> int:
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    return sum(p.numel() for name, p in model.named_parameters() if 'token_prop' not in name)


@pytest.mark.parametrize('trunk, millions', [
    ('deit-s', 22.1), ('deit-b', 86.6), ('t2t-vit-14', 21.5), ('t2t-vit-19', 39.1), ('pvt-s', 24.5), ('pvt-m', 44.2),
    ('pvtv2-b1', 14.0), ('pvtv2-b2', 25.4), ('swin-t', 28.3), ('swin-s', 49.6)])
def test_size(trunk, millions):
    assert round(size_of(of_trunk(trunk)) / 1e6, 1) == millions


@pytest.fixture(scope='module')
def folder(draw_folder):
    return draw_folder(train=2, val=1)


SMALL = ['train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
         'train_dataloader.pin_memory=False', 'val_dataloader.pin_memory=False',
         'train_dataloader.dataset.transform.input_size=64', 'val_dataloader.dataset.transform.input_size=64',
         'val_dataloader.batch_size=4', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']


@pytest.mark.parametrize('trunk', [trunk for trunk in TRUNKS if not trunk.endswith(('-b', '-m', '19', 'swin-s'))])
def test_trunk_trains(trunk, fork_tool, folder, tmp_path):
    """The config as it is, but for the size of images and batches."""
    run = fork_tool(TOOL, of_trunk(trunk, '_moto-tokenprop'), '--work-dir', tmp_path / 'work', '--cfg-options', *SMALL,
                     cwd=tmp_path, env=dict(IMAGENET_ROOT=str(folder)))
    assert run.returncode == 0, run.stdout[-3000:]
    steps = logged_steps(tmp_path / 'work')
    assert len(steps) == 2 and all('loss_tokenprop' in line for line in steps.values())
    assert (tmp_path / 'work' / 'results.json').is_file() and (tmp_path / 'work' / 'epoch_1.pth').is_file()


def test_a_linear_probe_trains_the_head_alone(fork_tool, folder, tmp_path):
    path = ROOT / 'configs' / 'imagenet' / 'deit-s_linear_8xb128-90e_in1k.py'
    run = fork_tool(TOOL, path, '--work-dir', tmp_path / 'work', '--cfg-options', *SMALL,
                     'model.backbone.init_cfg=None', 'default_hooks.checkpoint.interval=1', cwd=tmp_path,
                     env=dict(IMAGENET_ROOT=str(folder)))
    assert run.returncode == 0, run.stdout[-3000:]
    trained = torch.load(tmp_path / 'work' / 'epoch_1.pth', map_location='cpu', weights_only=False)
    assert len(trained['optimizer']['param_groups']) >= 1 and len(trained['optimizer']['state']) == 2
