"""Tensors of another image or window size are resampled as timm, and for PVT as mmdet, resamples them."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import swin_transformer, vision_transformer

from mmtok.backbones import PVT, DeiT, Swin, T2TViT
from mmtok.errors import CheckpointError
from peers import load, randomise, relative_error

SIZES = [(384, 384), (512, 512), (512, 1024)]


@pytest.fixture
def saved(tmp_path):
    def save(state):
        torch.save(state, tmp_path / 'file.pth')
        return tmp_path / 'file.pth'
    return save


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_positions_of_deit_equal_timm_s(size, saved):
    peer = randomise(timm.create_model('deit_tiny_patch16_224'))
    larger = timm.create_model('deit_tiny_patch16_224', img_size=size)
    expected = vision_transformer.checkpoint_filter_fn(peer.state_dict(), larger)['pos_embed']
    ours = load(DeiT('tiny', img_size=size), saved(peer.state_dict())).trunk.pos_embed
    assert ours.shape == larger.pos_embed.shape and torch.equal(ours, expected)


@pytest.mark.parametrize('size, window', [((384, 384), 12), ((512, 512), 16), ((512, 1024), 16)], ids=str)
def test_bias_tables_of_swin_equal_timm_s(size, window, saved):
    peer = randomise(timm.create_model('swin_tiny_patch4_window7_224'))
    larger = timm.create_model('swin_tiny_patch4_window7_224', img_size=size, window_size=window)
    expected = swin_transformer.checkpoint_filter_fn(peer.state_dict(), larger)
    ours = load(Swin(window_size=window), saved(peer.state_dict())).trunk.state_dict()
    tables = [name for name in ours if 'bias_table' in name]
    assert len(tables) == 12 and ours[tables[0]].shape[0] == (2 * window - 1)**2
    assert all(torch.equal(ours[name], expected[name]) for name in tables)


def test_positions_of_pvt_equal_mmdet_s(saved):
    peer = randomise(PVT('small'))
    ours = load(PVT('small', img_size=(256, 320)), saved(peer.state_dict()))
    assert ours.trunk.layers[0][1][0].pos_embed.shape[1] == 64 * 80
    x = torch.randn(1, 3, 256, 320)
    with torch.no_grad():
        for a, e in zip(ours(x), peer(x), strict=True):  # whose forward resamples as mmdet's
            assert relative_error(a, e) <= 1e-5


@pytest.mark.parametrize('kind', [DeiT, T2TViT, PVT], ids=lambda kind: kind.__name__)
def test_grids_that_are_no_squares(kind, saved):
    arch = 'small' if kind is PVT else dict(embed_dims=32, depth=2, num_heads=2)
    wide = randomise(kind(arch, img_size=(128, 256)))
    path = saved(wide.state_dict())
    name = 'layers.1.1.0.pos_embed' if kind is PVT else 'pos_embed'
    old = wide.trunk.state_dict()[name]
    again = load(kind(arch, img_size=(256, 512)), path)  # the same proportions
    with pytest.raises(CheckpointError, match=r'positions, which make no square: say from which image size they are'):
        load(kind(arch, img_size=224), path)
    with pytest.raises(CheckpointError, match=r'but img_size=\(128, 128\) makes'):
        load(kind(arch, img_size=224), path, img_size=128)
    square = load(kind(arch, img_size=224), path, img_size=(128, 256))
    if kind is DeiT:
        for model, grid in ((again, (16, 32)), (square, (14, 14))):
            assert torch.equal(model.trunk.pos_embed, resample_abs_pos_embed(old, grid, (8, 16)))
    turned = load(kind(arch, img_size=(256, 128)), path, img_size=(128, 256))  # as many positions, but another grid
    assert turned.trunk.state_dict()[name].shape == old.shape
    assert not torch.equal(turned.trunk.state_dict()[name], old)
