"""`mmtok.PVT`: its pyramid against mmdet's, its classifier against the authors' forward in float64."""

import re
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones.pvt import PyramidVisionTransformer

from mmtok.backbones import PVT
from mmtok.errors import ConfigError
from peers import randomise, relative_error

SHALLOW = dict(depths=(1, 2, 1, 2))


def mmdet_names(ours):
    return {key.replace('tokenizer.proj.', 'layers.0.0.projection.').removeprefix('trunk.'): value
            for key, value in ours.state_dict().items()}


@pytest.mark.parametrize('size', [(64, 64), (224, 224), (320, 448), (100, 164), (256, 308)], ids=str)
def test_pyramid_equals_mmdet(size):
    ours = randomise(PVT(SHALLOW, drop_path_rate=0.0))
    peer = PyramidVisionTransformer(num_layers=[1, 2, 1, 2], drop_path_rate=0.0).eval()
    peer.load_state_dict(mmdet_names(ours))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        for a, e in zip(ours(x), peer(x), strict=True):
            assert a.shape == e.shape and relative_error(a, e) <= 1e-5


def test_gradients_equal_mmdet():
    ours = randomise(PVT(SHALLOW, drop_path_rate=0.0))
    peer = PyramidVisionTransformer(num_layers=[1, 2, 1, 2], drop_path_rate=0.0)
    peer.load_state_dict(mmdet_names(ours))
    x = torch.randn(1, 3, 96, 128)
    for outs in (ours(x), peer(x)):
        sum(out.square().mean() for out in outs).backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        name = name.replace('tokenizer.proj.', 'layers.0.0.projection.').removeprefix('trunk.')
        assert relative_error(parameter.grad, theirs[name].grad) <= 1e-4, name


def authors_classifier64(state, x, depths):
    """The authors' `forward_features` in float64, from our state dict, at the size of the position embeddings."""
    state = {key: value.double() for key, value in state.items()}
    x = x.double()

    def norm(t, name, eps):
        return F.layer_norm(t, t.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], eps)

    def linear(t, name):
        weight = state[f'{name}.weight']
        return F.linear(t, weight.flatten(1), state[f'{name}.bias'])
    for i, (depth, heads, ratio) in enumerate(zip(depths, (1, 2, 5, 8), (8, 4, 2, 1), strict=True)):
        patch = 'tokenizer.proj' if i == 0 else f'trunk.layers.{i}.0.projection'
        x = F.conv2d(x, state[f'{patch}.weight'], state[f'{patch}.bias'], stride=4 if i == 0 else 2)
        batch, channels, rows, columns = x.shape
        x = norm(x.flatten(2).transpose(1, 2), f'trunk.layers.{i}.0.norm', 1e-5)
        if i == 3:
            x = torch.cat([state['trunk.cls_token'].expand(batch, -1, -1), x], 1)
        x = x + state[f'trunk.layers.{i}.1.0.pos_embed']
        for j in range(1, depth + 1):
            block = f'trunk.layers.{i}.1.{j}'
            t = source = norm(x, f'{block}.norm1', 1e-6)
            if ratio > 1:
                grid = t.transpose(1, 2).reshape(batch, channels, rows, columns)
                grid = F.conv2d(grid, state[f'{block}.attn.sr.weight'], state[f'{block}.attn.sr.bias'], stride=ratio)
                source = norm(grid.flatten(2).transpose(1, 2), f'{block}.attn.norm', 1e-5)
            weights = state[f'{block}.attn.attn.in_proj_weight'].chunk(3)
            biases = state[f'{block}.attn.attn.in_proj_bias'].chunk(3)
            q, k, v = (F.linear(s, w, b).unflatten(-1, (heads, -1)).transpose(1, 2)
                       for s, w, b in zip((t, source, source), weights, biases, strict=True))
            attention = (q @ k.transpose(-2, -1) * (channels // heads)**-0.5).softmax(dim=-1)
            x = x + linear((attention @ v).transpose(1, 2).flatten(2), f'{block}.attn.attn.out_proj')
            t = F.gelu(linear(norm(x, f'{block}.norm2', 1e-6), f'{block}.ffn.layers.0'))
            x = x + linear(t, f'{block}.ffn.layers.3')
        if i < 3:
            x = x.transpose(1, 2).reshape(batch, channels, rows, columns)
    return norm(x, 'trunk.norm', 1e-6)[:, 0]


@pytest.mark.parametrize('side', [64, 224])
def test_classifier_equals_the_authors_forward_in_float64(side):
    ours = randomise(PVT(SHALLOW, img_size=side, classifier=True))
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        out, = ours(x)
        expected = authors_classifier64(ours.state_dict(), x, SHALLOW['depths'])
    assert out.shape == (2, 512) and relative_error(out.double(), expected) <= 1e-5


def test_a_remainder_is_padded():
    """mmdet drops it: 309 columns give 77 tokens there, 78 here."""
    ours = randomise(PVT(SHALLOW, drop_path_rate=0.0))
    x = torch.randn(1, 3, 256, 309)
    with torch.no_grad():
        for a, e in zip(ours(x), ours(F.pad(x, (0, 3))), strict=True):
            assert torch.equal(a, e)
    assert ours(x)[0].shape[-1] == 78


def load(tmp_path, state, **options):
    torch.save(state, tmp_path / 'file.pth')
    model = PVT(SHALLOW, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth')), **options)
    model.init_weights()
    return model.eval()


def authors_names(ours):
    """A classifier's state dict as the authors name it."""
    state = {}
    for key, value in ours.state_dict().items():
        key = key.replace('tokenizer.proj.', 'patch_embed1.proj.').removeprefix('trunk.')
        key = re.sub(r'^layers\.(\d)\.0\.', lambda m: f'patch_embed{int(m[1]) + 1}.', key)
        key = re.sub(r'^layers\.(\d)\.1\.0\.pos_embed', lambda m: f'pos_embed{int(m[1]) + 1}', key)
        key = re.sub(r'^layers\.(\d)\.1\.(\d+)\.', lambda m: f'block{int(m[1]) + 1}.{int(m[2]) - 1}.', key)
        key = key.replace('.projection.', '.proj.').replace('attn.attn.out_proj', 'attn.proj')
        key = key.replace('ffn.layers.0.', 'mlp.fc1.').replace('ffn.layers.3.', 'mlp.fc2.')
        value = value.flatten(1) if '.mlp.' in key and value.dim() == 4 else value
        if 'attn.attn.in_proj_' in key:
            width = len(value) // 3
            state[key.replace('attn.in_proj_', 'q.')], state[key.replace('attn.in_proj_', 'kv.')] = value.split(
                [width, 2 * width])
        else:
            state[key] = value
    return state


@pytest.mark.parametrize('form', ['ours', 'authors'])
@pytest.mark.parametrize('side', [224, 320])
@pytest.mark.parametrize('classifier', [True, False])
def test_a_classifier_s_file_gives_the_same_pyramid_and_classifier(tmp_path, form, side, classifier):
    """Also where the positions belong to another image size."""
    source = randomise(PVT(SHALLOW, classifier=True))
    state = source.state_dict() if form == 'ours' else {**authors_names(source), 'head.weight': torch.zeros(9, 512)}
    loaded = load(tmp_path, state, img_size=side, classifier=classifier)
    x = torch.randn(1, 3, side, side)
    third = []
    source.trunk.layers[3][0].register_forward_pre_hook(lambda module, args: third.append(args[0]))
    with torch.no_grad():
        expected, actual = source(x), loaded(x)
    if classifier:
        assert relative_error(actual[0], expected[0]) <= 1e-5
    else:  # the classifier's norms have another epsilon
        assert relative_error(actual[2], third[0]) < 1e-3
        stage4 = loaded.trunk.layers[3][1][0].pos_embed
        if side == 224:
            assert torch.equal(stage4, source.trunk.layers[3][1][0].pos_embed[:, 1:])
        assert stage4.shape[1] == (side // 32)**2


def test_a_pyramid_s_file_starts_a_classifier(tmp_path):
    source = randomise(PVT(SHALLOW))
    loaded = load(tmp_path, source.state_dict(), classifier=True)
    assert torch.equal(loaded.trunk.layers[3][1][0].pos_embed[:, 1:], source.trunk.layers[3][1][0].pos_embed)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_mmdet_s_file_loads_with_its_patch_embedding(tmp_path, prefix):
    peer = randomise(PyramidVisionTransformer(num_layers=[1, 2, 1, 2], drop_path_rate=0.0))
    loaded = load(tmp_path, {f'{prefix}{key}': value for key, value in peer.state_dict().items()}, drop_path_rate=0.0)
    x = torch.randn(1, 3, 64, 64)
    peer.eval()
    with torch.no_grad():
        assert all(relative_error(a, e) <= 1e-5 for a, e in zip(loaded(x), peer(x), strict=True))


def test_without_mmdet_it_names_the_extra(tmp_path):
    (tmp_path / 'mmdet.py').write_text("raise ImportError('no mmdet here')")
    script = textwrap.dedent("""
        import mmtok.backbones as backbones
        backbones.PVTv2('b0')
        backbones.PVT()
    """)
    run = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, text=True, capture_output=True,
                         env={'PYTHONPATH': str(tmp_path), 'PATH': ''})
    assert run.returncode == 1
    assert "install it with pip install '.[openmmlab]' or '.[onedl]' in mmtok's folder" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize('options, message', [
    (dict(arch='large'), "arch='large' is unknown; choose from 'small', 'medium'"),
    (dict(img_size=16), r'img_size=16 must be a side or a pair \(height, width\) of whole pixels, at least 32'),
    (dict(img_size='224'), "img_size='224' must be a side"),
    (dict(img_size=224.0), 'img_size=224.0 must be a side'),
    (dict(arch=dict(depths=2)), r'arch.depths=2 must be a list of 4 numbers, one for each stage'),
    (dict(arch=dict(depths=(1, 1, 1))), r'arch.depths=\(1, 1, 1\) must be a list of 4 numbers'),
    (dict(arch=dict(depths=(1, 1, 0, 1))), r'arch.depths\[2\]=0 must be a whole number'),
    (dict(arch=None), "arch=None is unknown; choose from 'small', 'medium', or give a dict with depths"),
    (dict(out_indices=(4,)), 'must name stages of a trunk with 4 stages'),
    (dict(frozen_stages=5), 'frozen_stages=5 is unknown'),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        PVT(**options)
