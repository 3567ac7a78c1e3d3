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
    wide = randomise(kind(arch, img_size=(128, 256)))  # 8x16 tokens
    path = saved(wide.state_dict())
    name = 'layers.1.1.0.pos_embed' if kind is PVT else 'pos_embed'
    old = wide.trunk.state_dict()[name]
    again = load(kind(arch, img_size=(256, 512)), path)  # the same proportions
    with pytest.raises(CheckpointError, match=r'positions in trunk.*, which make no square: say from which image size'):
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


def test_two_grids_of_as_many_positions(saved):
    arch = dict(embed_dims=32, depth=2, num_heads=2)
    square = saved(randomise(DeiT(arch, img_size=224)).state_dict())
    for size in ((112, 448), (448, 112)):
        with pytest.raises(CheckpointError, match='which make (7x28|14x14) or (14x14|28x7): say from'):
            load(DeiT(arch, img_size=size), square)
    model = load(DeiT(arch, img_size=(112, 448)), square, img_size=224)
    old = torch.load(square)['trunk.pos_embed']
    assert torch.equal(model.trunk.pos_embed, resample_abs_pos_embed(old, (7, 28), (14, 14)))


def test_positions_without_a_class_token(saved):
    peer = timm.create_model('deit3_small_patch16_224').state_dict()
    with pytest.raises(CheckpointError, match='has 196 positions in .*, none of them for the class token'):
        load(DeiT('small'), saved(peer))


def test_a_class_token_s_position_is_no_place_in_the_grid(saved):
    """50 positions are 7x7 and a class token in the authors' file, and 5x10 in ours."""
    model = randomise(PVT('small', classifier=True))
    dense = load(PVT('small', img_size=(160, 320)), saved(model.state_dict()), img_size=224)
    old = model.trunk.layers[3][1][0].pos_embed
    again = load(PVT('small', img_size=224), saved(model.state_dict()))
    assert torch.equal(again.trunk.layers[3][1][0].pos_embed, old[:, 1:])
    assert dense.trunk.layers[3][1][0].pos_embed.shape == old.shape
    assert not torch.equal(dense.trunk.layers[3][1][0].pos_embed, old)


def test_half_precision_files(saved):
    state = {name: tensor.half() for name, tensor in randomise(PVT('small')).state_dict().items()}
    assert load(PVT('small', img_size=256), saved(state)).trunk.layers[0][1][0].pos_embed.dtype == torch.float32
