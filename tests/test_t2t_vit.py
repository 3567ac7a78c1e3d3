"""`mmtok.T2TViT`: with `transformer` against mmpretrain's, with `performer` against the authors' forward in float64."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import T2T_ViT

from mmtok.backbones import T2TViT
from mmtok.backbones.t2t_vit import sinusoids
from mmtok.errors import ConfigError
from mmtok.tokenizers import T2TTokenizer
from peers import mend_scale, randomise, relative_error

NANO = dict(embed_dims=48, depth=2, num_heads=3)
TRANSFORMER = dict(type='mmtok.T2TTokenizer', attention='transformer', token_dims=16)
PERFORMER = {**TRANSFORMER, 'attention': 'performer'}


def mmpretrain_names(ours):
    state = {}
    for key, value in ours.state_dict().items():
        key = re.sub(r'\.norm([12])\.', r'.ln\1.', key.replace('tokenizer.', 'tokens_to_token.'))
        key = key.replace('trunk.blocks.', 'encoder.').removeprefix('trunk.')
        key = key.replace('mlp.fc1', 'ffn.layers.0.0').replace('mlp.fc2', 'ffn.layers.1')
        state[key] = value
    return state


@pytest.mark.parametrize('size', [(224, 224), (256, 309), (64, 96), (97, 161)], ids=str)
def test_transformer_equals_mmpretrain(size):
    ours = randomise(T2TViT(NANO, tokenizer=TRANSFORMER, out_indices=(0, 1), final_norm=False))
    options = dict(embed_dims=48, num_layers=2, t2t_cfg=dict(token_dims=16),
                   layer_cfgs=dict(num_heads=3, feedforward_channels=3 * 48), final_norm=False)
    peer = T2T_ViT(out_indices=[0, 1], out_type='featmap', **options)
    peer.load_state_dict(mmpretrain_names(ours))
    peer.eval()  # returns None there
    mend_scale(peer)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        for a, e in zip(ours(x), peer(x), strict=True):
            assert a.shape == e.shape and relative_error(a, e) <= 1e-5


@pytest.mark.parametrize('attention', ['transformer', 'performer'])
def test_classifier_gives_the_normalised_class_token(attention):
    ours = randomise(T2TViT(NANO, tokenizer={**TRANSFORMER, 'attention': attention}, classifier=True))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out, = ours(x)
        tokens = ours.trunk.forward_features(ours.tokenizer(x))
    assert out.shape == (2, 48) and torch.equal(out, tokens[:, 0])
    assert 'trunk.norm.weight' in ours.state_dict()


def performer64(layer, x):
    """The authors' Token_performer in float64, term by term."""
    kqv = layer.kqv(layer.norm1(x))
    k, q, v = kqv.split(kqv.shape[-1] // 3, dim=-1)

    def features(t):
        m = layer.w.shape[0]
        squares = (t * t).sum(dim=-1, keepdim=True).repeat(1, 1, m) / 2
        return torch.exp(torch.einsum('bti,mi->btm', t, layer.w) - squares) / math.sqrt(m)
    kp, qp = features(k), features(q)
    total = torch.einsum('bti,bi->bt', qp, kp.sum(dim=1)).unsqueeze(2)
    kptv = torch.einsum('bin,bim->bnm', v, kp)
    y = torch.einsum('bti,bni->btn', qp, kptv) / (total.repeat(1, 1, v.shape[-1]) + 1e-8)
    y = v + layer.proj(y)
    return y + layer.mlp(layer.norm2(y))


def tokens64(tokenizer, x):
    """The authors' T2T_module; rows and columns are kept apart, as it takes squares alone."""
    for layer, (kernel, stride, padding) in ((tokenizer.attention1, (7, 4, 2)), (tokenizer.attention2, (3, 2, 1))):
        rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
        x = performer64(layer, F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2))
        x = x.transpose(1, 2).reshape(len(x), -1, rows, columns)
    rows, columns = ((side - 1) // 2 + 1 for side in x.shape[2:])
    x = tokenizer.project(F.unfold(x, 3, stride=2, padding=1).transpose(1, 2))
    return x.transpose(1, 2).reshape(len(x), -1, rows, columns)


@pytest.mark.parametrize('spread', [0.05, 0.08, 0.1, 0.15, 0.2])
@pytest.mark.parametrize('size', [(224, 224), (97, 161)], ids=str)
def test_performer_equals_the_authors_forward_in_float64(size, spread):
    tokenizer = randomise(T2TTokenizer(embed_dims=48, token_dims=16))
    torch.nn.init.normal_(tokenizer.attention1.kqv.weight, std=spread)  # features from flat to peaked
    torch.nn.init.normal_(tokenizer.attention2.kqv.weight, std=spread)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        actual = tokenizer(x)
        expected = tokens64(tokenizer.double(), x.double())
    assert actual.shape == expected.shape and relative_error(actual.double(), expected) <= 1e-5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_performer_attends_in_float32_under_low_precision(dtype):
    """The features of a peaked key vanish in float16; their sum must not."""
    layer = T2TTokenizer(token_dims=16).attention1
    k, q, v = torch.randn(3, 1, 50, 16).unbind(0)
    k, q = (3 * k).to(dtype), (3 * q).to(dtype)
    expected = layer.attend(k.double(), q.double(), v.to(dtype).double(), None)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = layer.attend(k, q, v.to(dtype), None)
    assert actual.dtype == torch.float32 and relative_error(actual.double(), expected) <= 1e-5


def test_positions_are_fixed_and_survive_initialisation():
    model = T2TViT(NANO, img_size=64)
    table = sinusoids(17, 48)
    model.init_weights()
    assert torch.equal(model.trunk.pos_embed, table) and 'trunk.pos_embed' not in dict(model.named_parameters())
    assert 'trunk.pos_embed' in model.state_dict()
    for position, channel in ((0, 0), (3, 7), (16, 46)):
        angle = position / 10000**(2 * (channel // 2) / 48)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[0, position, channel].item() == pytest.approx(expected, abs=1e-6)


def test_authors_file_loads_whole(tmp_path):
    peer = randomise(T2TViT(NANO, img_size=64, tokenizer=PERFORMER, classifier=True))
    state = {key.replace('tokenizer.', 'tokens_to_token.').removeprefix('trunk.'): value
             for key, value in peer.state_dict().items()}
    torch.save({'state_dict_ema': {**state, 'head.weight': torch.zeros(10, 48)}}, tmp_path / 'file.pth')
    ours = T2TViT(NANO, img_size=64, tokenizer=PERFORMER, classifier=True,
                  init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth')))
    ours.init_weights()
    assert all(torch.equal(value, peer.state_dict()[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize('tokenizer', [TRANSFORMER, PERFORMER], ids=['transformer', 'performer'])
def test_a_closed_gate_starts_as_the_plain_tokenizer(tokenizer):
    plain = T2TViT(NANO, tokenizer=tokenizer).eval()
    moto = T2TViT(NANO, tokenizer={**tokenizer, 'moto': dict(num_entities=4)}).eval()
    missing, unexpected = moto.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing and all(key.startswith('tokenizer.moto.') for key in missing)
    x = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(plain(x)[0], moto(x)[0])
        moto.tokenizer.moto[0].gate.fill_(0.5)
        assert not torch.equal(plain(x)[0], moto(x)[0])
    layout = moto.tokenizer.layout(x)
    assert layout.shape == (1, 4, 16, 20) and torch.allclose(layout.sum(1), torch.ones(1, 16, 20))


def test_a_tokenizer_that_is_no_tokens_to_token_is_warned_of(log):
    T2TViT(NANO, tokenizer=dict(type='mmtok.MoToTokenizer'))
    level, text = log[-1]
    assert level == 'WARNING' and text.startswith('MoToTokenizer takes the place of the tokens-to-token module')


@pytest.mark.parametrize('options, message', [
    (dict(attention='linear'), "attention='linear' is unknown; choose from 'performer', 'transformer'"),
    (dict(patch_size=8), 'gives tokens of stride 16, which DeiT and T2TViT take, not 8: choose mmtok.MoToTokenizer'),
    (dict(moto=dict(num_entitis=2)), 'moto of mmtok.T2TTokenizer has no option num_entitis; it takes num_entities'),
    (dict(moto=dict(channels=3)), 'has no option channels; it takes num_entities, .*gate'),
    (dict(moto=dict(type='mmtok.MoTo')), 'takes options alone, no type'),
    (dict(moto=True), r'moto=True must be a dict of options, dict\(\) for the defaults, or None'),
    (dict(moto=dict(gate='open')), "gate='open' must be a number, None or 'auto'"),
    (dict(token_dims=0), 'token_dims=0 must be a whole number'),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        T2TTokenizer(**options)


def test_a_number_from_the_command_line_is_an_arch():
    """mmengine's --cfg-options makes a number of it."""
    assert T2TViT(19).embed_dims == 448
    with pytest.raises(ConfigError, match="arch=24 is unknown; choose from '14', '19', or give a dict with embed_dims"):
        T2TViT(24)


@pytest.mark.parametrize('attention', ['transformer', 'performer'])
def test_without_padding_no_mask_is_carried(attention, monkeypatch):
    """Masked attention is slow, and its matrix large; here no side is a multiple of 16."""
    model = T2TViT(NANO, tokenizer={**TRANSFORMER, 'attention': attention}).eval()
    masks = []
    forward = model.tokenizer.forward
    monkeypatch.setattr(model.tokenizer, 'forward', lambda x, mask: masks.append(mask) or forward(x, mask))
    x = torch.randn(1, 3, 99, 70)
    with torch.no_grad():
        model(x)
        model(F.pad(x, (0, 10)))
    assert masks[0] is None and masks[1] is not None


def test_a_mask_of_ones_and_zeros_is_a_mask():
    model = T2TViT(NANO, tokenizer=TRANSFORMER).eval()
    x, mask = torch.randn(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    mask[..., 40:] = 0
    with torch.no_grad():
        assert torch.equal(model(x, mask)[0], model(x, mask.bool())[0])


def test_positions_of_a_file_are_resampled_as_in_the_forward_pass(tmp_path):
    large = randomise(T2TViT(NANO, img_size=224, tokenizer=PERFORMER))
    torch.save(large.state_dict(), tmp_path / 'file.pth')
    small = T2TViT(NANO, img_size=128, tokenizer=PERFORMER,
                   init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth')))
    small.init_weights()
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert relative_error(small.eval()(x)[0], large(x)[0]) <= 1e-6


def test_small_maps_have_a_layout_too():
    assert T2TTokenizer(moto=dict(num_entities=3)).layout(torch.zeros(1, 3, 2, 9)).shape == (1, 3, 1, 2)


def test_layout_without_moto_says_so():
    with pytest.raises(ConfigError, match='has no MoTo and so no layout'):
        T2TTokenizer().layout(torch.zeros(1, 3, 32, 32))
