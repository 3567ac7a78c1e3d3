"""Every leaf config through mmseg's own tools, from outside the project; wrong configs before the first iteration."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from conftest import ROOT, logged_steps
from test_detection_configs import LEAVES as DETECTORS

SUFFIX = '8xb2-160k_ade20k-512x512.py'
UPERNET = {name: ROOT / 'configs' / 'upernet' / f'upernet_deit-s_{name and name + "_"}{SUFFIX}'
           for name in ('', 'frozen', 'moto', 'tokenprop', 'moto-tokenprop')}
OCRNET = ROOT / 'configs' / 'ocrnet' / 'ocrnet_hr48_4xb4-150k_ade20k-512x512.py'
SWIN = [ROOT / 'configs' / 'upernet' / f'upernet_swin-{size}_{name and name + "_"}{SUFFIX}'
        for size in 'ts' for name in ('', 'moto', 'tokenprop', 'moto-tokenprop')]
WARM = [ROOT / 'configs' / 'upernet' / f'upernet_{trunk}_moto-warm_{SUFFIX}' for trunk in ('deit-s', 'swin-t')]
PAPER = [*UPERNET.values(), *SWIN, OCRNET]
LEAVES = [*PAPER, *WARM]
QUICK = [UPERNET['frozen'], UPERNET['moto-tokenprop'], SWIN[3], OCRNET]  # the quick suite's, of each trunk one

# Smaller and shorter, nothing else: the data root comes from ADE20K_ROOT.
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.logger.interval=1',
         'default_hooks.checkpoint.interval=2', 'model.backbone.init_cfg=None', 'train_dataloader.batch_size=2',
         *(f'{loader}_dataloader.{option}' for loader in ('train', 'val', 'test')
           for option in ('num_workers=0', 'persistent_workers=False')),
         'val_dataloader.dataset.indices=2', 'test_dataloader.dataset.indices=2']
SMALL = ['train_dataloader.dataset.pipeline.3.crop_size=(64,64)', 'model.data_preprocessor.size=(64,64)',
         *(f'{loader}_dataloader.dataset.pipeline.1.scale=(256,64)' for loader in ('val', 'test'))]


@pytest.mark.parametrize('leaf', [leaf if leaf in QUICK else pytest.param(leaf, marks=pytest.mark.slow)
                                  for leaf in LEAVES], ids=lambda path: path.stem)
def test_leaf_trains_and_tests_under_mmseg(leaf, ade_layout, run_tool, fork_tool, tmp_path):
    """Two as a user would run them, the others in forked processes: the scripts are the same, imports are spared."""
    env = {'ADE20K_ROOT': str(ade_layout)}
    run = run_tool if leaf in (SWIN[3], OCRNET) else fork_tool
    train = run('train', leaf, '--work-dir', tmp_path / 'work', '--cfg-options', *SHORT, *SMALL, cwd=tmp_path, env=env)
    assert train.returncode == 0, train.stdout[-3000:]
    lines = [json.loads(line) for log in (tmp_path / 'work').glob('*/vis_data/scalars.json')
             for line in log.read_text().splitlines()]
    steps = [line for line in lines if 'loss' in line]
    assert len(steps) == 2 and any('mIoU' in line for line in lines)
    for step in steps:
        assert ('loss_tokenprop' in step) == ('tokenprop' in leaf.stem)
        assert step['loss'] == pytest.approx(sum(v for k, v in step.items() if 'loss_' in k), rel=1e-4)
    test = run('test', leaf, tmp_path / 'work' / 'iter_2.pth', '--work-dir', tmp_path / 'test', '--cfg-options',
               *SHORT, *SMALL, cwd=tmp_path, env=env)
    assert test.returncode == 0, test.stdout[-3000:]
    assert re.search(r'mIoU: \d', test.stdout)


def test_leaf_resumes(drawn_ade, fork_tool, tmp_path):
    """With all of its own settings, mmengine's data workers among them."""
    options = [option for option in SHORT if 'workers' not in option and 'max_iters' not in option] + SMALL
    for flags, iterations in ([], 2), (['--resume'], 3):
        run = fork_tool('train', SWIN[3], '--work-dir', tmp_path / 'work', *flags, '--cfg-options', *options,
                        f'train_cfg.max_iters={iterations}', cwd=tmp_path, env={'ADE20K_ROOT': str(drawn_ade)})
        assert run.returncode == 0, run.stdout[-3000:]
    assert re.search(r'Load checkpoint from \S+iter_2.pth', run.stdout) and 'resumed epoch' in run.stdout
    assert list(logged_steps(tmp_path / 'work')) == [3]


def test_amp_rewrites_the_config_and_needs_a_gpu(drawn_ade, fork_tool, tmp_path):
    run = fork_tool('train', UPERNET['moto-tokenprop'], '--work-dir', tmp_path / 'work', '--amp', '--cfg-options',
                     *SHORT, *SMALL, cwd=tmp_path, env={'ADE20K_ROOT': str(drawn_ade)})
    dumped = Config.fromfile(tmp_path / 'work' / UPERNET['moto-tokenprop'].name)
    assert dumped.optim_wrapper.type == 'AmpOptimWrapper' and dumped.optim_wrapper.loss_scale == 'dynamic'
    assert dumped.optim_wrapper.paramwise_cfg.custom_keys['moto'].decay_mult == 0  # the rest is as it was
    if not torch.cuda.is_available():
        assert run.returncode == 1 and run.stdout.strip().splitlines()[-1].startswith(
            "mmtok: optim_wrapper.type='AmpOptimWrapper' (--amp) needs a GPU")
    else:
        assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize('leaf', [UPERNET['moto-tokenprop'], SWIN[3]], ids=lambda path: path.stem)
def test_bf16_autocast_of_a_whole_segmentor(leaf, plain_attention):
    """What --amp does to the model, on the CPU: losses in float32 and near float32's, finite gradients for all."""
    from mmseg.registry import MODELS

    from mmtok.tokenprop.hook import attach
    cfg = Config.fromfile(leaf).model
    cfg.backbone.init_cfg = None
    cfg.data_preprocessor.size = (64, 64)
    for head in (cfg.decode_head, cfg.auxiliary_head):
        head.norm_cfg, head.dropout_ratio = dict(type='GN', num_groups=8), 0
    cfg.backbone.drop_path_rate = 0
    if 'neck' in cfg:
        cfg.neck.norm_cfg = dict(type='GN', num_groups=8)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg).train()
    attach(model)
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, 64, 64))))
    batch = model.data_preprocessor(dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)] * 2,
                                         data_samples=[sample] * 2), training=True)
    losses = {}
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            values = model(**batch, mode='loss')
        losses[enabled] = {name: value for name, value in values.items() if 'loss' in name}
        sum(losses[enabled].values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert 'loss_tokenprop' in losses[True] and losses[True]['loss_tokenprop'].dtype == torch.float32
    for name, value in losses[True].items():
        assert value.item() == pytest.approx(losses[False][name].item(), rel=0.05), name


def test_plain_leaf_starts_from_a_public_file(drawn_ade, fork_tool, tmp_path):
    """The recipe of a plain row with a file of the official DeiT's form; its positions grow from 14x14 to 32x32."""
    torch.save({'model': timm.create_model('deit_small_patch16_224').state_dict()}, tmp_path / 'deit.pth')
    options = [option for option in SHORT + SMALL if 'init_cfg' not in option]
    run = fork_tool('train', UPERNET[''], '--work-dir', tmp_path / 'work', '--cfg-options', *options,
                    f'model.backbone.init_cfg.checkpoint={tmp_path}/deit.pth', cwd=tmp_path,
                    env={'ADE20K_ROOT': str(drawn_ade)})
    assert run.returncode == 0, run.stdout[-3000:]
    assert re.search(r'deit.pth \(names of timm, authors\): 146 of 146 trunk tensors, 1 resized \(trunk.pos_embed '
                     r'14x14 -> 32x32\), 0 missing, 0 unexpected, 4 of a classifier, not needed \(trunk.norm.weight, '
                     r'trunk.norm.bias, head.weight, head.bias\); 2 of 2 tokenizer tensors; '
                     r'as initialised beside the trunk: none', run.stdout)


@pytest.mark.parametrize('leaf', PAPER, ids=lambda path: path.stem)
def test_leaf_is_a_short_delta_with_the_paper_s_score(leaf):
    lines = leaf.read_text().splitlines()
    assert len(lines) <= 20
    assert re.fullmatch(r'# paper: mIoU \d\d\.\d', lines[0])
    cfg = Config.fromfile(leaf)
    assert cfg.train_dataloader.dataset.data_root == 'data/ade/ADEChallengeData2016'
    assert cfg.train_cfg.max_iters == (150000 if leaf == OCRNET else 160000)
    assert cfg.model.backbone.init_cfg.checkpoint


@pytest.mark.parametrize('leaf', WARM, ids=lambda path: path.stem)
def test_warm_leaf_differs_from_the_plain_one_by_its_tokenizer(leaf):
    warm, plain = Config.fromfile(leaf), Config.fromfile(str(leaf).replace('moto-warm_', ''))
    assert warm.model.backbone.pop('tokenizer') == dict(type='mmtok.MoToTokenizer', placement='token')
    assert warm.to_dict() == plain.to_dict()


def test_moto_takes_no_weight_decay_and_keeps_its_start_after_the_runner_initialised(ade_layout, tmp_path, monkeypatch):
    from mmtok.engine.runner import Runner
    monkeypatch.setenv('ADE20K_ROOT', str(ade_layout))
    cfg = Config.fromfile(UPERNET['moto-tokenprop'])
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), log_level='ERROR', launcher='none', experiment_name='decay',
                             randomness=dict(seed=0), model=dict(backbone=dict(init_cfg=None))))
    for placement in ('stem', 'token', 'branch'):
        cfg.model.backbone.tokenizer.placement = placement
        cfg.experiment_name = cfg.visualizer.name = f'decay-{placement}'  # mmengine keeps visualizers by name
        runner = Runner.from_cfg(cfg)
        tokenizer = runner.model.backbone.tokenizer
        before = {name: p.clone() for name, p in tokenizer.named_parameters() if 'moto' in name}
        # Two parameters of beta's and alpha's kind, the layout filters and their bias, and where it exists the gate
        assert len(before) == (4 if placement == 'stem' else 5)
        runner._init_model_weights()
        moto = tokenizer.moto if placement == 'token' else tokenizer.stem.moto
        assert moto.beta.eq(1).all() and moto.alpha.eq(0).all() and abs(moto.filters.weight.std() - 1) < 0.15
        after = dict(tokenizer.named_parameters())
        assert all(torch.equal(after[name], value) for name, value in before.items())
        wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        decay = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
        assert all(decay[id(after[name])] == 0 for name in before)
        assert decay[id(runner.model.backbone.trunk.blocks[0].attn.qkv.weight)] == 0.01


WRONG = {
    'hook without decoder': (['model.backbone.token_prop=None'], 'TokenPropHook is in custom_hooks, but no backbone'),
    'decoder without hook': (['custom_hooks=[]'], 'nothing collects its loss: add custom_hooks='),
    'unknown loss': (['model.backbone.token_prop.loss=l3'], "token_prop.loss='l3' is unknown; choose from 'l1', 'l2'"),
    'unknown reduction': (['model.backbone.token_prop.reduction=max'], "token_prop.reduction='max' is unknown"),
    'unknown partition': (['model.backbone.tokenizer.partition=fuzzy'], "partition='fuzzy' is unknown"),
    'unknown placement': (['model.backbone.tokenizer.placement=head'], "placement='head' is unknown"),
    'negative lambda': (['model.backbone.token_prop.loss_weight=-1'], 'loss_weight=-1 (lambda) must be a number'),
    'NaN lambda': (['model.backbone.token_prop.loss_weight=nan'], 'loss_weight=nan (lambda) must be a number'),
    'no entities': (['model.backbone.tokenizer.num_entities=0'], 'num_entities=0 must be a whole number of at least 1'),
    'channels that do not match': (['model.backbone.tokenizer.embed_dims=96'],
                                   'the tokenizer has embed_dims=96, but the trunk of DeiT takes embed_dims=384'),
    'crop smaller than a token': (['train_dataloader.dataset.pipeline.3.crop_size=(8,8)'],
                                  'train_dataloader.dataset.pipeline.3.crop_size=(8, 8) is smaller than one token'),
    'channels that do not fit the neck': (['model.backbone.arch=tiny'],
                                          'model.neck.in_channels=[384, 384, 384, 384], but DeiT gives it maps of'),
    'fewer maps than the heads take': (['model.backbone.out_indices=(5,11)', 'model.neck=None'],
                                       'model.decode_head.in_index=[0, 1, 2, 3] counts on more maps than the 2 of '
                                       'DeiT: name more blocks or stages in model.backbone.out_indices'),
    'channels of the auxiliary head': (['model.neck=None', 'model.auxiliary_head.in_channels=192'],
                                       'model.auxiliary_head.in_channels=192, but DeiT gives it maps of [384]'),
    'a vector for a segmentor': (['model.backbone.classifier=True'],
                                 'DeiT with classifier=True gives one vector, of its last layer: remove out_indices'),
    'a checkpoint that is none': (['model.backbone.init_cfg.type=Pretrained',
                                         f'model.backbone.init_cfg.checkpoint={ROOT}/LICENSE'],
                                        'is a text file, not a checkpoint: name another'),
    'channels of the image': (['model.backbone.tokenizer.in_channels=4'],
                              'the tokenizer has in_channels=4, but model.data_preprocessor.mean has 3 values'),
    'whole-number means': (['model.data_preprocessor.mean=[128,128,128]'],
                           'mask_padding=True reads the padding off the input'),
    'padding that is not 0': (['model.data_preprocessor.pad_val=7'], 'pad value 7'),
    'missing data root': (['train_dataloader.dataset.data_root=/nowhere/ade'],
                          "the data root '/nowhere/ade' (train_dataloader.dataset.data_root) is not there"),
    'unknown option': (['model.backbone.pretrain_img_size=224'],
                       'model.backbone DeiT has no option pretrain_img_size; it takes arch, img_size'),
    'unreachable checkpoint': (['model.backbone.init_cfg.type=Pretrained',
                                'model.backbone.init_cfg.checkpoint=http://localhost:9/no.pth'],
                               "checkpoint 'http://localhost:9/no.pth' cannot be downloaded"),
    'missing checkpoint': (['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=no.pth'],
                           "checkpoint 'no.pth' does not exist: put it there"),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_cannot_work_ends_in_one_sentence(case, drawn_ade, fork_tool, tmp_path):
    options, sentence = WRONG[case]
    base = [o for o in SHORT if 'checkpoint' not in case or 'init_cfg' not in o]
    run = fork_tool('train', UPERNET['moto-tokenprop'], '--work-dir', tmp_path / 'work', '--cfg-options', *base,
                    'model.backbone.token_prop.output_scale=64', *options, cwd=tmp_path,
                    env={'ADE20K_ROOT': str(drawn_ade)})
    last = run.stdout.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith('mmtok: ') and sentence in last
    assert 'Traceback' not in run.stdout and 'Iter(train)' not in run.stdout


def test_one_sentence_without_our_runner_too(drawn_ade, fork_tool, tmp_path):
    """A user's own config need not name `runner_type`: the sentence comes from the hook or the first forward."""
    for case in ('decoder without hook', 'hook without decoder', 'whole-number means'):
        options, sentence = WRONG[case]
        run = fork_tool('train', UPERNET['moto-tokenprop'], '--work-dir', tmp_path / 'work', '--cfg-options', *SHORT,
                        'runner_type=Runner', *options, cwd=tmp_path, env={'ADE20K_ROOT': str(drawn_ade)})
        last = run.stdout.strip().splitlines()[-1]
        assert run.returncode == 1 and last.startswith('mmtok: ') and sentence in last
        assert 'Traceback' not in run.stdout and 'Iter(train)' not in run.stdout


def test_missing_data_root_of_a_test():
    cfg = Config.fromfile(UPERNET[''])
    from mmtok.engine.preflight import check_loaders
    from mmtok.errors import ConfigError
    with pytest.raises(ConfigError, match=r"the data root 'data/ade/ADEChallengeData2016' \(test_dataloader"):
        check_loaders(cfg, 'test_dataloader')


@pytest.mark.parametrize('crop, fits', [((512, 512), True), ((8, 512), False), (8, False), ((0.3, 0.7), True),
                                        (None, True)], ids=str)
def test_only_crops_in_pixels_are_measured(crop, fits):
    from mmtok.engine.preflight import check_image_size
    from mmtok.errors import ConfigError
    cfg = dict(train_dataloader=dict(dataset=dict(pipeline=[dict(type='RandomCrop', crop_size=crop)])))
    if fits:
        check_image_size(cfg, 16)
    else:
        with pytest.raises(ConfigError, match='smaller than one token'):
            check_image_size(cfg, 16)


def test_data_root_of_the_environment_reaches_all_loaders(monkeypatch):
    monkeypatch.setenv('ADE20K_ROOT', '/somewhere/else')
    cfg = Config.fromfile(UPERNET[''])
    assert {cfg[f'{name}_dataloader'].dataset.data_root for name in ('train', 'val', 'test')} == {'/somewhere/else'}


def test_every_leaf_config_is_covered():
    elsewhere = ('_base_', 'demo', 'imagenet', 'cifar10')  # test_demo.py, test_classifier_configs.py
    found = {path for path in Path(ROOT / 'configs').glob('*/*.py') if path.parent.name not in elsewhere}
    assert found == {*LEAVES, *DETECTORS}
