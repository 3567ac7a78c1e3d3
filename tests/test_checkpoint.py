"""Pretrained weights behind `init_cfg`: official DeiT and timm files, our own, and files that do not fit."""

import pytest
import timm
import torch

from mmtok.backbones import DeiT
from mmtok.errors import ConfigError


def pretrained(path, **options):
    torch.manual_seed(1)
    model = DeiT('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(path)), **options)
    model.init_weights()
    return model.eval()


@pytest.fixture(scope='module')
def peer():
    torch.manual_seed(0)
    return timm.create_model('deit_tiny_patch16_224', dynamic_img_size=True).eval()


@pytest.mark.parametrize('form', ['timm', 'official', 'segmentor', 'ours'])
def test_formats(form, peer, tmp_path):
    state = peer.state_dict()
    if form == 'segmentor':
        state = {f'backbone.{k}': v for k, v in state.items()} | {'decode_head.conv_seg.weight': torch.ones(1)}
    if form == 'ours':
        torch.save(peer.state_dict(), tmp_path / 'timm.pth')
        state = {f'backbone.{k}': v for k, v in pretrained(tmp_path / 'timm.pth').state_dict().items()}
    wrapper = {'timm': None, 'official': 'model', 'segmentor': 'state_dict', 'ours': 'state_dict'}[form]
    torch.save({wrapper: state} if wrapper else state, tmp_path / 'file.pth')
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = pretrained(tmp_path / 'file.pth')(x)[0]
        theirs = peer.forward_intermediates(x, indices=[11], intermediates_only=True)[0]
    assert ((ours - theirs).norm() / theirs.norm()).item() <= 1e-5


def test_frozen_tokenizer_stays_random(peer, tmp_path):
    torch.save({'model': peer.state_dict()}, tmp_path / 'file.pth')
    frozen = dict(type='mmtok.FrozenTokenizer')
    model = pretrained(tmp_path / 'file.pth', tokenizer=frozen)
    assert model.tokenizer.proj.weight.abs().max() <= (6 / (768 + 192)) ** 0.5
    assert not torch.equal(model.tokenizer.proj.weight, peer.patch_embed.proj.weight)
    torch.save(model.state_dict(), tmp_path / 'ours.pth')  # a frozen pretraining brings its own along
    assert torch.equal(pretrained(tmp_path / 'ours.pth', tokenizer=frozen).tokenizer.proj.weight,
                       model.tokenizer.proj.weight)


def test_distilled_file_is_refused(tmp_path):
    state = timm.create_model('deit_tiny_distilled_patch16_224').state_dict()
    torch.save({'model': state}, tmp_path / 'file.pth')
    with pytest.raises(ConfigError, match='is of a distilled DeiT, which has a second class token'):
        pretrained(tmp_path / 'file.pth')


def test_list_and_prefix_of_init_cfg(peer, tmp_path):
    torch.save({'state_dict': {f'student.net.{k}': v for k, v in peer.state_dict().items()}}, tmp_path / 'file.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'), prefix='student.net')
    model = DeiT('tiny', init_cfg=[cfg])
    model.init_weights()
    assert torch.equal(model.trunk.cls_token, peer.cls_token)


def test_tokenizer_of_another_kind_starts_fresh(peer, tmp_path):
    torch.save(peer.state_dict(), tmp_path / 'file.pth')
    model = pretrained(tmp_path / 'file.pth', tokenizer=dict(type='mmtok.MoToTokenizer'), token_prop=dict())
    assert torch.equal(model.trunk.blocks[3].attn.qkv.weight, peer.blocks[3].attn.qkv.weight)


def test_another_architecture_is_refused_and_nothing_loaded(tmp_path):
    torch.save(timm.create_model('deit_small_patch16_224').state_dict(), tmp_path / 'small.pth')
    torch.manual_seed(1)
    model = DeiT('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'small.pth')))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"fits only 0 of the \d+ tensors of this DeiT trunk: it holds "
                                          r"mmtok.DeiT\(arch='small', img_size=224\) with names of timm"):
        model.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.pth' does not exist: .*\(model.backbone.init_cfg; with None there"):
        pretrained(tmp_path / 'gone.pth')
