"""Every detection leaf through mmdet's own tools, from outside the project."""

import re

import pytest
import timm
import torch
from mmengine.config import Config

from conftest import ROOT, logged_steps, tool
from mmtok.engine.settings import settings

FAMILIES = ('retinanet/retinanet_pvtv2-b1{}_fpn_1x_coco.py', 'mask_rcnn/mask-rcnn_pvtv2-b1{}_fpn_1x_coco.py',
            'mask_rcnn/mask-rcnn_swin-t{}_fpn_ms-crop-1x_coco.py',
            'cascade_rcnn/cascade-mask-rcnn_swin-t{}_giou-4conv1f_fpn_ms-crop-1x_coco.py')
VARIANTS = ('', '_moto', '_tokenprop', '_moto-tokenprop')
LEAVES = [ROOT / 'configs' / family.format(variant) for family in FAMILIES for variant in VARIANTS]
RETINANET, MASK_RCNN, CASCADE = LEAVES[3], LEAVES[11], LEAVES[15]

# Shorter, smaller, and from random weights; the data root comes from COCO_ROOT.
SHORT = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1', 'model.backbone.init_cfg=None',
         'train_dataloader.dataset.indices=4', 'val_dataloader.dataset.indices=2', 'test_dataloader.dataset.indices=2',
         *(f'{loader}_dataloader.{option}' for loader in ('train', 'val', 'test')
           for option in ('num_workers=0', 'persistent_workers=False'))]
SMALL_TEST = ['val_dataloader.dataset.pipeline.1.scale=(160,128)', 'test_dataloader.dataset.pipeline.1.scale=(160,128)']
MULTI_SCALE = 'train_dataloader.dataset.pipeline.3.transforms'
SMALL_TRAIN = {
    False: ['train_dataloader.dataset.pipeline.2.scale=(160,128)'],
    True: [f'{MULTI_SCALE}.0.0.scales=[(160,96),(160,128)]', f'{MULTI_SCALE}.1.0.scales=[(160,112)]',
           f'{MULTI_SCALE}.1.1.crop_size=(64,96)', f'{MULTI_SCALE}.1.2.scales=[(160,96),(160,128)]']}
# For the quick suite: the five classes that are drawn, and fewer regions, whose heads take most of the time
CLASSES = '(disc,ring,square,triangle,cross)'
FIVE = [f'{loader}_dataloader.dataset.metainfo.classes={CLASSES}' for loader in ('train', 'val', 'test')]
MASK = [*FIVE, 'model.roi_head.mask_head.num_classes=5', 'model.test_cfg.rpn.max_per_img=20']
DRAWN = {'retinanet': [*FIVE, 'model.bbox_head.num_classes=5'],
         'mask': [*MASK, 'model.roi_head.bbox_head.num_classes=5', 'model.train_cfg.rcnn.sampler.num=16'],
         'cascade': [*MASK, 'model.train_cfg.rpn_proposal.max_per_img=20',
                     *(f'model.roi_head.bbox_head.{i}.num_classes=5' for i in range(3)),
                     *(f'model.train_cfg.rcnn.{i}.sampler.num=16' for i in range(3))]}


def small(leaf) -> list[str]:
    return [*SHORT, *SMALL_TRAIN['ms-crop' in leaf.stem], *SMALL_TEST]


def check_training(work_dir, leaf) -> None:
    steps = logged_steps(work_dir)
    assert list(steps) == [1, 2]
    for step in steps.values():
        assert ('loss_tokenprop' in step) == ('tokenprop' in leaf.stem)
        assert step['loss'] == pytest.approx(sum(v for k, v in step.items() if 'loss_' in k), rel=1e-4)


@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if 'moto-tokenprop' in leaf.stem], ids=lambda path: path.stem)
def test_leaf_trains_and_tests_on_drawn_objects(leaf, drawn_coco, fork_tool, tmp_path):
    options = [*small(leaf), *DRAWN[re.match('[a-z]+', leaf.stem)[0]]]
    env = {'COCO_ROOT': str(drawn_coco)}
    run = fork_tool('mmdet/train', leaf, '--work-dir', tmp_path / 'work', '--auto-scale-lr', '--cfg-options', *options,
                    cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stdout[-3000:]
    check_training(tmp_path / 'work', leaf)
    assert 'the current batch size is 2. Scaling the original LR by 0.125.' in run.stdout
    run = fork_tool('mmdet/test', leaf, tmp_path / 'work' / 'epoch_1.pth', '--work-dir', tmp_path / 'test',
                    '--cfg-options', *options, cwd=tmp_path, env=env)
    assert run.returncode == 0 and 'Epoch(test) [2/2]' in run.stdout, run.stdout[-3000:]


def test_leaf_starts_from_a_public_checkpoint(drawn_coco, fork_tool, tmp_path):
    """timm's names, as they would come from its hub; the whole trunk is in it."""
    torch.save(timm.create_model('pvt_v2_b1').state_dict(), tmp_path / 'pvt_v2_b1.pth')
    options = [option for option in small(LEAVES[0]) if 'init_cfg' not in option]
    run = fork_tool('mmdet/train', LEAVES[0], '--work-dir', tmp_path / 'work', '--cfg-options', *options,
                    *DRAWN['retinanet'], f'model.backbone.init_cfg.checkpoint={tmp_path}/pvt_v2_b1.pth',
                    'train_cfg.val_interval=9', cwd=tmp_path, env={'COCO_ROOT': str(drawn_coco)})
    assert run.returncode == 0, run.stdout[-3000:]
    loaded, wanted = re.search(r'(\d+) of (\d+) trunk tensors, 0 resized, 0 missing', run.stdout).groups()
    assert loaded == wanted and int(wanted) > 100


@pytest.mark.slow
@pytest.mark.parametrize('leaf', LEAVES, ids=lambda path: path.stem)
def test_leaf_trains_and_tests_on_coco(leaf, coco, fork_tool, tmp_path):
    """From outside the project, on few images, small ones, and from random weights; all else is as the leaf has it."""
    env = {'COCO_ROOT': str(coco)}
    for name, arguments in (('train', []), ('test', [tmp_path / 'work' / 'epoch_1.pth'])):
        run = fork_tool(f'mmdet/{name}', leaf, *arguments, '--work-dir', tmp_path / 'work', '--cfg-options',
                       *small(leaf), cwd=tmp_path, env=env)
        assert run.returncode == 0, run.stdout[-3000:]
        if name == 'train':
            check_training(tmp_path / 'work', leaf)
    assert 'Evaluating bbox' in run.stdout


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda path: path.stem)
def test_leaf_is_a_short_delta_with_the_paper_s_score(leaf):
    lines = leaf.read_text().splitlines()
    assert len(lines) <= 20
    masks = 'mask' in leaf.stem
    assert re.fullmatch(r'# paper: box AP \d\d\.\d' + r', mask AP \d\d\.\d' * masks, lines[0])
    cfg = Config.fromfile(leaf)
    assert cfg.train_dataloader.dataset.data_root == 'data/coco' and cfg.train_cfg.max_epochs == 12
    assert cfg.model.backbone.init_cfg.checkpoint
    if 'moto' in leaf.stem or 'tokenprop' in leaf.stem:  # what the classifier of the same trunk writes
        name = re.fullmatch(r'work_dirs/(.*)/epoch_300.pth', cfg.model.backbone.init_cfg.checkpoint)[1]
        assert (ROOT / 'configs' / 'imagenet' / f'{name}.py').is_file()


def test_coco_root_of_the_environment_reaches_loaders_and_metrics(monkeypatch):
    monkeypatch.setenv('COCO_ROOT', '/somewhere/else')
    for leaf in LEAVES:
        cfg = Config.fromfile(leaf)
        assert {cfg[f'{name}_dataloader'].dataset.data_root for name in ('train', 'val', 'test')} == {'/somewhere/else'}
        assert {cfg[f'{name}_evaluator'].ann_file for name in ('val', 'test')} == {
            '/somewhere/else/annotations/instances_val2017.json'}


# Leaf -> mmdet's config of the nearest recipe, and all in which ours differs from it: ours, mmdet's
CONVNEXT = 'mask-rcnn_convnext-t-p4-w7'
ADAMW = {'optimizer.betas': ((0.9, 0.999), None)}
SCHEDULE_3X = {'0.end': (500, 1000), '1.end': (12, 36), '1.milestones': ([8, 11], [27, 33])}
RECIPES = {
    'retinanet_pvtv2-b1': ('pvt/retinanet_pvtv2-b1_fpn_1x_coco.py', {'optim_wrapper': ADAMW}),
    'mask-rcnn_pvtv2-b1': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', {
        'model': {'neck.in_channels': ([64, 128, 320, 512], [256, 512, 1024, 2048])},
        'optim_wrapper': {**ADAMW, 'optimizer.type': ('AdamW', 'SGD'), 'optimizer.lr': (2e-4, 0.02),
                          'optimizer.momentum': (None, 0.9)}}),
    'mask-rcnn_swin-t': ('swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py', {
        'optim_wrapper': {'paramwise_cfg.custom_keys.absolute_pos_embed.decay_mult': (None, 0.0)},  # Swin-T has none
        'param_scheduler': SCHEDULE_3X}),
    'cascade-mask-rcnn_swin-t': (f'convnext/cascade-{CONVNEXT}_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py', {
        'optim_wrapper': {
            'type': ('OptimWrapper', 'AmpOptimWrapper'), 'optimizer.lr': (1e-4, 2e-4),
            'paramwise_cfg.custom_keys.norm.decay_mult': (0.0, None),
            'paramwise_cfg.custom_keys.relative_position_bias_table.decay_mult': (0.0, None),
            'paramwise_cfg.decay_rate': (None, 0.7), 'paramwise_cfg.decay_type': (None, 'layer_wise'),
            'paramwise_cfg.num_layers': (None, 6)},
        'param_scheduler': SCHEDULE_3X})}
PARTS = ('model', 'optim_wrapper', 'param_scheduler', *(f'{loader}_dataloader' for loader in ('train', 'val', 'test')))
OURS_ALONE = ('backbone', 'data_root', 'constructor', 'paramwise_cfg.custom_keys.moto')


@pytest.mark.parametrize('leaf', LEAVES[::4], ids=lambda path: path.stem)
def test_recipe_is_mmdet_s_but_for_what_is_known(leaf):
    """Heads, losses, samplers, pipelines and schedules; one config of ConvNeXt's has the heads of Swin's Cascade."""
    name, known = RECIPES[re.match('.+?_[^_]+', leaf.stem)[0]]
    configs = [Config.fromfile(path).to_dict() for path in (leaf, tool('mmdet/train').parents[1] / 'configs' / name)]
    for part in PARTS:
        ours, theirs = (dict(settings(cfg[part])) for cfg in configs)
        expected = {}
        for path, values in known.get(part, {}).items():
            pair = [dict(settings(value, path)) if value is not None else {} for value in values]
            expected.update({key: (pair[0].get(key), pair[1].get(key)) for key in {**pair[0], **pair[1]}})
        assert expected == {path: (ours.get(path), theirs.get(path)) for path in {**ours, **theirs}
                            if ours.get(path) != theirs.get(path) and not any(word in path for word in OURS_ALONE)}


@pytest.mark.parametrize('place, count', [('roi_head.bbox_head', 80), ('roi_head.mask_head', 4)])
def test_heads_of_other_classes_end_in_one_sentence(place, count, drawn_coco, fork_tool, tmp_path):
    """More than the data have, too: CocoMetric would fail after the first epoch."""
    options = [o for o in DRAWN['mask'] if place not in o]
    run = fork_tool('mmdet/train', MASK_RCNN, '--work-dir', tmp_path / 'work', '--cfg-options', *small(MASK_RCNN),
                    *options, f'model.{place}.num_classes={count}', cwd=tmp_path, env={'COCO_ROOT': str(drawn_coco)})
    assert run.returncode == 1 and 'Traceback' not in run.stdout and 'Epoch(train)' not in run.stdout
    assert run.stdout.strip().splitlines()[-1] == (
        f'mmtok: model.{place}.num_classes={count}, but the data have 5 classes: make them equal')
