"""A plain checkpoint under MoTo: bitwise the plain model at step 0, and no worse when training starts."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from mmtok.backbones import DeiT, PVTv2, Swin
from test_checkpoint_formats import load

PEERS = {'deit': ('deit_tiny_patch16_224', lambda **options: DeiT('tiny', **options)),
         'swin': ('swin_tiny_patch4_window7_224', lambda **options: Swin(drop_path_rate=0.0, **options)),
         'pvt_v2': ('pvt_v2_b0', lambda **options: PVTv2('b0', drop_path_rate=0.0, **options))}
WARM = [dict(type='mmtok.MoToTokenizer', placement=placement) for placement in ('token', 'branch')]


@pytest.fixture(scope='module', params=PEERS)
def start(request, tmp_path_factory):
    """A backbone from timm's file of its trunk, by its tokenizer."""
    name, make = PEERS[request.param]
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('checkpoint') / 'file.pth'
    torch.save(timm.create_model(name).state_dict(), path)

    def build(**options):
        torch.manual_seed(1)
        return load(make(**options), path)
    return build


@pytest.mark.parametrize('tokenizer', WARM, ids=lambda tokenizer: tokenizer['placement'])
def test_the_same_features_bit_for_bit(start, tokenizer):
    x = torch.randn(2, 3, 160, 224)
    with torch.no_grad():
        for a, e in zip(start(tokenizer=tokenizer)(x), start()(x), strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize('tokenizer', WARM, ids=lambda tokenizer: tokenizer['placement'])
def test_training_goes_on_from_there(start, tokenizer):
    """20 steps on a batch that tells four textures apart."""
    losses, gates = [], []
    for options in ({}, dict(tokenizer=tokenizer)):
        backbone = start(**options).train()
        head = nn.Linear(backbone.out_channels[-1], 4)
        nn.init.normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(2))
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-4, weight_decay=0.05)
        images, labels = textures()
        for _ in range(20):
            loss = F.cross_entropy(head(backbone(images)[-1].mean((2, 3))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        gates.append(getattr(backbone.tokenizer, 'moto_gate', torch.zeros(1)).item())
    assert gates[0] == 0 and gates[1] != 0
    assert losses[1] <= 1.01 * losses[0]


def textures():
    """Stripes of four directions under noise: (16,3,64,64), (16,)."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(16) % 4
    angle = labels[:, None, None] * torch.pi / 4
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing='ij')
    stripes = torch.sin((rows * angle.sin() + columns * angle.cos()) * 0.8)
    return stripes[:, None] + torch.randn(16, 3, 64, 64, generator=generator), labels


def test_stem_starts_fresh_and_says_so(start, capsys):
    start(tokenizer=dict(type='mmtok.MoToTokenizer'))
    assert ('The tokenizer MoToTokenizer starts as initialised: it has no plain patch embedding'
            in capsys.readouterr().out)
