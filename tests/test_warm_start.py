"""A plain checkpoint under MoTo: bitwise the plain model at step 0, and no worse when training starts."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from mmtok.backbones import DeiT, PVTv2, Swin
from peers import load

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


NANO = {
    'deit': lambda **options: DeiT(dict(embed_dims=32, depth=2, num_heads=2), patch_size=8, img_size=64, **options),
    'swin': lambda **options: Swin(dict(embed_dims=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4)),
                                   drop_path_rate=0.0, **options),
    'pvt_v2': lambda **options: PVTv2(dict(embed_dims=(8, 16, 40, 64), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2)),
                                      drop_path_rate=0.0, **options)}


@pytest.mark.parametrize('tokenizer', WARM, ids=lambda tokenizer: tokenizer['placement'])
@pytest.mark.parametrize('trunk', NANO)
def test_training_goes_on_from_there(trunk, tokenizer, tmp_path):
    """20 steps on a batch that tells four textures apart."""
    torch.save(NANO[trunk]().state_dict(), tmp_path / 'plain.pth')
    losses, gates = [], []
    for options in ({}, dict(tokenizer=tokenizer)):
        backbone = load(NANO[trunk](**options), tmp_path / 'plain.pth').train()
        torch.manual_seed(2)
        head = nn.Linear(backbone.out_channels[-1], 4)
        optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.05)
        images, labels = textures()
        losses.append([])
        for _ in range(20):
            loss = F.cross_entropy(head(backbone(images)[-1].mean((2, 3))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        gates.append(getattr(backbone.tokenizer, 'moto_gate', torch.zeros(1)).item())
    plain, warm = losses
    assert gates[0] == 0 and gates[1] != 0
    assert warm[0] == plain[0] and plain[-1] < 0.9 * plain[0]  # it does learn
    assert warm[-1] <= 1.01 * plain[-1]


def textures():
    """Stripes of four directions under noise: (16,3,64,64), (16,)."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(16) % 4
    angle = labels[:, None, None] * torch.pi / 4
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing='ij')
    stripes = torch.sin((rows * angle.sin() + columns * angle.cos()) * 0.8)
    return stripes[:, None] + torch.randn(16, 3, 64, 64, generator=generator), labels


def test_stem_starts_fresh_and_says_so(start, log):
    start(tokenizer=dict(type='mmtok.MoToTokenizer'))
    assert log[-1][1].startswith('New in the tokenizer MoToTokenizer, and to be trained: tokenizer.stem.conv.weight, ')
    assert '2 unexpected (tokenizer.proj.weight, tokenizer.proj.bias)' in log[-2][1]
