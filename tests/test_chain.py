"""From a classifier's training to a segmentor: the same tokenizer and trunk, without a conversion."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS

from conftest import ROOT, logged_steps

TINY = ROOT / 'tests' / 'configs' / 'classifier_tiny.py'
MOTO = "tokenizer=dict(type='mmtok.MoToTokenizer'), token_prop=dict(output_scale=32), mask_padding=False"
BACKBONES = {
    'DeiT': "type='mmtok.DeiT', arch=dict(embed_dims=64, depth=4, num_heads=2), patch_size=8, img_size=64",
    'Swin': "type='mmtok.Swin', arch=dict(embed_dims=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)), window_size=4, "
            "window_rule='classification'",
    'PVTv2': "type='mmtok.PVTv2', arch=dict(embed_dims=(16, 32, 80, 128), depths=(1, 1, 1, 1), "
             "mlp_ratios=(4, 4, 4, 4))",
}
HEADS = {'DeiT': [64] * 4, 'Swin': [24, 48, 96, 192], 'PVTv2': [16, 32, 80, 128]}


@pytest.fixture(scope='module')
def drawn(draw_folder):
    return draw_folder(train=12, val=3, side=64)


def segmentor(backbone: str, checkpoint) -> dict:
    """UperNet on the same backbone, as its own config would write it."""
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / 'upernet.py')
    norm = dict(type='BN', requires_grad=True)
    options = eval(f'dict({BACKBONES[backbone]}, {MOTO})')
    if backbone == 'DeiT':
        options['out_indices'] = (0, 1, 2, 3)
    options['init_cfg'] = dict(type='Pretrained', checkpoint=str(checkpoint))
    model = cfg.model
    del model['data_preprocessor']
    model.backbone = options
    model.decode_head.update(in_channels=HEADS[backbone], channels=16, num_classes=4, norm_cfg=norm)
    model.auxiliary_head.update(in_channels=HEADS[backbone][2], in_index=2, channels=16, num_classes=4, norm_cfg=norm)
    return model


def seen(backbone, x):
    """What comes out of the tokenizer and of the last block."""
    found = []
    for part in (backbone.tokenizer, backbone.stages()[-1].blocks[-1]):
        part.register_forward_hook(lambda *args: found.append(args[-1]))
    with torch.no_grad():
        backbone(x)
    return found


@pytest.mark.parametrize('data', ['drawn', pytest.param('cifar10', marks=pytest.mark.slow)])
@pytest.mark.parametrize('backbone', BACKBONES)
def test_a_segmentor_starts_from_a_classifier(backbone, data, request, fork_tool, tmp_path, log):
    config = tmp_path / 'classifier.py'
    batch, classes = (8, 4) if data == 'drawn' else (64, 10)  # 390 iterations of CIFAR-10
    config.write_text(f"""_base_ = {str(TINY)!r}
model = dict(num_classes={classes}, backbone=dict(_delete_=True, {BACKBONES[backbone]}, {MOTO}))
train_dataloader = dict(batch_size={batch}, dataset=dict(transform=dict(input_size=64)))
val_dataloader = dict(batch_size=15, dataset=dict(transform=dict(input_size=64)))
train_cfg = dict(max_epochs=1)
""")
    run = fork_tool(ROOT / 'tools' / 'train_classifier.py', config, '--work-dir', tmp_path / 'work', cwd=tmp_path,
                     env=dict(CIFAR10_ROOT=str(request.getfixturevalue(data))))
    assert run.returncode == 0, run.stdout[-3000:]
    steps = logged_steps(tmp_path / 'work')
    assert max(steps) == (6 if data == 'drawn' else 390) and all('loss_tokenprop' in line for line in steps.values())
    checkpoint = tmp_path / 'work' / 'epoch_1.pth'

    model = MODELS.build(segmentor(backbone, checkpoint))
    model.init_weights()
    text = next(text for _, text in log if text.startswith('Loaded '))
    loaded, trunk = re.search(r'(\d+) of (\d+) trunk tensors, 0 resized, 0 missing', text).groups()
    assert loaded == trunk and int(trunk) > 30
    held, tokenizer = re.search(r'; (\d+) of (\d+) tokenizer tensors; ', text).groups()
    assert held == tokenizer and int(tokenizer) > 5
    assert 'tokenizer' not in text.split('as initialised beside the trunk: ')[1]
    assert not [line for level, line in log if level == 'WARNING' and 'tokenizer' in line]

    classifier = MODELS.build(Config.fromfile(config).model)
    load_checkpoint(classifier, str(checkpoint), map_location='cpu')
    x = torch.randn(2, 3, 64, 64)
    for part in (model, classifier):
        part.eval()
    for ours, theirs in zip(seen(model.backbone, x), seen(classifier.backbone, x), strict=True):
        assert torch.equal(ours, theirs)
    if backbone != 'DeiT':  # the classifier takes the mean of the last map
        with torch.no_grad():
            assert torch.equal(model.backbone(x)[-1].mean((2, 3)), classifier.backbone(x)[0])
