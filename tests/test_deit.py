"""`mmtok.DeiT` against timm's with the same weights, and what every backbone must do."""

import pytest
import timm
import torch

from mmtok.backbones import DeiT
from mmtok.backbones.deit import ARCHS
from mmtok.errors import ConfigError
from peers import relative_error

NANO = dict(embed_dims=24, depth=3, num_heads=2)
TOKENIZERS = [dict(type='mmtok.PatchTokenizer'), dict(type='mmtok.FrozenTokenizer'),
              *(dict(type='mmtok.MoToTokenizer', placement=p) for p in ('stem', 'token', 'branch'))]
IDS = [t.get('placement', t['type'].split('.')[1]) for t in TOKENIZERS]


@pytest.mark.parametrize('size', [(224, 224), (64, 64), (256, 309), (97, 161), (160, 336), (16, 16)], ids=str)
@pytest.mark.parametrize('final_norm', [False, True])
def test_equals_timm(size, final_norm):
    torch.manual_seed(0)
    peer = timm.create_model('deit_tiny_patch16_224', num_classes=0, dynamic_img_size=True, dynamic_img_pad=True).eval()
    ours = DeiT('tiny', out_indices=(1, 5, -1), final_norm=final_norm).eval()
    state = {f'trunk.{k}': v for k, v in peer.state_dict().items() if not k.startswith('patch_embed')}
    state |= {k.replace('patch_embed', 'tokenizer'): v for k, v in peer.state_dict().items() if 'patch_embed' in k}
    if not final_norm:
        state = {k: v for k, v in state.items() if not k.startswith('trunk.norm.')}
    ours.load_state_dict(state)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = peer.forward_intermediates(x, indices=[1, 5, 11], norm=final_norm, intermediates_only=True)
        actual = ours(x)
    assert isinstance(actual, tuple) and len(actual) == 3
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape == (2, 192, -(-size[0] // 16), -(-size[1] // 16))
        assert relative_error(a, e) <= 1e-5


def test_gradients_equal_timm():
    torch.manual_seed(0)
    peer = timm.create_model('deit_tiny_patch16_224', num_classes=0, dynamic_img_size=True)
    ours = DeiT('tiny', final_norm=True)
    ours.tokenizer.load_state_dict(peer.patch_embed.state_dict())
    ours.trunk.load_state_dict({k: v for k, v in peer.state_dict().items() if not k.startswith('patch_embed')})
    x = torch.randn(1, 3, 96, 128)
    peer.forward_intermediates(x, indices=[11], norm=True, intermediates_only=True)[0].square().mean().backward()
    ours(x)[0].square().mean().backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        name = name.replace('tokenizer.', 'patch_embed.').replace('trunk.', '')
        assert relative_error(parameter.grad, theirs[name].grad) <= 1e-4, name


@pytest.mark.parametrize('arch, millions', [('tiny', 5.7), ('small', 22.1), ('base', 86.6)])
def test_sizes_of_the_paper(arch, millions):
    """Parameters with the classifier of 1000 classes that the paper counts."""
    model = DeiT(arch, final_norm=True)
    count = sum(p.numel() for p in model.parameters()) + (ARCHS[arch]['embed_dims'] + 1) * 1000
    assert round(count / 1e6, 1) == millions


def test_moto_adds_at_most_what_the_paper_says():
    plain, moto = (sum(p.numel() for p in DeiT('small', tokenizer=t).parameters())
                   for t in (None, dict(type='mmtok.MoToTokenizer')))
    assert 0 < moto - plain <= 0.4e6


@pytest.mark.parametrize('size', [(33, 50), (16, 70), (5, 5)], ids=str)
@pytest.mark.parametrize('token_prop', [None, dict()], ids=['plain', 'tokenprop'])
@pytest.mark.parametrize('tokenizer', TOKENIZERS, ids=IDS)
def test_trains_at_odd_sizes(tokenizer, token_prop, size):
    torch.manual_seed(0)
    model = DeiT(NANO, img_size=64, tokenizer=tokenizer, token_prop=token_prop, out_indices=(0, 2))
    if getattr(model.tokenizer, 'moto_gate', None) is not None:
        torch.nn.init.constant_(model.tokenizer.moto_gate, 0.3)
    losses = []
    if token_prop is not None:
        model.token_prop.collected = True  # this test fetches the loss itself
    outs = model(torch.randn(2, 3, *size))
    if token_prop is not None:
        losses.append(model.token_prop.take())
    (sum(out.square().mean() for out in outs) + sum(losses)).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('tokenizer', TOKENIZERS, ids=IDS)
def test_state_dict_round_trip_bf16_and_checkpointing(tokenizer, plain_attention):
    torch.manual_seed(0)
    model = DeiT(NANO, img_size=64, tokenizer=tokenizer)
    other = DeiT(NANO, img_size=64, tokenizer=tokenizer, with_cp=True)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 48, 64)
    grads = []
    for m in (model, other):
        m(x)[0].square().mean().backward()
        grads.append([p.grad for p in m.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert model(x)[0].isfinite().all()


def test_drop_path_rises_to_its_rate():
    blocks = DeiT(NANO, drop_path_rate=0.2).trunk.blocks
    assert getattr(blocks[-1].drop_path1, 'drop_prob', 0) == pytest.approx(0.2)
    assert getattr(blocks[0].drop_path1, 'drop_prob', 0) == 0


@pytest.mark.parametrize('options, message', [
    (dict(arch='huge'), "arch='huge' is unknown; choose from 'tiny', 'small', 'base', or give a dict with embed_dims"),
    (dict(pretrained='x.pth'), 'has no option pretrained; .*: set model.pretrained=None and name a file in'),
    (dict(drop_path_rate=1.5), 'drop_path_rate=1.5 must be a number from 0 to below 1'),
    (dict(drop_path_rate='0.1'), "drop_path_rate='0.1' must be a number"),
    (dict(token_prop=True), r'token_prop=True must be a dict of options, dict\(\) for the defaults, or None'),
    (dict(tokenizer='mmtok.MoToTokenizer'), "tokenizer='mmtok.MoToTokenizer' must be a dict such as dict"),
    (dict(tokenizer=dict(placement='stem')), 'tokenizer type None is unknown; choose from mmtok.FrozenTokenizer'),
    (dict(tokenizer=dict(type='mmtok.MotoTokenizer')),
     "tokenizer type 'mmtok.MotoTokenizer' is unknown; choose from mmtok.FrozenTokenizer, mmtok.MoToTokenizer"),
    (dict(tokenizer=dict(type='mmtok.MoToTokenizer', num_entitis=4)),
     'the tokenizer mmtok.MoToTokenizer has no option num_entitis; it takes .* num_entities'),
    (dict(token_prop=dict(loss_type='l1')), 'token_prop has no option loss_type; it takes embed_dims, loss, '),
    (dict(out_indices=(12,)), r'out_indices=\[12\] must name blocks of a trunk with 12 blocks'),
    (dict(out_indices=(5, 2)), r'out_indices=\[5, 2\] must name blocks .* each once and in rising order'),
    (dict(out_indices=(-1, 11)), r'out_indices=\[-1, 11\]'),
    (dict(arch=dict(embed_dims=30, depth=1)), 'must have exactly the keys embed_dims, depth, num_heads'),
    (dict(arch=dict(embed_dims=30, depth=1, num_heads=4)), 'embed_dims=30 of the arch is no multiple of num_heads=4'),
    (dict(tokenizer=dict(type='mmtok.MoToTokenizer', backend='cuda')), "backend='cuda' is unknown"),
    (dict(tokenizer=dict(type='mmtok.MoToTokenizer', tau='0.1')), "tau='0.1' must be a positive number"),
    (dict(tokenizer=dict(type='mmtok.PatchTokenizer', embed_dims=96)),
     'the tokenizer has embed_dims=96, but the trunk of DeiT takes embed_dims=384'),
    (dict(tokenizer=dict(type='mmtok.MoToTokenizer', patch_size=8)), 'the tokenizer has patch_size=8'),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        DeiT(**options)


def test_a_tokenizer_s_name_needs_no_scope():
    from mmengine.registry import DefaultScope
    with DefaultScope.overwrite_default_scope('mmseg'):
        assert DeiT(NANO, tokenizer=dict(type='MoToTokenizer')).tokenizer.placement == 'stem'
