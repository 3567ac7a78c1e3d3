"""`mmtok.PVTv2` against timm's and mmdet's on the same weights."""


import pytest
import timm
import torch
from mmdet.models.backbones.pvt import PyramidVisionTransformerV2, pvt_convert

from mmtok.backbones import PVTv2
from mmtok.backbones.pvt_v2 import ARCHS
from mmtok.errors import ConfigError
from peers import authors_pvt_v2, randomise, relative_error, timm_names

SIZES = [(64, 64), (224, 224), (320, 448), (97, 161), (256, 309)]


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_equals_timm_and_mmdet(size):
    ours = randomise(PVTv2('b0', drop_path_rate=0.0))
    peer = timm.create_model('pvt_v2_b0', num_classes=0).eval()
    peer.load_state_dict(timm_names(ours))
    other = PyramidVisionTransformerV2(embed_dims=32, num_layers=[2, 2, 2, 2], drop_path_rate=0.0).eval()
    other.load_state_dict(pvt_convert(authors_pvt_v2(timm_names(ours))))
    as_mmdet = PVTv2('b0', norm_eps=1e-6).eval()
    as_mmdet.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = peer.forward_intermediates(x, intermediates_only=True)
        for a, e, b, m in zip(ours(x), expected, as_mmdet(x), other(x), strict=True):
            assert a.shape == e.shape == m.shape
            assert relative_error(a, e) <= 1e-5 and relative_error(b, m) <= 1e-5


@pytest.mark.parametrize('arch', ARCHS)
def test_classifier_has_timm_s_parameters_and_output(arch):
    ours = randomise(PVTv2(arch, classifier=True))
    peer = timm.create_model(f'pvt_v2_{arch}', num_classes=0).eval()
    peer.load_state_dict(timm_names(ours))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        out, = ours(x)
        assert relative_error(out, peer(x)) <= 1e-5
    assert out.shape == (1, ours.out_channels[0])


def test_gradients_equal_timm():
    ours = randomise(PVTv2('b0', drop_path_rate=0.0))
    peer = timm.create_model('pvt_v2_b0', num_classes=0)
    peer.load_state_dict(timm_names(ours))
    x = torch.randn(1, 3, 96, 128)
    for outs in (ours(x), peer.forward_intermediates(x, intermediates_only=True)):
        sum(out.square().mean() for out in outs).backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        name = name.removeprefix('trunk.').replace('tokenizer.', 'patch_embed.')
        assert relative_error(parameter.grad, theirs[name].grad) <= 1e-4, name


@pytest.mark.parametrize('options, message', [
    (dict(tokenizer=dict(type='mmtok.PatchTokenizer', patch_kernel=4)),
     'patch_kernel=4 must be odd and larger than patch_size=4'),
    (dict(tokenizer=dict(type='mmtok.PatchTokenizer', patch_kernel='7')), "patch_kernel='7' must be a whole number"),
    (dict(arch=dict(embed_dims=(8, 16, 40, 64), depths=(1, 1, 1), mlp_ratios=(2, 2, 2, 2))),
     r'arch.depths=\(1, 1, 1\) must be a list of 4 numbers'),
    (dict(arch=dict(embed_dims=(8, 17, 40, 64), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))),
     'embed_dims=17 of the arch is no multiple of num_heads=2'),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        PVTv2(**options)
