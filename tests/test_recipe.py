"""The recipe of an ImageNet training, number by number against timm's."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from conftest import ROOT
from mmtok.classification import ImageClassifier, ImagePreprocessor
from mmtok.classification.evaluation import EMAHook
from mmtok.classification.metrics import Accuracy
from mmtok.errors import ConfigError, DataError

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def batch(size=8, classes=10):
    return (torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8), torch.randint(classes, (size, )))


def groups(lrs=(1e-3, 5e-4)):
    return torch.optim.SGD([dict(params=[nn.Parameter(torch.ones(1))], lr=lr) for lr in lrs], lr=0.1)


@pytest.mark.parametrize('recipe', ['deit', 't2t', 'swin'])
def test_the_learning_rate_of_each_step_is_timms(recipe):
    """Of the configs, against the authors' arguments."""
    name = dict(deit='deit-s_8xb128-300e', t2t='t2t-vit-14_8xb64-310e', swin='swin-t_8xb128-300e')[recipe]
    ours = dict(Config.fromfile(ROOT / 'configs' / 'imagenet' / f'{name}_in1k.py').param_scheduler)
    per_epoch, epochs = 7, 300
    theirs = dict(num_epochs=epochs, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    if recipe == 't2t':
        theirs['warmup_epochs'] = 10
    if recipe == 'swin':
        theirs.update(num_epochs=280, warmup_epochs=20, warmup_prefix=True, step_on_epochs=False,
                      updates_per_epoch=per_epoch)
    mine, other = groups(), groups()
    scheduler = PARAM_SCHEDULERS.build({**ours, 'optimizer': mine, 'epoch_length': per_epoch} if recipe == 'swin'
                                       else {**ours, 'optimizer': mine})
    peer, _ = create_scheduler_v2(other, 'cosine', **theirs)
    for step in range(310 * (per_epoch if recipe == 'swin' else 1)):
        assert [g['lr'] for g in mine.param_groups] == pytest.approx([g['lr'] for g in other.param_groups], rel=1e-12)
        mine.step()
        scheduler.step()
        peer.step_update(step + 1) if recipe == 'swin' else peer.step(step + 1)
    assert mine.param_groups[0]['lr'] == 1e-5


def test_a_resumed_schedule_goes_on():
    optimizer = groups()
    scheduler = PARAM_SCHEDULERS.build(dict(type='mmtok.CosineLR', optimizer=optimizer, epochs=20, warmup=3))
    for _ in range(8):
        optimizer.step()
        scheduler.step()
    again = groups()
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed = PARAM_SCHEDULERS.build(dict(type='mmtok.CosineLR', optimizer=again, epochs=20, warmup=3))
    resumed.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    for one, other in ((optimizer, scheduler), (again, resumed)):
        one.step()
        other.step()
    assert [g['lr'] for g in again.param_groups] == [g['lr'] for g in optimizer.param_groups]


@pytest.mark.parametrize('options', [
    dict(mixup_alpha=0.8, cutmix_alpha=1.0), dict(mixup_alpha=0.8), dict(mixup_alpha=0.0, cutmix_alpha=1.0),
    dict(mixup_alpha=0.8, cutmix_alpha=1.0, mode='elem', prob=0.5), dict(cutmix_minmax=(0.2, 0.8), mode='pair')])
def test_mixed_images_and_labels_are_timms(options):
    images, labels = batch()
    preprocessor = ImagePreprocessor(erase=dict(probability=0.9, mode='const'), mixup=options, num_classes=10,
                                     label_smoothing=0.1)
    import random
    for seed in range(6):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        ours = preprocessor((images, labels), training=True)
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        x = (images.float() - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
        x = RandomErasing(probability=0.9, mode='const', device='cpu')(x)
        x, targets = Mixup(label_smoothing=0.1, num_classes=10, **options)(x, labels)
        assert torch.equal(ours['inputs'], x) and torch.equal(ours['labels'], targets)


def test_evaluated_images_are_normalised_only():
    images, labels = batch(7)
    found = ImagePreprocessor(erase=dict(probability=1.0), mixup=dict(), num_classes=10)((images, labels))
    assert torch.equal(found['labels'], labels)
    assert torch.allclose(found['inputs'] * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1),
                          images.float(), atol=1e-4)


def test_an_odd_batch_to_mix():
    with pytest.raises(ConfigError, match='Mixup pairs .* has 7: set train_dataloader.batch_size'):
        ImagePreprocessor(mixup=dict())(batch(7), training=True)


@pytest.mark.parametrize('options, sentence', [
    (dict(erase=dict(prob=1)), 'model.data_preprocessor.erase has no option prob; it takes probability'),
    (dict(mixup=dict(alpha=1)), 'model.data_preprocessor.mixup has no option alpha; it takes mixup_alpha'),
    (dict(mixup=dict(mixup_alpha=0)), 'mixes nothing')])
def test_options_that_timm_does_not_have(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ImagePreprocessor(**options)


def small(**options):
    backbone = dict(type='mmtok.DeiT', arch=dict(embed_dims=32, depth=2, num_heads=2), img_size=32, patch_size=8)
    return ImageClassifier(backbone, 10, **options)


def test_losses_are_timms():
    model = small(label_smoothing=0.1)
    model.init_weights()
    x, labels = torch.randn(6, 3, 32, 32), torch.randint(10, (6, ))
    scores = model(x)
    assert torch.allclose(model(x, labels, mode='loss')['loss_cls'], LabelSmoothingCrossEntropy(0.1)(scores, labels))
    shares = torch.rand(6, 10).softmax(1)
    assert torch.allclose(model(x, shares, mode='loss')['loss_cls'], SoftTargetCrossEntropy()(scores, shares))


@pytest.mark.parametrize('accumulated', [1, 4])
def test_averages_are_timms_after_ten_steps(accumulated):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    hook, theirs = EMAHook(momentum=1 - 0.9, update_buffers=True), ModelEmaV3(model, decay=0.9)

    runner = SimpleNamespace(iter=0, epoch=0, model=model)
    runner.optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=accumulated)
    hook.before_run(runner)
    for step in range(1, 10 * accumulated + 1):
        runner.optim_wrapper.update_params(model(torch.randn(8, 4)).square().sum())
        hook.after_train_iter(runner, step)
        if step % accumulated == 0:
            theirs.update(model, step=step // accumulated)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():  # a count of batches is no average
            assert torch.allclose(hook.ema_model.module.state_dict()[name], value, rtol=1e-6), name


@pytest.mark.parametrize('name, peer', [('deit-s', 'deit_small_patch16_224'),
                                        ('swin-t', 'swin_tiny_patch4_window7_224'), ('pvtv2-b2', 'pvt_v2_b2')])
def test_weight_decay_groups_are_timms(name, peer):
    cfg = Config.fromfile(ROOT / f'configs/imagenet/{name}_8xb128-300e_in1k.py')
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    theirs = create_optimizer_v2(create_model(peer), 'adamw', lr=1e-3, weight_decay=0.05)

    def decayed(optimizer):
        return sorted(tuple(p.shape) for g in optimizer.param_groups if g['weight_decay'] for p in g['params'])
    assert decayed(optimizer) == decayed(theirs)
    assert sorted(g['weight_decay'] for g in optimizer.param_groups) == [0.0, 0.05]  # two groups, not one for each


def test_merged_groups_step_as_those_of_each_parameter():
    cfg = Config.fromfile(ROOT / 'configs/imagenet/swin-t_8xb128-300e_in1k.py').optim_wrapper
    cfg.paramwise_cfg.custom_keys['0'] = dict(lr_mult=0.1)
    found = []
    for constructor in ('mmtok.OptimWrapperConstructor', 'DefaultOptimWrapperConstructor'):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        wrapper = build_optim_wrapper(model, ConfigDict(cfg, constructor=constructor))
        for _ in range(3):
            wrapper.update_params(model(torch.ones(5, 3)).square().sum())
        found.append((len(wrapper.optimizer.param_groups), model.state_dict()))
    (merged, ours), (each, theirs) = found
    assert (merged, each) == (3, 6)
    for name, weight in theirs.items():  # the gradients' norm is summed in another order
        assert torch.allclose(ours[name], weight, rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize('optimizer', [dict(type='AdamW', lr=0.1), dict(type='SGD', lr=0.1, momentum=0.9)])
def test_parameters_are_stepped_together_to_the_same_bits(optimizer):
    """Also on the CPU, and the config, which is part of what a training is told by, stays as it was."""
    found = []
    for options in ({}, dict(foreach=False)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        cfg = ConfigDict(type='OptimWrapper', constructor='mmtok.OptimWrapperConstructor',
                         optimizer={**optimizer, **options})
        wrapper = build_optim_wrapper(model, cfg)
        assert cfg.optimizer == {**optimizer, **options}
        for _ in range(5):
            wrapper.update_params(model(torch.ones(5, 3)).square().sum())
        found.append((wrapper.optimizer.param_groups[0]['foreach'], model.state_dict()))
    (together, ours), (each, theirs) = found
    assert (together, each) == (True, False)
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_shared_parameters_are_not_stepped_twice():
    one, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    other.weight = one.weight
    cfg = ConfigDict(type='OptimWrapper', constructor='mmtok.OptimWrapperConstructor',
                     optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(flat_decay_mult=0.0))
    with pytest.raises(ConfigError, match='set optim_wrapper.paramwise_cfg.bypass_duplicate=True'):
        build_optim_wrapper(torch.nn.Sequential(one, other), cfg.copy())
    cfg.paramwise_cfg.bypass_duplicate = True
    groups = build_optim_wrapper(torch.nn.Sequential(one, other), cfg).optimizer.param_groups
    assert sum(len(group['params']) for group in groups) == 3


def test_the_positions_of_pvt_decay_as_its_authors():
    cfg = Config.fromfile(ROOT / 'configs/imagenet/pvt-s_8xb128-300e_in1k.py')
    model = MODELS.build(cfg.model)
    decay = {id(p): g['weight_decay'] for g in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
             for p in g['params']}
    found = {name.split('.')[-1]: decay[id(p)] for name, p in model.named_parameters()}
    assert found['pos_embed'] == 0.05 and found['cls_token'] == found['bias'] == 0.0


# Learning rate, decay, drop path, gradient norm, decay of averages, repeats, warm-up, batch of all processes, crop to
# evaluate, interpolation, epochs: arguments of the authors' scripts, or their defaults
AUTHORS = {
    'deit-s': (1e-3, 0.05, 0.1, None, 0.99996, 3, 5, 1024, 0.875, 'bicubic', 300),
    'deit-b': (1e-3, 0.05, 0.1, None, 0.99996, 3, 5, 1024, 0.875, 'bicubic', 300),
    't2t-vit-14': (5e-4, 0.05, 0.1, None, 0.99996, 1, 10, 512, 0.9, 'random', 310),
    't2t-vit-19': (5e-4, 0.065, 0.1, None, 0.99996, 1, 10, 512, 0.9, 'random', 310),
    'pvt-s': (1e-3, 0.05, 0.1, None, None, 3, 5, 1024, 0.875, 'bicubic', 300),
    'pvt-m': (1e-3, 0.05, 0.3, 1.0, None, 3, 5, 1024, 0.875, 'bicubic', 300),
    'pvtv2-b1': (1e-3, 0.05, 0.1, None, None, 3, 5, 1024, 0.875, 'bicubic', 300),
    'pvtv2-b2': (1e-3, 0.05, 0.1, None, None, 3, 5, 1024, 0.875, 'bicubic', 300),
    'swin-t': (1e-3, 0.05, 0.2, 5.0, None, 1, 20, 1024, 0.875, 'bicubic', 300),
    'swin-s': (1e-3, 0.05, 0.3, 5.0, None, 1, 20, 1024, 0.875, 'bicubic', 300)}


def recipe_of(cfg) -> tuple:
    optimizer, data = cfg.optim_wrapper.optimizer, cfg.train_dataloader
    averages = cfg.default_hooks.get('ema')
    return (optimizer.lr, optimizer.weight_decay, cfg.model.backbone.drop_path_rate,
            (cfg.optim_wrapper.get('clip_grad') or {}).get('max_norm'),
            averages and round(1 - averages.momentum, 8), data.sampler.get('num_repeats', 1),
            cfg.param_scheduler.warmup, cfg.auto_scale_lr.base_batch_size,
            cfg.val_dataloader.dataset.transform.crop_pct, data.dataset.transform.interpolation,
            cfg.train_cfg.max_epochs)


@pytest.mark.parametrize('trunk', AUTHORS)
@pytest.mark.parametrize('variant', ['', '_moto', '_tokenprop', '_moto-tokenprop'])
def test_the_recipe_is_that_of_the_authors(trunk, variant):
    path, = (ROOT / 'configs' / 'imagenet').glob(f'{trunk}{variant}_8xb*-3[01]0e_in1k.py')
    cfg = Config.fromfile(path)
    assert recipe_of(cfg) == AUTHORS[trunk]
    assert cfg.optim_wrapper.optimizer.type == 'AdamW' and cfg.param_scheduler.warmup_lr == 1e-6
    assert cfg.param_scheduler.min_lr == 1e-5 and cfg.param_scheduler.epochs == 300
    assert cfg.param_scheduler.get('warmup_prefix', False) == trunk.startswith('swin')


def test_the_recipes_beside_them():
    """SGD, linear probes and parts of the images."""
    def load(name):
        return Config.fromfile(ROOT / 'configs' / 'imagenet' / f'deit-{name}_in1k.py')
    for variant in ('', '_tokenprop', '_frozen'):
        cfg = load(f's{variant}_sgd_8xb128-300e')
        assert recipe_of(cfg) == (1.0, 1e-4, *AUTHORS['deit-s'][2:]) and cfg.param_scheduler.min_lr == 1e-3
        assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=1.0, momentum=0.9, weight_decay=1e-4)
    for name in ('s', 's_frozen', 'b'):  # MoCo v3's main_lincls.py: 3 for 256 images, and no decay
        cfg = load(f'{name}_linear_8xb128-90e')
        assert recipe_of(cfg) == (12.0, 0.0, 0.0, None, None, 1, 0, 1024, 0.875, 'bicubic', 90)
        assert cfg.param_scheduler.epochs == 90 and cfg.param_scheduler.min_lr == 0 and not cfg.model.label_smoothing
        assert cfg.model.backbone.frozen_stages == 12 and cfg.model.data_preprocessor.mixup is None


@pytest.mark.parametrize('percent', [50, 40, 20, 10])
@pytest.mark.parametrize('variant', ['', '_moto-tokenprop'])
def test_averages_of_fewer_images_span_the_same_share_of_a_training(variant, percent):
    whole, part = (Config.fromfile(ROOT / 'configs' / 'imagenet' / f'deit-s{variant}_8xb128-{rest}.py')
                   for rest in ('300e_in1k', f'100e_in1k-{percent}pct'))
    steps = 100 * percent / 100 / 300
    assert part.default_hooks.ema.momentum * steps == pytest.approx(whole.default_hooks.ema.momentum)
    assert recipe_of(part)[:4] == recipe_of(whole)[:4] and part.param_scheduler.epochs == 100
    assert part.train_dataloader.dataset.fraction == percent / 100


def test_the_head_of_a_pretrained_model_is_loaded(tmp_path):
    model = small()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    again = small(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth')))
    again.init_weights()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_accuracy_counts():
    metric = Accuracy(topk=(1, 2))
    scores = torch.tensor([[3., 1, 2], [1., 3, 2], [1., 2, 3], [2., 2, 2]])
    metric.process(None, [dict(scores=s, label=label) for s, label in zip(scores, (0, 2, 0, 1), strict=True)])
    assert metric.evaluate(4) == {'accuracy/top1': 25.0, 'accuracy/top2': 75.0}


@pytest.mark.parametrize('scores', [3 * [float('nan')], [1., float('nan'), 2.]])
def test_a_diverged_model_knows_nothing(scores):
    metric = Accuracy(topk=1)
    metric.process(None, [dict(scores=torch.tensor(scores), label=2)])
    assert metric.evaluate(1) == {'accuracy/top1': 0.0}


def test_an_evaluation_without_all_images():
    metric = Accuracy()
    metric.process(None, [dict(scores=torch.ones(3), label=0)])
    with pytest.raises(DataError, match='1 of 2 images were evaluated'):
        metric.evaluate(2)


def test_a_label_beyond_the_classes():
    with pytest.raises(ConfigError, match='an image has the label 9, but with model.num_classes=5 the labels end at 4'):
        ImagePreprocessor(num_classes=5)((torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([9])))


def test_the_recipe_of_deit_is_its_authors():
    """DeiT's main.py, by its defaults."""
    cfg = Config.fromfile(ROOT / 'configs/imagenet/deit-s_8xb128-300e_in1k.py')
    assert cfg.train_dataloader.dataset.transform == dict(
        input_size=224, is_training=True, auto_augment='rand-m9-mstd0.5-inc1', interpolation='bicubic')  # so no jitter
    assert cfg.model.data_preprocessor.mixup == dict(mixup_alpha=0.8, cutmix_alpha=1.0)
    assert cfg.model.data_preprocessor.erase == dict(probability=0.25, mode='pixel')
    assert cfg.model.label_smoothing == 0.1 and cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.train_dataloader.sampler.num_repeats == 3 and cfg.optim_wrapper.get('clip_grad') is None
    assert cfg.default_hooks.ema.momentum == pytest.approx(1 - 0.99996)
    assert cfg.val_dataloader.dataset.transform.get('crop_pct', 0.875) == 0.875
