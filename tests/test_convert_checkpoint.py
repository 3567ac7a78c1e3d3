"""`tools/convert_checkpoint.py` as a user calls it."""

import re
import subprocess
import sys

import mmdet.models.backbones as mmdet_backbones
import mmseg.models.backbones as mmseg_backbones
import pytest
import timm
import torch
from mmengine.config import ConfigDict
from safetensors.torch import save_file

from conftest import ROOT
from mmtok.backbones import PVT, DeiT, PVTv2, Swin, T2TViT
from mmtok.checkpoint import read_checkpoint
from mmtok.checkpoint.convert import convert, inspect, publish
from mmtok.errors import CheckpointError, StorageError
from peers import authors_swin, load, randomise, relative_error

MOTO = dict(type='mmtok.MoToTokenizer')
VIT = dict(embed_dims=64, depth=2, num_heads=1)
SWIN = dict(embed_dims=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))
PYRAMID = dict(embed_dims=(8, 16, 40, 64), depths=(1, 2, 1, 1), mlp_ratios=(4, 4, 2, 2))
BACKBONES = {
    'DeiT': lambda: DeiT(VIT),
    'DeiT-branch': lambda: DeiT(VIT, tokenizer={**MOTO, 'placement': 'branch', 'num_entities': 4}),
    'T2TViT': lambda: T2TViT(VIT),
    'T2TViT_t': lambda: T2TViT(VIT, tokenizer=dict(type='mmtok.T2TTokenizer', attention='transformer')),
    'T2TViT-moto': lambda: T2TViT(VIT, tokenizer=dict(type='mmtok.T2TTokenizer', moto=dict())),
    'Swin': lambda: Swin(SWIN),
    'Swin-stem': lambda: Swin(SWIN, tokenizer={**MOTO, 'layout_kernel': 3}, token_prop=dict()),
    'PVT': lambda: PVT(dict(depths=(1, 2, 1, 1))),
    'PVTv2': lambda: PVTv2(PYRAMID),
    'PVTv2-token': lambda: PVTv2('b0', tokenizer={**MOTO, 'placement': 'token'}, token_prop=dict()),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_inspect_convert_load_publish_load(name, tmp_path):
    make = BACKBONES[name]
    model = randomise(make())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)

    def equal(path):
        with torch.no_grad():
            return all(torch.equal(a, e) for a, e in zip(load(make(), path)(x), expected, strict=True))
    source = tmp_path / 'epoch_3.pth'
    torch.save({'meta': {'epoch': 3}, 'optimizer': {'state': {0: torch.ones(3)}}, 'ema_state_dict': {},
                'state_dict': {f'backbone.{key}': value for key, value in model.state_dict().items()}}, source)
    text = inspect(str(source))
    kind, trunk = re.match(r'[^-_]+', name)[0], sum(key.startswith('trunk.') for key in model.state_dict())
    assert f'mmtok.{kind}(' in text and re.search(rf'^loads +{trunk} of {trunk} trunk tensors', text, re.M)
    assert 'missing' not in text and 'other shape' not in text and 'starts fresh' not in text
    formats = re.search(r'converts to +(.*)', text)[1].split(', ')
    assert formats == ['mmtok'] or '-' not in name
    for to in formats:
        for suffix in ('.pth', '.safetensors'):
            path = tmp_path / f'{to}{suffix}'
            assert f'with names of {to}, which were those of mmtok' in convert(str(source), path, to)
            if kind == 'Swin' and to in ('timm', 'authors'):  # which have the last norm of four
                with torch.no_grad():
                    assert torch.equal(load(make(), path)(x)[-1], expected[-1])
            else:
                assert equal(path)
    path, said = publish(str(tmp_path / 'mmtok.pth'), tmp_path / 'public.pth')
    assert equal(path) and re.fullmatch(r'public-[0-9a-f]{8}\.pth', path.name)
    path, said = publish(str(source), tmp_path / 'whole.safetensors')
    assert equal(path) and 'optimizer, ema_state_dict' in said
    assert ('of the decoder' in said) == (model.token_prop is not None)
    again = read_checkpoint(str(path))
    assert not any('token_prop' in key for key in again['state_dict'])
    assert again['meta']['trunk'] == kind and again['meta']['epoch'] == 3


def test_the_hash_is_that_of_the_file(tmp_path):
    import hashlib
    torch.save(DeiT('tiny').state_dict(), tmp_path / 'file.pth')
    path, _ = publish(str(tmp_path / 'file.pth'), tmp_path / 'public.pth')
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.split('-')[1])


@pytest.mark.parametrize('kind, name', [(DeiT, 'deit_tiny_patch16_224'), (PVTv2, 'pvt_v2_b0'),
                                        (Swin, 'swin_tiny_patch4_window7_224')])
def test_timm_takes_what_is_converted_to_it(kind, name, tmp_path):
    peer = randomise(timm.create_model(name, num_classes=0))
    torch.save({'model': peer.state_dict()}, tmp_path / 'file.pth')
    convert(str(tmp_path / 'file.pth'), tmp_path / 'mmtok.safetensors', 'mmtok')
    said = convert(str(tmp_path / 'mmtok.safetensors'), tmp_path / 'timm.pth', 'timm')
    again = timm.create_model(name, num_classes=0)
    again.load_state_dict(torch.load(tmp_path / 'timm.pth', weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), peer.state_dict().values(), strict=True))
    assert 'left out' not in said


def tool(*arguments, cwd):
    script = ROOT / 'tools' / 'convert_checkpoint.py'
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], cwd=cwd, text=True, capture_output=True,
                          timeout=300)


def test_as_a_command(tmp_path):
    save_file(timm.create_model('swin_tiny_patch4_window7_224').state_dict(), tmp_path / 'file.safetensors')
    run = tool('inspect', 'file.safetensors', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert re.search(r"trunk +mmtok\.Swin\(arch='tiny', window_size=7\)\n", run.stdout)
    assert re.search(r'starts fresh +norms\.0\.weight', run.stdout)
    assert re.search(r'not used +head\.fc\.bias, head\.fc\.weight', run.stdout)
    run = tool('convert', 'file.safetensors', 'out.pth', '--to', 'mmdet', cwd=tmp_path)
    assert run.returncode == 0 and 'left out: head.fc.bias, head.fc.weight' in run.stdout
    run = tool('convert', 'file.safetensors', 'out.pth', '--to', 'mmdet', cwd=tmp_path)
    assert (run.returncode, run.stderr) == (1, "mmtok: 'out.pth' exists: name another file or move it away\n")
    run = tool('publish', 'out.pth', 'public.pth', cwd=tmp_path)
    assert run.returncode == 0 and len(list(tmp_path.glob('public-????????.pth'))) == 1


@pytest.mark.parametrize('out, to, error, message', [
    ('out.pth', 'mmpretrain', CheckpointError, 'for which --to mmpretrain is no format; choose from mmtok, timm'),
    ('out.pth', 'timm', CheckpointError, 'has a tokenizer that timm does not have'),
    ('out.bin', 'mmtok', StorageError, 'must end in .pth, .pt, .safetensors'),
    ('gone/out.pth', 'mmtok', StorageError, 'does not exist: make it first'),
])
def test_what_cannot_be_converted(out, to, error, message, tmp_path):
    torch.save(PVTv2('b0', tokenizer=MOTO).state_dict(), tmp_path / 'file.pth')
    with pytest.raises(error, match=message):
        convert(str(tmp_path / 'file.pth'), tmp_path / out, to)
    assert [path.name for path in tmp_path.iterdir()] == ['file.pth']


def test_a_file_of_no_trunk(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / 'file.pth')
    text = inspect(str(tmp_path / 'file.pth'))
    assert re.search(r'trunk +none that mmtok has; tensors are called weight, bias', text)
    with pytest.raises(CheckpointError, match='holds no trunk that mmtok has'):
        convert(str(tmp_path / 'file.pth'), tmp_path / 'out.pth', 'timm')


def test_authors_swin_is_not_taken_for_timm_s(tmp_path):
    """Both call most tensors the same, but merge patches in another stage."""
    peer = randomise(timm.create_model('swin_tiny_patch4_window7_224', num_classes=0))
    torch.save({'model': authors_swin(peer.state_dict())}, tmp_path / 'file.pth')
    assert 'which were those of authors' in convert(str(tmp_path / 'file.pth'), tmp_path / 'ours.pth', 'mmtok')
    convert(str(tmp_path / 'ours.pth'), tmp_path / 'timm.pth', 'timm')
    again = torch.load(tmp_path / 'timm.pth', weights_only=True)
    assert again.keys() == peer.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in peer.state_dict().items())
    convert(str(tmp_path / 'file.pth'), tmp_path / 'mmdet.pth', 'mmdet')
    backbone = mmdet_backbones.SwinTransformer()
    backbone.init_cfg = ConfigDict(type='Pretrained', checkpoint=str(tmp_path / 'mmdet.pth'))
    backbone.init_weights()  # as mmdet reads it, names below 'backbone.' alone
    backbone.eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert relative_error(load(Swin('tiny'), tmp_path / 'ours.pth')(x)[-1], backbone(x)[-1]) <= 1e-5


@pytest.mark.parametrize('name, fault', [
    ('deit_tiny_distilled_patch16_224', 'is of a distilled DeiT'),
    ('beit_base_patch16_224', 'no trunk that mmtok has'),
    ('pvt_v2_b2_li', 'no trunk that mmtok has; most alike is mmtok.PVTv2'),
    ('deit3_small_patch16_224', r"most alike is mmtok.DeiT\(.*\), but it has 24 tensors for which"),
    ('vit_small_r26_s32_224', 'no trunk that mmtok has'),
    ('cait_xxs24_224', 'no trunk that mmtok has')])
def test_a_trunk_that_only_sounds_like_ours(name, fault, tmp_path):
    torch.save(timm.create_model(name).state_dict(), tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=fault):
        convert(str(tmp_path / 'file.pth'), tmp_path / 'out.pth', 'mmtok')
    assert not (tmp_path / 'out.pth').exists()
    text = inspect(str(tmp_path / 'file.pth'))
    assert re.search(r'^trunk +none that mmtok has', text, re.M) and 'converts to' not in text
    publish(str(tmp_path / 'file.pth'), tmp_path / 'public.pth')  # all the same


def test_values_that_are_not_finite(tmp_path):
    state = timm.create_model('deit_tiny_patch16_224').half().state_dict()
    state['blocks.3.norm1.bias'][5] = float('nan')
    torch.save(state, tmp_path / 'file.pth')
    text = inspect(str(tmp_path / 'file.pth'))
    assert '(float16)' in text and re.search(r'^not finite +trunk.blocks.3.norm1.bias: init_cfg refuses it', text, re.M)
    for make in (lambda out: convert(str(tmp_path / 'file.pth'), out, 'mmtok'),
                 lambda out: publish(str(tmp_path / 'file.pth'), out)):
        with pytest.raises(CheckpointError, match='not finite in .*blocks.3.norm1.bias: its training failed'):
            make(tmp_path / 'out.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['file.pth']


def test_what_a_conversion_loses_is_said(tmp_path):
    torch.save(Swin(SWIN, token_prop=dict()).state_dict(), tmp_path / 'file.pth')
    said = convert(str(tmp_path / 'file.pth'), tmp_path / 'out.pth', 'timm')
    assert all(f'norms.{i}.weight' in said for i in (0, 1, 2)) and 'token_prop.* (6 tensors)' in said


def test_a_norm_that_is_not_the_last_stage_s_goes_nowhere(tmp_path):
    torch.save(Swin('tiny', out_indices=(1, 2)).state_dict(), tmp_path / 'file.pth')
    said = convert(str(tmp_path / 'file.pth'), tmp_path / 'timm.pth', 'timm')
    assert 'norm.weight' not in torch.load(tmp_path / 'timm.pth', weights_only=True)
    assert 'left out: norms.1.weight, norms.1.bias, norms.2.weight, norms.2.bias' in said


@pytest.mark.parametrize('make', [lambda: DeiT('tiny', img_size=(128, 256)), lambda: PVT('small', img_size=(128, 256)),
                                  lambda: DeiT(dict(embed_dims=200, depth=2, num_heads=5))])
def test_sizes_that_no_tensor_shows(make, tmp_path):
    torch.save(make().state_dict(), tmp_path / 'file.pth')
    text = inspect(str(tmp_path / 'file.pth'))
    assert re.search(r'^trunk +mmtok', text, re.M) and ('num_heads is in no tensor' in text) == ('embed_dims' in text)
    said = convert(str(tmp_path / 'file.pth'), tmp_path / 'out.pth', 'mmtok')
    assert 'left out' not in said
    arch = read_checkpoint(str(tmp_path / 'out.pth'))['meta']['options']['arch']
    assert isinstance(arch, str) or 'num_heads' not in arch
    assert load(make(), tmp_path / 'out.pth') is not None


def test_averages_of_mmcv_1_are_stripped(tmp_path):
    state = {f'backbone.{name}': tensor for name, tensor in DeiT('tiny').state_dict().items()}
    twins = {f'ema_{name.replace(".", "_")}': tensor for name, tensor in state.items()}
    torch.save({'state_dict': {**state, **twins}}, tmp_path / 'file.pth')
    path, said = publish(str(tmp_path / 'file.pth'), tmp_path / 'public.pth')
    assert read_checkpoint(str(path))['state_dict'].keys() == state.keys()
    assert f'{len(twins)} tensors of averages' in said


def test_metadata_keep_their_kinds(tmp_path):
    meta = {'epoch': 3, 'dataset_meta': {'classes': ('a', 'b'), 'palette': [[1, 2, 3]]}}
    torch.save({'state_dict': DeiT('tiny').state_dict(), 'meta': meta}, tmp_path / 'file.pth')
    path, _ = publish(str(tmp_path / 'file.pth'), tmp_path / 'public.safetensors')
    path, _ = publish(str(path), tmp_path / 'again.pth')
    again = read_checkpoint(str(path))['meta']
    assert again['epoch'] == 3 and again['dataset_meta'] == {'classes': ['a', 'b'], 'palette': [[1, 2, 3]]}


def test_names_that_only_look_like_ours(tmp_path):
    state = {'layers.encoder_layer_0.ln_1.weight': torch.ones(8), 'cls_token': torch.ones(1, 1, 8),
             'pos_embed': torch.ones(8), 'blocks.0.attn.qkv.weight': torch.ones(24, 8),
             'blocks.0.attn.qkv.bias': torch.ones(24), 'tokenizer.moto.beta': torch.ones(3)}
    torch.save(state, tmp_path / 'file.pth')
    assert re.search(r'^trunk +none that mmtok has', inspect(str(tmp_path / 'file.pth')), re.M)


def test_mmseg_takes_what_is_converted_to_it_as_the_tool_says(tmp_path):
    ours = randomise(DeiT('tiny', out_indices=(2, 5, 8, 11)))
    torch.save(ours.state_dict(), tmp_path / 'file.pth')
    said = convert(str(tmp_path / 'file.pth'), tmp_path / 'mmseg.pth', 'mmseg')
    assert said.endswith('; build VisionTransformer with patch_bias=True and norm_cfg=dict(type="LN", eps=1e-6)')
    peer = mmseg_backbones.VisionTransformer(img_size=224, embed_dims=192, num_heads=3, out_indices=(2, 5, 8, 11),
                                             patch_bias=True, norm_cfg=dict(type='LN', eps=1e-6))
    peer.load_state_dict(torch.load(tmp_path / 'mmseg.pth', weights_only=True)['state_dict'])
    peer.eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert all(relative_error(a, e) <= 1e-5 for a, e in zip(ours(x), peer(x), strict=True))
