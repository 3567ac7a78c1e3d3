"""Every detection leaf through mmdet's own tools, from outside the project."""

import re
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from conftest import ROOT, logged_steps, tool
from mmtok.engine.settings import settings
from mmtok.errors import ConfigError
from mmtok.registry import MODELS
from mmtok.tokenprop.hook import attach

FAMILIES = ('retinanet/retinanet_pvtv2-b1{}_fpn_1x_coco.py', 'mask_rcnn/mask-rcnn_pvtv2-b1{}_fpn_1x_coco.py',
            'mask_rcnn/mask-rcnn_swin-t{}_fpn_ms-crop-1x_coco.py',
            'cascade_rcnn/cascade-mask-rcnn_swin-t{}_giou-4conv1f_fpn_ms-crop-1x_coco.py')
VARIANTS = ('', '_moto', '_tokenprop', '_moto-tokenprop')
LEAVES = [ROOT / 'configs' / family.format(variant) for family in FAMILIES for variant in VARIANTS]
RETINANET, MASK_RCNN, CASCADE = LEAVES[3], LEAVES[11], LEAVES[15]

# The paper's box AP and mask AP, plain, with MoTo, TokenProp and both, in the order of FAMILIES
SCORES = (('41.2', '41.8', '41.5', '42.0'),
          ('41.8 / 38.8', '42.4 / 39.1', '42.3 / 39.4', '42.9 / 39.4'),
          ('43.7 / 39.8', '44.1 / 40.1', '44.2 / 40.0', '44.6 / 40.4'),
          ('48.1 / 41.7', '48.7 / 42.1', '48.6 / 41.9', '49.1 / 42.4'))
PVT = 'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b1.pth'
SWIN = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth'
# As the authors' detection code has them: drop path, learning rate of 16 images a step, weight decay, public weights
OF_THE_AUTHORS = ((0.1, 1e-4, 1e-4, PVT), (0.1, 2e-4, 1e-4, PVT), (0.1, 1e-4, 0.05, SWIN), (0.0, 1e-4, 0.05, SWIN))

# Two iterations, and two images to test on; the data root comes from COCO_ROOT.
SHORT = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1', 'train_dataloader.dataset.indices=4',
         'val_dataloader.dataset.indices=2', 'test_dataloader.dataset.indices=2']
ONE_PROCESS = [f'{loader}_dataloader.{option}' for loader in ('train', 'val', 'test')
               for option in ('num_workers=0', 'persistent_workers=False')]
SMALL_TEST = ['val_dataloader.dataset.pipeline.1.scale=(160,128)', 'test_dataloader.dataset.pipeline.1.scale=(160,128)']
MULTI_SCALE = 'train_dataloader.dataset.pipeline.3.transforms'
SMALL_TRAIN = {
    False: ['train_dataloader.dataset.pipeline.2.scale=(160,128)'],
    True: [f'{MULTI_SCALE}.0.0.scales=[(160,96),(160,128)]', f'{MULTI_SCALE}.1.0.scales=[(160,112)]',
           f'{MULTI_SCALE}.1.1.crop_size=(64,96)', f'{MULTI_SCALE}.1.2.scales=[(160,96),(160,128)]']}
# Fewer regions, whose heads take most of the time
FEWER = {'retinanet': [],
         'mask': ['model.test_cfg.rpn.max_per_img=20', 'model.train_cfg.rcnn.sampler.num=16'],
         'cascade': ['model.test_cfg.rpn.max_per_img=20', 'model.train_cfg.rpn_proposal.max_per_img=20',
                     *(f'model.train_cfg.rcnn.{i}.sampler.num=16' for i in range(3))]}
# For the quick suite: the five classes that are drawn
CLASSES = '(disc,ring,square,triangle,cross)'
FIVE = [f'{loader}_dataloader.dataset.metainfo.classes={CLASSES}' for loader in ('train', 'val', 'test')]
HEADS = {'retinanet': ['bbox_head'], 'mask': ['roi_head.bbox_head', 'roi_head.mask_head'],
         'cascade': [*(f'roi_head.bbox_head.{i}' for i in range(3)), 'roi_head.mask_head']}
DRAWN = {kind: [*FIVE, *FEWER[kind], *(f'model.{head}.num_classes=5' for head in heads)]
         for kind, heads in HEADS.items()}


def short(leaf) -> list[str]:
    """Options for a few small images; all else is as the leaf has it."""
    return [*SHORT, *SMALL_TRAIN['ms-crop' in leaf.stem], *SMALL_TEST]


def unsure(leaf) -> list[str]:
    """Objects count as found however unsure, so that there are masks to evaluate."""
    return ['model.test_cfg.rcnn.score_thr=0.0'] * ('mask' in leaf.stem)


def small(leaf) -> list[str]:
    """As `short`, from random weights, in one process, with objects that are `unsure`."""
    return [*short(leaf), 'model.backbone.init_cfg=None', *ONE_PROCESS, *unsure(leaf)]


def kind_of(leaf) -> str:
    """A key of FEWER and DRAWN."""
    return re.match('[a-z]+', leaf.stem)[0]


def check_start(output: str) -> None:
    """That of `starting_point`."""
    loaded, wanted = re.search(r'(\d+) of (\d+) trunk tensors, 0 resized, 0 missing', output).groups()
    assert loaded == wanted and int(wanted) > 100


def check_test(output: str, leaf, nothing: bool = False) -> None:
    """`nothing`: that no object was found is fine."""
    assert 'Epoch(test) [2/2]' in output, output[-3000:]
    kinds = ['bbox', 'segm'][:1 + ('mask' in leaf.stem)]
    if nothing and 'The testing results of the whole dataset is empty' in output:
        kinds = ['bbox']
    assert re.findall('Evaluating (bbox|segm)', output) == kinds


def check_training(work_dir, leaf) -> None:
    steps = logged_steps(work_dir)
    assert list(steps) == [1, 2]
    for step in steps.values():
        assert ('loss_tokenprop' in step) == ('tokenprop' in leaf.stem)
        assert step['loss'] == pytest.approx(sum(v for k, v in step.items() if 'loss_' in k), rel=1e-4)


def slow_if(condition: bool, leaf):
    return pytest.param(leaf, marks=pytest.mark.slow) if condition else leaf


@pytest.mark.parametrize('leaf', [slow_if(leaf == CASCADE, leaf) for leaf in LEAVES if 'moto-tokenprop' in leaf.stem],
                         ids=lambda path: path.stem)
def test_leaf_trains_and_tests_on_drawn_objects(leaf, drawn_coco, fork_tool, tmp_path):
    options = [*small(leaf), *DRAWN[kind_of(leaf)]]
    env = {'COCO_ROOT': str(drawn_coco)}
    run = fork_tool('mmdet/train', leaf, '--work-dir', tmp_path / 'work', '--auto-scale-lr', '--cfg-options', *options,
                    cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stdout[-3000:]
    check_training(tmp_path / 'work', leaf)
    assert 'the current batch size is 2. Scaling the original LR by 0.125.' in run.stdout
    run = fork_tool('mmdet/test', leaf, tmp_path / 'work' / 'epoch_1.pth', '--work-dir', tmp_path / 'test',
                    '--cfg-options', *options, cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stdout[-3000:]
    check_test(run.stdout, leaf)


def test_leaf_starts_from_a_public_checkpoint(drawn_coco, fork_tool, tmp_path):
    """timm's names, as they would come from its hub; the whole trunk is in it."""
    torch.save(timm.create_model('pvt_v2_b1').state_dict(), tmp_path / 'pvt_v2_b1.pth')
    options = [option for option in small(LEAVES[0]) if 'init_cfg' not in option]
    run = fork_tool('mmdet/train', LEAVES[0], '--work-dir', tmp_path / 'work', '--cfg-options', *options,
                    *DRAWN['retinanet'], f'model.backbone.init_cfg.checkpoint={tmp_path}/pvt_v2_b1.pth',
                    'train_cfg.val_interval=9', cwd=tmp_path, env={'COCO_ROOT': str(drawn_coco)})
    assert run.returncode == 0, run.stdout[-3000:]
    check_start(run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize('leaf', LEAVES, ids=lambda path: path.stem)
def test_leaf_trains_and_tests_on_coco(leaf, coco, starting_point, run_tool, tmp_path):
    """From outside the project, on few images, small ones; all else is as the leaf has it.

    What has seen two iterations is sure of nothing, and there is nothing to evaluate; so it is tested once more.
    """
    env = {'COCO_ROOT': str(coco), **starting_point(leaf, tmp_path)}
    work, weights = tmp_path / 'work', tmp_path / 'work' / 'epoch_1.pth'
    run = run_tool('mmdet/train', leaf, '--work-dir', work, '--cfg-options', *short(leaf), cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stdout[-3000:]
    check_start(run.stdout)
    check_training(work, leaf)
    for more in [[], unsure(leaf)][:1 + ('mask' in leaf.stem)]:
        run = run_tool('mmdet/test', leaf, weights, '--work-dir', work, '--cfg-options', *short(leaf), *more,
                       cwd=tmp_path, env=env)
        assert run.returncode == 0, run.stdout[-3000:]
        check_test(run.stdout, leaf, nothing=not more)


@pytest.mark.parametrize('number, leaf', enumerate(LEAVES), ids=[leaf.stem for leaf in LEAVES])
def test_leaf_is_a_short_delta_with_the_paper_s_score(number, leaf):
    """In its first line, and in README's table."""
    family, variant = divmod(number, 4)
    lines, scores = leaf.read_text().splitlines(), SCORES[family][variant]
    assert len(lines) <= 20 and lines[0] == '# paper: box AP ' + scores.replace(' / ', ', mask AP ')
    assert f'[{scores}]({leaf.relative_to(ROOT)})' in (ROOT / 'README.md').read_text()
    cfg = Config.fromfile(leaf)
    assert cfg.train_dataloader.dataset.data_root == 'data/coco' and cfg.train_cfg.max_epochs == 12
    drop_path, rate, decay, weights = OF_THE_AUTHORS[family]
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (rate, decay)
    plain = Config.fromfile(LEAVES[4 * family])
    assert plain.model.backbone.init_cfg.checkpoint == weights and cfg.auto_scale_lr.base_batch_size == 16
    for each in (cfg, plain):
        each.model.backbone.pop('init_cfg')
    expected = {}
    if 'moto' in leaf.stem:
        expected['model.backbone.tokenizer.type'] = 'mmtok.MoToTokenizer'
    if 'tokenprop' in leaf.stem:
        expected |= {'model.backbone.token_prop': {}, 'custom_hooks.0.type': 'mmtok.TokenPropHook'}
    ours, theirs = (dict(settings(each.to_dict())) for each in (cfg, plain))
    assert {path: value for path, value in ours.items() if path not in theirs or theirs[path] != value} == expected
    assert not theirs.keys() - ours.keys()


@pytest.mark.parametrize('leaf', [slow_if(number % 4 < 3, leaf) for number, leaf in enumerate(LEAVES) if number % 4],
                         ids=lambda path: path.stem)
def test_leaf_starts_from_what_our_classifier_writes(leaf, tmp_path, monkeypatch, log):
    """With the trunk, the tokenizer and the decoder; where the file is not there, the sentence says what makes it."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(leaf).model.backbone
    name = re.fullmatch(r'work_dirs/(.*)/epoch_300.pth', cfg.init_cfg.checkpoint)[1]
    config = ROOT / 'configs' / 'imagenet' / f'{name}.py'
    backbone = MODELS.build(cfg)
    sentence = f'does not exist: train it with python tools/train_classifier.py {config.relative_to(ROOT)}, put it '
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        backbone.init_weights()
    classifier = MODELS.build(Config.fromfile(config).model)
    file = Path(cfg.init_cfg.checkpoint)
    file.parent.mkdir(parents=True)
    torch.save(dict(state_dict=classifier.state_dict(), meta=dict(epoch=300)), file)
    backbone.init_weights()
    said = next(text for _, text in log if text.startswith('Loaded '))
    loaded, wanted = re.search(r'(\d+) of (\d+) trunk tensors, 0 resized, 0 missing', said).groups()
    held, tokenizer = re.search(r'; (\d+) of (\d+) tokenizer tensors; ', said).groups()
    assert loaded == wanted and int(wanted) > 100 and held == tokenizer and int(tokenizer) >= 2
    theirs = classifier.state_dict()
    for key, value in backbone.state_dict().items():
        if not key.startswith('norms.'):  # of which a classifier has the last alone
            assert torch.equal(value, theirs[f'backbone.{key}']), key


def test_bf16_autocast_of_a_whole_detector(plain_attention):
    """What --amp does to the model, on the CPU, where mmcv's NMS, which heads of two stages train with, has no bf16."""
    from mmdet.testing import demo_mm_inputs
    cfg = Config.fromfile(RETINANET).model
    cfg.backbone.init_cfg = None
    cfg.backbone.drop_path_rate = 0
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg).train()
    attach(model)
    kinds = set()
    model.bbox_head.register_forward_hook(lambda *args: kinds.update(level.dtype for level in args[-1][0]))
    data = demo_mm_inputs(2, [(3, 96, 128), (3, 96, 96)], [3, 3], 80)
    batch, losses = model.data_preprocessor(data, training=True), {}
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            total, losses[enabled] = model.parse_losses(model(**batch, mode='loss'))
    total.backward()
    assert all(value.isfinite() for value in losses[True].values())
    assert kinds == {torch.float32, torch.bfloat16}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert losses[True]['loss_tokenprop'].dtype == torch.float32
    for name in ('loss_tokenprop', 'loss_cls', 'loss_bbox'):
        assert losses[True][name].item() == pytest.approx(losses[False][name].item(), rel=0.05), name


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
