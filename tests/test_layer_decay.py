"""Layer-wise learning rate decay: the rate of each parameter of DeiT-S and Swin-T against tables made by hand."""

import re

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from conftest import ROOT
from mmtok.errors import ConfigError
from mmtok.registry import MODELS

RATE, LR = 0.5, 0.128


class Segmentor(nn.Module):
    def __init__(self, **backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.decode_head = nn.Conv2d(8, 2, 1)


def groups_of(model, **paramwise):
    """Parameter name -> its group."""
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=LR, weight_decay=0.05),
               constructor='mmtok.LayerDecayOptimWrapperConstructor',
               paramwise_cfg=dict(layer_decay_rate=RATE, **paramwise))
    wrapper = build_optim_wrapper(model, cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in wrapper.optimizer.param_groups for p in group['params']}


# What a name begins with -> how many times the learning rate is halved. 12 blocks make 14 depths.
DEIT = {r'backbone\.tokenizer\.': 13, r'backbone\.trunk\.(cls_token|pos_embed)': 13,
        **{rf'backbone\.trunk\.blocks\.{i}\.': 12 - i for i in range(12)},
        r'backbone\.trunk\.norm\.': 0, r'backbone\.token_prop\.': 0, r'decode_head\.': 0}
# Depths 2, 2, 6, 2; merging goes with the block before it, as mmpretrain has it
SWIN = {r'backbone\.tokenizer\.': 13, r'backbone\.trunk\.patch_embed\.': 13,
        r'backbone\.trunk\.layers\.0\.blocks\.0': 12, r'backbone\.trunk\.layers\.0\.blocks\.1': 11,
        r'backbone\.trunk\.layers\.1\.downsample': 11,
        r'backbone\.trunk\.layers\.1\.blocks\.0': 10, r'backbone\.trunk\.layers\.1\.blocks\.1': 9,
        r'backbone\.trunk\.layers\.2\.downsample': 9,
        r'backbone\.trunk\.layers\.2\.blocks\.0': 8, r'backbone\.trunk\.layers\.2\.blocks\.1': 7,
        r'backbone\.trunk\.layers\.2\.blocks\.2': 6, r'backbone\.trunk\.layers\.2\.blocks\.3': 5,
        r'backbone\.trunk\.layers\.2\.blocks\.4': 4, r'backbone\.trunk\.layers\.2\.blocks\.5': 3,
        r'backbone\.trunk\.layers\.3\.downsample': 3,
        r'backbone\.trunk\.layers\.3\.blocks\.0': 2, r'backbone\.trunk\.layers\.3\.blocks\.1': 1,
        r'backbone\.norms\.': 0, r'backbone\.token_prop\.': 0, r'decode_head\.': 0}


@pytest.mark.parametrize('backbone, table', [
    (dict(type='mmtok.DeiT', arch='small', final_norm=True), DEIT), (dict(type='mmtok.Swin', arch='tiny'), SWIN),
], ids=['DeiT-S', 'Swin-T'])
def test_learning_rates_equal_the_table(backbone, table):
    model = Segmentor(**backbone, tokenizer=dict(type='mmtok.MoToTokenizer', placement='branch'), token_prop=dict())
    groups = groups_of(model, norm_decay_mult=0.0, custom_keys={'moto': dict(decay_mult=0.0)})
    assert groups.keys() == {name for name, p in model.named_parameters()}
    used = set()
    for name, group in groups.items():
        pattern, = (pattern for pattern in table if re.match(pattern, name))
        used.add(pattern)
        assert group['lr'] == pytest.approx(LR / 2**table[pattern], rel=1e-12), name
    assert used == set(table)
    decay = {name: group['weight_decay'] for name, group in groups.items()}
    first = 'blocks.0.' if backbone['type'] == 'mmtok.DeiT' else 'layers.0.blocks.0.'
    assert decay[f'backbone.trunk.{first}norm1.weight'] == decay['backbone.tokenizer.moto_gate'] == 0
    assert decay[f'backbone.trunk.{first}attn.qkv.weight'] == decay['backbone.tokenizer.stem.proj.weight'] == 0.05


def test_a_custom_learning_rate_is_one_more_factor():
    model = Segmentor(type='mmtok.DeiT', arch='tiny')
    groups = groups_of(model, custom_keys={'decode_head': dict(lr_mult=10.0), 'blocks.11': dict(lr_mult=0.1)})
    assert groups['decode_head.weight']['lr'] == pytest.approx(10 * LR)
    assert groups['backbone.trunk.blocks.11.mlp.fc1.bias']['lr'] == pytest.approx(0.1 * LR / 2)


def test_frozen_parameters_stay_out():
    model = Segmentor(type='mmtok.DeiT', arch='tiny', frozen_stages=3)
    assert not any(re.match(r'backbone\.(tokenizer|trunk\.(cls_token|pos_embed|blocks\.[012]\.))', name)
                   for name in groups_of(model))


def test_mmpretrain_s_backbones_work_too():
    from mmpretrain.models.backbones import BEiTViT
    model = nn.Module()
    model.backbone = BEiTViT(arch='deit-tiny', img_size=64)
    rates = {name: group['lr'] for name, group in groups_of(model).items()}
    assert rates['backbone.patch_embed.projection.weight'] == pytest.approx(LR / 2**13)


def test_inside_mmpretrain_s_classifier():
    """It has a `get_layer_depth` of its own, which takes a name alone."""
    from mmpretrain.models import ImageClassifier
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = ImageClassifier(backbone=dict(type='mmtok.DeiT', arch='tiny', classifier=True),
                                head=dict(type='LinearClsHead', num_classes=5, in_channels=192))
    rates = {name: group['lr'] for name, group in groups_of(model).items()}
    assert rates['backbone.tokenizer.proj.weight'] == pytest.approx(LR / 2**13)
    assert rates['head.fc.weight'] == LR


def test_everything_frozen():
    model = Segmentor(type='mmtok.DeiT', arch='tiny').requires_grad_(False)
    with pytest.raises(ValueError, match='empty parameter list'):  # torch's own
        groups_of(model)


@pytest.mark.parametrize('paramwise, message', [
    (dict(), 'layer_decay_rate=None must be a number above 0 and at most 1'),
    (dict(layer_decay_rate=0.9, num_layers=12), 'has num_layers of mmseg\'s constructor: remove it'),
    (dict(layer_decay_rate=1.5), 'layer_decay_rate=1.5 must be a number'),
    (dict(layer_decay_rate=0.75), 'needs a backbone with get_layer_depth, .*none is in this Linear'),
])
def test_bad_settings_are_named(paramwise, message):
    cfg = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=paramwise,
               constructor='mmtok.LayerDecayOptimWrapperConstructor')
    with pytest.raises(ConfigError, match=message):
        build_optim_wrapper(nn.Linear(2, 2), cfg)


def test_without_a_learning_rate():
    cfg = dict(type='OptimWrapper', optimizer=dict(type='Adadelta'), paramwise_cfg=dict(layer_decay_rate=0.75),
               constructor='mmtok.LayerDecayOptimWrapperConstructor')
    with pytest.raises(ConfigError, match=r'give optim_wrapper.optimizer an lr'):
        build_optim_wrapper(nn.Linear(2, 2), cfg)


def test_under_mmseg_s_own_training(drawn_ade, fork_tool, tmp_path):
    roots = [f'{loader}_dataloader.dataset.data_root={drawn_ade}' for loader in ('train', 'val', 'test')]
    run = fork_tool('train', ROOT / 'tests' / 'configs' / 'tiny_drawn-128x128.py', '--work-dir', tmp_path / 'work',
                     '--cfg-options', *roots, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
                     'optim_wrapper.constructor=mmtok.LayerDecayOptimWrapperConstructor',
                     'optim_wrapper.paramwise_cfg.layer_decay_rate=0.75', cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    assert re.search(r'Layer-wise decay: learning rates times 0.75 for each of the \d+ layers below the head, down to '
                     r'0\.\d+ for the tokenizer', run.stdout)
    optimizer = torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=False)['optimizer']
    assert len({group['initial_lr'] for group in optimizer['param_groups']}) >= 4
