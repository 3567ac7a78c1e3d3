"""Tokenizers: shapes, padding, gates, start values."""

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from timm.layers import PatchEmbed

from mmtok.errors import ConfigError
from mmtok.registry import MODELS
from mmtok.tokenizers import FrozenTokenizer, MoToTokenizer, PatchTokenizer
from mmtok.tokenizers.padding import valid_mask

TOKENIZERS = {
    'patch': lambda: PatchTokenizer(3, 24, 8),
    'frozen': lambda: FrozenTokenizer(3, 24, 8),
    **{p: lambda p=p: MoToTokenizer(3, 24, 8, placement=p) for p in ('stem', 'token', 'branch')},
    'stem with gate': lambda: MoToTokenizer(3, 24, 8, gate=0.5),
    'stem, other split': lambda: MoToTokenizer(3, 24, 8, stem_channels=6, stem_stride=4, layout_kernel=3),
    'stem at full resolution': lambda: MoToTokenizer(3, 24, 8, stem_stride=1),
    'token without gate': lambda: MoToTokenizer(3, 24, 8, placement='token', gate=None),
}


@pytest.mark.parametrize('size', [(32, 32), (17, 40), (5, 3), (8, 1)], ids=str)
@pytest.mark.parametrize('name', TOKENIZERS)
def test_any_image_size_gives_a_token_map(name, size):
    torch.manual_seed(0)
    tokenizer = TOKENIZERS[name]()
    x = torch.randn(2, 3, *size)
    tokens = tokenizer(x, valid_mask(x))
    assert tokens.shape == (2, 24, -(-size[0] // 8), -(-size[1] // 8))
    assert tokens.isfinite().all()


@pytest.mark.parametrize('name', [name for name in TOKENIZERS if name != 'frozen'])
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    tokenizer = TOKENIZERS[name]()
    for parameter in tokenizer.parameters():  # a gate of 0 would hide the branch behind it
        if parameter.numel() == 1:
            torch.nn.init.constant_(parameter, 0.3)
    tokenizer(torch.randn(2, 3, 32, 32)).square().mean().backward()
    for key, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_patch_tokenizer_equals_timm():
    torch.manual_seed(0)
    ours = PatchTokenizer(3, 24, 8)
    timm = PatchEmbed(None, 8, 3, 24, output_fmt='NCHW', strict_img_size=False)
    timm.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 48)
    assert torch.equal(ours(x), timm(x))


@pytest.mark.parametrize('placement', ['token', 'branch'])
def test_gate_of_zero_starts_as_the_plain_tokenizer(placement):
    torch.manual_seed(0)
    tokenizer, plain = MoToTokenizer(3, 24, 8, placement=placement), PatchTokenizer(3, 24, 8)
    plain.load_state_dict(tokenizer.patch.state_dict())
    x = torch.randn(2, 3, 32, 40)
    assert torch.equal(tokenizer(x), plain(x))
    tokenizer(x).square().mean().backward()
    assert tokenizer.moto_gate.grad.abs().item() > 0


@pytest.mark.parametrize('placement, resolution', [('stem', 16), ('token', 4), ('branch', 16)])
def test_layout_of_an_image(placement, resolution):
    tokenizer = MoToTokenizer(3, 24, 8, placement=placement, num_entities=5)
    layout = tokenizer.layout(torch.randn(2, 3, 32, 32))
    assert layout.shape == (2, 5, resolution, resolution) and not layout.requires_grad
    assert torch.allclose(layout.sum(1), torch.ones(2, resolution, resolution))


@pytest.mark.parametrize('placement', ['stem', 'token', 'branch'])
def test_padding_changes_nothing_with_a_mask_and_something_without(placement):
    torch.manual_seed(0)
    tokenizer = MoToTokenizer(3, 24, 8, placement=placement, gate=None if placement == 'stem' else 0.7)
    image = torch.randn(1, 3, 24, 32)
    padded = torch.nn.functional.pad(image, (0, 16, 0, 40))
    alone = tokenizer(image, valid_mask(image))
    masked, unmasked = tokenizer(padded, valid_mask(padded)), tokenizer(padded)
    assert torch.allclose(masked[..., :3, :4], alone, atol=1e-5)
    assert (unmasked[..., :3, :4] - alone).abs().max() > 1e-2


def test_frozen_tokenizer_is_random_and_stays():
    torch.manual_seed(0)
    tokenizer = FrozenTokenizer(3, 384, 16)
    assert not any(p.requires_grad for p in tokenizer.parameters())
    bound = (6 / (3 * 256 + 384)) ** 0.5  # MoCo v3
    weight = tokenizer.proj.weight
    assert weight.abs().max() <= bound and abs(weight.std().item() - bound / 3**0.5) < 0.01 * bound
    before = weight.clone()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1.0, weight_decay=1.0)
    head = torch.nn.Conv2d(384, 1, 1)
    head(tokenizer(torch.randn(1, 3, 32, 32))).sum().backward()
    optimizer.step()
    average = ExponentialMovingAverage(tokenizer, momentum=0.01)
    average.update_parameters(tokenizer)
    average.update_parameters(tokenizer)
    assert torch.equal(tokenizer.proj.weight, before) and torch.equal(average.module.proj.weight, before)


def test_registered_under_the_scope():
    for name in ('PatchTokenizer', 'FrozenTokenizer', 'MoToTokenizer'):
        assert MODELS.build(dict(type=f'mmtok.{name}', embed_dims=8, patch_size=4)).embed_dims == 8


@pytest.mark.parametrize('options, message', [
    (dict(placement='head'), "placement='head' is unknown; choose from 'stem', 'token', 'branch'"),
    (dict(num_entities=0), 'num_entities=0'),
    (dict(stem_channels=0), 'stem_channels=0'),
    (dict(stem_stride=3), 'stem_stride=3 does not divide patch_size=16'),
    (dict(gate='zero'), "gate='zero' must be a number, None or 'auto'"),
    (dict(gate=float('nan')), 'gate=nan'),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        MoToTokenizer(**options)
