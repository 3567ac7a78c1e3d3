"""Files made by the peers' own code load whole behind `init_cfg`, and give the peers' features."""

import re

import mmdet.models.backbones as mmdet_backbones
import mmpretrain.models.backbones as mmpretrain_backbones
import mmseg.models.backbones as mmseg_backbones
import pytest
import timm
import torch
from mmengine.model.weight_init import PretrainedInit
from mmseg.registry import MODELS

from mmtok.backbones import PVT, DeiT, PVTv2, Swin, T2TViT
from mmtok.checkpoint.formats import to_own_names, to_public_names
from mmtok.errors import CheckpointError
from peers import authors_pvt_v2, authors_swin, load, mend_scale, randomise, relative_error

CLASSIFICATION = dict(window_rule='classification', drop_path_rate=0.0)


def timm_maps(model, x):
    return model.forward_intermediates(x, intermediates_only=True, norm=False)


def timm_last(model, x):
    return [model.forward_features(x).permute(0, 3, 1, 2)]


def maps(model, x):
    return model(x)


def mended_maps(model, x):
    mend_scale(model)
    return model(x)


LEVELS = (2, 5, 8, 11)
MMSEG_VIT = dict(img_size=224, embed_dims=192, num_heads=3, out_indices=LEVELS, norm_cfg=dict(type='LN', eps=1e-6))
TRANSFORMER = dict(type='mmtok.T2TTokenizer', attention='transformer')
# peer, its features, what the file holds, our backbone
FILES = {
    'deit-timm': (lambda: timm.create_model('deit_tiny_patch16_224'),
                  lambda m, x: m.forward_intermediates(x, indices=list(LEVELS), intermediates_only=True, norm=False),
                  lambda s: s, lambda: DeiT('tiny', out_indices=LEVELS)),
    'deit-authors': (lambda: timm.create_model('deit_tiny_patch16_224'), lambda m, x: timm_maps(m, x)[-1:],
                     lambda s: {'model': s}, lambda: DeiT('tiny')),
    'deit-mmpretrain': (lambda: mmpretrain_backbones.VisionTransformer(
        'deit-tiny', out_type='featmap', out_indices=LEVELS, final_norm=False), maps,
        lambda s: {'state_dict': {f'backbone.{k}': v for k, v in s.items()} | {'head.layers.head.bias': torch.ones(9)}},
        lambda: DeiT('tiny', out_indices=LEVELS)),
    'deit-mmseg': (lambda: mmseg_backbones.VisionTransformer(**MMSEG_VIT), maps,
                   lambda s: {'state_dict': {f'backbone.{k}': v for k, v in s.items()}},
                   lambda: DeiT('tiny', out_indices=LEVELS)),
    'swin-timm': (lambda: timm.create_model('swin_tiny_patch4_window7_224'), timm_last, lambda s: s,
                  lambda: Swin(out_indices=(3, ), **CLASSIFICATION)),
    'swin-authors': (lambda: timm.create_model('swin_tiny_patch4_window7_224'), timm_last,
                     lambda s: {'model': authors_swin(s)}, lambda: Swin(out_indices=(3, ), **CLASSIFICATION)),
    'swin-mmdet': (mmdet_backbones.SwinTransformer, maps, lambda s: {'state_dict': s}, Swin),
    'swin-mmseg': (mmseg_backbones.SwinTransformer, maps, lambda s: s, Swin),
    'swin-mmpretrain': (lambda: mmpretrain_backbones.SwinTransformer('tiny', out_indices=(0, 1, 2, 3)), maps,
                        lambda s: {'state_dict': {f'backbone.{k}': v for k, v in s.items()}},
                        lambda: Swin(**CLASSIFICATION)),
    'pvt-mmdet': (lambda: mmdet_backbones.PyramidVisionTransformer(num_layers=[3, 4, 6, 3]), maps, lambda s: s, PVT),
    'pvt-authors': (lambda: PVT(classifier=True), maps,
                    lambda s: to_public_names(s, PVT.public_names['authors'])[0], lambda: PVT(classifier=True)),
    'pvt_v2-timm': (lambda: timm.create_model('pvt_v2_b0'), timm_maps, lambda s: s, lambda: PVTv2('b0')),
    'pvt_v2-authors': (lambda: timm.create_model('pvt_v2_b0'), timm_maps, authors_pvt_v2, lambda: PVTv2('b0')),
    'pvt_v2-mmdet': (lambda: mmdet_backbones.PyramidVisionTransformerV2(embed_dims=32, num_layers=[2, 2, 2, 2]), maps,
                     lambda s: {'state_dict': {f'module.backbone.{k}': v for k, v in s.items()}},
                     lambda: PVTv2('b0', norm_eps=1e-6)),
    't2t-mmpretrain': (lambda: mmpretrain_backbones.T2T_ViT(out_type='featmap', final_norm=False), mended_maps,
                       lambda s: {'state_dict': {f'backbone.{k}': v for k, v in s.items()}},
                       lambda: T2TViT(tokenizer=TRANSFORMER)),
}


@pytest.mark.parametrize('form', FILES)
def test_a_peer_s_file_loads_whole(form, tmp_path, log):
    make_peer, features, contents, make_ours = FILES[form]
    peer = make_peer()
    peer.eval()
    randomise(peer)
    torch.save(contents(peer.state_dict()), tmp_path / 'file.pth')
    ours = load(make_ours(), tmp_path / 'file.pth')
    count = sum(name.startswith('trunk.') for name in ours.state_dict())
    assert f'{count} of {count} trunk tensors, 0 resized, 0 missing' in log[-1][1]
    assert {level for level, _ in log} <= {'DEBUG', 'INFO'}
    assert form.split('-')[1] in re.search(r'\(names of (.*?)\)', log[-1][1])[1]
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for a, e in zip(ours(x), features(peer, x), strict=True):
            assert a.shape == e.shape and relative_error(a, e) <= 1e-5


def test_pvt_s_names_are_those_that_mmdet_converts():
    from mmdet.models.backbones.pvt import pvt_convert
    ours = randomise(PVT()).state_dict()
    theirs, unknown = to_public_names(ours, PVT.public_names['authors'])
    mmdets, _ = to_public_names(ours, PVT.public_names['mmdet'])
    converted = pvt_convert(theirs)
    assert not unknown and converted.keys() == mmdets.keys()
    whole, unknown = to_public_names(randomise(PVT(classifier=True)).state_dict(), PVT.public_names['authors'])
    assert not unknown and whole.keys() - theirs.keys() == {'cls_token', 'norm.weight', 'norm.bias'}
    assert whole['pos_embed4'].shape == (1, 50, 512) and theirs['pos_embed4'].shape == (1, 49, 512)
    assert all(torch.equal(converted[name], mmdets[name]) for name in mmdets)


def test_pvt_v2_with_mmdet_s_epsilon_is_mmdet_s(tmp_path):
    """Which shows with mmdet's own start, whose features are small: others are 1e-5 apart from it and more."""
    peer = mmdet_backbones.PyramidVisionTransformerV2(embed_dims=32, num_layers=[2, 2, 2, 2])
    peer.init_weights()
    peer.eval()
    torch.save(peer.state_dict(), tmp_path / 'file.pth')
    x = torch.randn(1, 3, 96, 64)

    def largest_difference(**options):
        ours = load(PVTv2('b0', **options), tmp_path / 'file.pth')
        with torch.no_grad():
            return max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(ours(x), peer(x), strict=True))
    assert largest_difference(norm_eps=1e-6) <= 1e-5 < largest_difference() < 1e-2


def test_a_whole_segmentor(tmp_path, log):
    backbone = dict(type='SwinTransformer')
    head = dict(type='UPerHead', in_channels=[96, 192, 384, 768], in_index=[0, 1, 2, 3], channels=16, num_classes=4)
    peer = MODELS.build(dict(type='EncoderDecoder', backbone=backbone, decode_head=head))
    contents = {'meta': {'epoch': 3}, 'state_dict': peer.state_dict(), 'optimizer': {'state': {}}}
    torch.save(contents, tmp_path / 'file.pth')
    ours = load(Swin(), tmp_path / 'file.pth')
    assert '167 of 167 trunk tensors' in log[-1][1]
    assert re.search(r', 0 unexpected, (\d\d) of other parts \(decode_head.\* \(\1 tensors\)\);', log[-1][1])
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        peer.eval()
        assert all(relative_error(a, e) <= 1e-5 for a, e in zip(ours(x), peer.backbone(x), strict=True))


@pytest.mark.parametrize('kind', [DeiT, T2TViT, Swin, PVT, PVTv2], ids=lambda kind: kind.__name__)
def test_names_go_out_and_come_back(kind):
    state = randomise(kind(classifier=True)).state_dict()
    for name, table in kind.public_names.items():
        if kind is T2TViT and name == 'mmpretrain':  # which has no performer
            continue
        theirs, unknown = to_public_names(state, table)
        back, foreign = to_own_names(theirs, table)
        assert not unknown and not foreign and back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def taken(state, ours, tmp_path):
    torch.save(state, tmp_path / 'file.pth')
    return load(ours, tmp_path / 'file.pth')


@pytest.mark.parametrize('theirs, make_ours, message', [
    ('swin_small_patch4_window7_224', Swin, "Swin trunk has no place .*: it holds mmtok.Swin\\(arch='small'"),
    ('pvt_v2_b3', PVTv2, "PVTv2 trunk has no place .*: it holds mmtok.PVTv2\\(arch='b3'"),
    ('deit_tiny_patch16_224', T2TViT, "fits only .*: it holds mmtok.DeiT\\(arch='tiny'"),
    ('vit_small_patch14_dinov2', lambda: DeiT('small', patch_size=14, img_size=518),
     r'has no place \(trunk.blocks.0.ls1.gamma.* and 18 more\); strict=False'),
    ('vit_small_patch32_224', lambda: DeiT('small'), r'patch embedding of another size than this DeiT '
     r'\(tokenizer.proj.weight 384x3x32x32 for 384x3x16x16\): it holds .*patch_size=32'),
    ('resnet18', DeiT, r'fits only 0 of .*: it has conv1.weight, .* and \d+ more; if the backbone is there below'),
])
def test_a_larger_or_another_trunk_is_refused(theirs, make_ours, message, tmp_path):
    ours = make_ours()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        taken(timm.create_model(theirs).state_dict(), ours, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_pvt_v2_is_no_pvt(tmp_path):
    state = authors_pvt_v2(timm.create_model('pvt_v2_b2').state_dict())
    with pytest.raises(CheckpointError, match="PVT trunk .*: it holds mmtok.PVTv2\\(arch='b2'"):
        taken(state, PVT(), tmp_path)


def test_strict_false_goes_on(tmp_path, log):
    state = timm.create_model('swin_small_patch4_window7_224').state_dict()
    torch.save(state, tmp_path / 'file.pth')
    ours = load(Swin(), tmp_path / 'file.pth', strict=False)
    assert torch.equal(ours.trunk.layers[0].blocks[0].mlp.fc1.weight, state['layers.0.blocks.0.mlp.fc1.weight'])
    assert any(level == 'WARNING' and 'for which the trunk has no place' in text for level, text in log)


def test_an_unknown_tensor_of_the_trunk_is_warned_of(tmp_path, log):
    state = timm.create_model('deit_tiny_patch16_224').state_dict() | {'norm_pre.weight': torch.ones(192)}
    del state['blocks.0.norm1.bias']
    taken(state, DeiT('tiny'), tmp_path)
    warnings = warnings_of(log)
    assert len(warnings) == 2 and 'norm_pre.weight' in warnings[0] and 'trunk.blocks.0.norm1.bias' in warnings[1]


def test_values_that_are_not_finite(tmp_path):
    state = timm.create_model('deit_tiny_patch16_224').state_dict()
    state['blocks.3.norm1.bias'][5] = float('nan')
    with pytest.raises(CheckpointError, match=r'not finite in trunk.blocks.3.norm1.bias: its training failed'):
        taken(state, DeiT('tiny'), tmp_path)


@pytest.mark.parametrize('prefix', ['module.model.backbone.', 'backbone._orig_mod.', 'model.module.', '_orig_mod.'])
@pytest.mark.parametrize('wrap', [lambda s: {'state_dict': {}, 'model': s},
                                  lambda s: {'model_ema': s, 'model': 'deit'}])
def test_wrappers(prefix, wrap, tmp_path):
    state = timm.create_model('deit_tiny_patch16_224').state_dict()
    ours = taken(wrap({prefix + name: tensor for name, tensor in state.items()}), DeiT('tiny'), tmp_path)
    assert torch.equal(ours.trunk.cls_token, state['cls_token'])


@pytest.mark.parametrize('content, prefix', [
    (lambda s: {'ema_state_dict': s, 'optimizer': {'a': torch.ones(1)}}, None),
    (lambda s: {'model': {'state_dict': s}}, None),
    (lambda s: {'teacher': s, 'student': {}, 'epoch': 3}, None),
    (lambda s: {'teacher': {f'backbone.{k}': v for k, v in s.items()}, 'student': {'a': torch.ones(1)}}, 'teacher'),
    (lambda s: {'model': {'a': torch.ones(1)}, 'model_ema': s}, 'model_ema'),
    (lambda s: {'state_dict': {f'module.base_encoder.{k}': v for k, v in s.items()}}, 'module.base_encoder')])
def test_where_the_weights_are(content, prefix, tmp_path):
    state = timm.create_model('deit_tiny_patch16_224').state_dict()
    torch.save(content(state), tmp_path / 'file.pth')
    ours = load(DeiT('tiny'), tmp_path / 'file.pth', prefix=prefix)
    assert torch.equal(ours.trunk.cls_token, state['cls_token'])


def test_several_sets_of_weights(tmp_path, log):
    state = timm.create_model('deit_tiny_patch16_224').state_dict()
    taken({'model': state, 'model_ema': state}, DeiT('tiny'), tmp_path)
    assert log[-1][1].endswith("has 'model', which was loaded, and model_ema: prefix='model_ema' takes that")
    with pytest.raises(CheckpointError, match='holds several sets of tensors, teacher, student: name one in'):
        taken({'teacher': state, 'student': state}, DeiT('tiny'), tmp_path)
    with pytest.raises(CheckpointError, match="fits only 0 of .* below prefix='model_ema': without it"):
        torch.save({'model': state, 'model_ema': {'a': torch.ones(1)}}, tmp_path / 'file.pth')
        load(DeiT('tiny'), tmp_path / 'file.pth', prefix='model_ema')


def test_whole_numbers_are_no_weights(tmp_path):
    state = {name: (10 * tensor).to(torch.int8) for name, tensor in
             timm.create_model('deit_tiny_patch16_224').state_dict().items()}
    with pytest.raises(CheckpointError, match='fits only 0 of .*: another shape has .* int8 for'):
        taken(state, DeiT('tiny'), tmp_path)


def test_values_too_large_for_float32(tmp_path):
    state = timm.create_model('deit_tiny_patch16_224').double().state_dict()
    state['cls_token'][0, 0, 0] = 1e39
    with pytest.raises(CheckpointError, match='not finite in trunk.cls_token'):
        taken(state, DeiT('tiny'), tmp_path)


def test_a_prefix_that_is_not_there(tmp_path):
    torch.save(timm.create_model('deit_tiny_patch16_224').state_dict(), tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match="has nothing below prefix='encoder', but cls_token, pos_embed, "):
        load(DeiT('tiny'), tmp_path / 'file.pth', prefix='encoder')


@pytest.mark.parametrize('kind', ['mmengine.Pretrained', PretrainedInit], ids=str)
def test_mmengine_s_other_names_for_it(kind, tmp_path):
    state = timm.create_model('deit_tiny_patch16_224').state_dict()
    torch.save({'model': state}, tmp_path / 'file.pth')
    ours = DeiT('tiny', init_cfg=dict(type=kind, checkpoint=str(tmp_path / 'file.pth')))
    ours.init_weights()
    assert torch.equal(ours.trunk.cls_token, state['cls_token'])


def warnings_of(log):
    return [text for level, text in log if level == 'WARNING']


def test_what_is_new_in_a_tokenizer_is_said(tmp_path, log):
    transformer = T2TViT(tokenizer=TRANSFORMER)
    torch.save(transformer.state_dict(), tmp_path / 'file.pth')
    load(T2TViT(tokenizer={**TRANSFORMER, 'moto': dict()}), tmp_path / 'file.pth')
    assert not warnings_of(log) and log[-1][1].startswith('New in the tokenizer T2TTokenizer, and to be trained: '
                                                          'tokenizer.moto.0.gate, ')
    load(T2TViT(), tmp_path / 'file.pth')
    text, = warnings_of(log)
    assert 'start at random' in text and "there is {'type': 'mmtok.T2TTokenizer'" in text
    assert "'attention': 'transformer'" in text


def test_a_frozen_tokenizer_stays_random_and_says_so(tmp_path, log):
    torch.save(timm.create_model('deit_tiny_patch16_224').state_dict(), tmp_path / 'file.pth')
    ours = DeiT('tiny', tokenizer=dict(type='mmtok.FrozenTokenizer'))
    before = ours.tokenizer.proj.weight.clone()
    load(ours, tmp_path / 'file.pth')
    assert torch.equal(ours.tokenizer.proj.weight, before)
    text, = warnings_of(log)
    assert text.startswith('FrozenTokenizer keeps its random patch embedding, as it is meant to, and not that of')
    assert '2 unexpected (tokenizer.proj.weight, tokenizer.proj.bias)' in log[-2][1]


def test_a_path_is_a_place_too(tmp_path):
    state = timm.create_model('deit_tiny_patch16_224').state_dict()
    torch.save(state, tmp_path / 'file.pth')
    ours = DeiT('tiny', init_cfg=dict(type='Pretrained', checkpoint=tmp_path / 'file.pth'))
    ours.init_weights()
    assert torch.equal(ours.trunk.cls_token, state['cls_token'])
