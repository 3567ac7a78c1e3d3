"""`mmtok.Swin` against timm's (classification rule) and mmdet's and mmseg's (dense rule), on the same weights."""


import pytest
import timm
import torch

from mmtok.backbones.swin import Swin
from mmtok.errors import ConfigError
from peers import randomise, relative_error

NANO = dict(embed_dims=12, depths=(2, 2, 2, 2), num_heads=(1, 2, 3, 4))
SIZES = [(64, 64), (224, 224), (256, 256), (512, 512), (320, 448), (97, 161)]


def mmdet_names(ours):
    """Our state dict in mmdet's naming; its unfold orders the channels of a merged patch differently."""
    state = {}
    for key, value in ours.state_dict().items():
        key = key.replace('tokenizer.proj', 'patch_embed.projection').replace('trunk.patch_embed', 'patch_embed')
        key = key.replace('trunk.layers', 'stages').replace('.attn.', '.attn.w_msa.')
        key = key.replace('mlp.fc1', 'ffn.layers.0.0').replace('mlp.fc2', 'ffn.layers.1')
        if key.startswith('norms.'):
            key = key.replace('norms.', 'norm')
        if '.downsample.' in key:  # timm merges before a stage, mmdet after the one before it
            stage = int(key.split('.')[1])
            key = key.replace(f'stages.{stage}.', f'stages.{stage - 1}.')
            if value.shape[-1] % 4 == 0 and ('norm' in key or 'reduction' in key):
                parts = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
                value = parts.transpose(-1, -2).flatten(-2)
        state[key] = value
    return state


def peer_of(ours, package):
    module = __import__(f'{package}.models.backbones.swin', fromlist=['SwinTransformer'])
    peer = module.SwinTransformer(embed_dims=12, num_heads=(1, 2, 3, 4), depths=(2, 2, 2, 2), drop_path_rate=0.0)
    missing, unexpected = peer.load_state_dict(mmdet_names(ours), strict=False)
    assert not unexpected and all('relative_position_index' in key for key in missing)
    peer.eval()  # returns None there
    return peer


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_dense_rule_equals_the_peers(package, size):
    ours = randomise(Swin(NANO, drop_path_rate=0.0))
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        for a, e in zip(ours(x), peer_of(ours, package)(x), strict=True):
            assert a.shape == e.shape and relative_error(a, e) <= 1e-5


def test_dense_gradients_equal_mmdet():
    ours = randomise(Swin(NANO, drop_path_rate=0.0))
    peer = peer_of(ours, 'mmdet')
    x = torch.randn(1, 3, 96, 128)
    a, e = x.clone().requires_grad_(), x.clone().requires_grad_()
    sum(out.square().mean() for out in ours(a)).backward()
    sum(out.square().mean() for out in peer(e)).backward()
    assert relative_error(a.grad, e.grad) <= 1e-4
    assert relative_error(ours.tokenizer.proj.weight.grad, peer.patch_embed.projection.weight.grad) <= 1e-4


@pytest.mark.parametrize('arch', ['tiny', 'small'])
def test_classification_rule_equals_timm_at_224(arch):
    ours = randomise(Swin(arch, window_rule='classification', out_indices=(3,), drop_path_rate=0.0))
    peer = timm.create_model(f'swin_{arch}_patch4_window7_224', num_classes=0).eval()
    state = {k.replace('trunk.', '').replace('tokenizer.', 'patch_embed.').replace('norms.3.', 'norm.'): v
             for k, v in ours.state_dict().items()}
    peer.load_state_dict(state)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = peer.forward_features(x).permute(0, 3, 1, 2)
        assert relative_error(ours(x)[0], expected) <= 1e-5
        ours_dense = Swin(arch, out_indices=(3,), drop_path_rate=0.0).eval()
        ours_dense.load_state_dict(ours.state_dict())
        assert relative_error(ours_dense(x)[0], expected) > 1e-3  # the rules do differ


@pytest.mark.parametrize('arch, millions', [('tiny', 28.3), ('small', 49.6)])
def test_sizes_of_the_paper(arch, millions):
    model = Swin(arch, out_indices=(3,))
    assert round((sum(p.numel() for p in model.parameters()) + 769 * 1000) / 1e6, 1) == millions


@pytest.mark.parametrize('size', [(4, 4), (3, 30), (40, 70)], ids=str)
@pytest.mark.parametrize('tokenizer', [dict(type='mmtok.PatchTokenizer'),
                                       *(dict(type='mmtok.MoToTokenizer', placement=p, gate=0.5)
                                         for p in ('stem', 'token', 'branch'))],
                         ids=lambda tokenizer: tokenizer.get('placement', 'plain'))
def test_any_size_every_gradient_and_checkpointing(tokenizer, size):
    torch.manual_seed(0)
    model = Swin(NANO, tokenizer=tokenizer, drop_path_rate=0.0)
    again = Swin(NANO, tokenizer=tokenizer, drop_path_rate=0.0, with_cp=True)
    again.load_state_dict(model.state_dict())
    x, grads = torch.randn(2, 3, *size), []
    for m in (model, again):
        outs = m(x)
        sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outs).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
        grads.append([p.grad for p in m.parameters()])
    assert [out.shape[2:] for out in outs] == [tuple(-(-s // (4 << i)) for s in size) for i in range(4)]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_the_same_parameters_are_frozen_as_in_mmdet(frozen_stages):
    from mmdet.models.backbones.swin import SwinTransformer
    peer = SwinTransformer(embed_dims=12, num_heads=(1, 2, 3, 4), depths=(2, 2, 2, 2), frozen_stages=frozen_stages)
    peer.train()
    model = Swin(NANO, frozen_stages=frozen_stages).train()
    ours = dict(zip(mmdet_names(model), model.state_dict(keep_vars=True).values(), strict=True))
    theirs = dict(peer.named_parameters())
    assert {name for name, p in theirs.items() if not p.requires_grad} == {
        name for name, p in ours.items() if not p.requires_grad}
    assert len(theirs) == len(ours)
    assert [[block.training for block in stage.blocks] for stage in model.trunk.layers] == [
        [block.training for block in stage.blocks] for stage in peer.stages]


def test_a_new_trunk_starts_as_timm_s():
    """Without mmengine's init_weights too: every linear layer drawn with deviation 0.02, every bias 0."""
    torch.manual_seed(0)
    trunk = Swin('tiny').trunk
    qkv = trunk.layers[2].blocks[3].attn.qkv
    assert qkv.weight.std().item() == pytest.approx(0.02, rel=0.05) and qkv.bias.eq(0).all()


@pytest.mark.parametrize('options, message', [
    (dict(arch='huge'), "arch='huge' is unknown"),
    (dict(window_size=0), 'window_size=0 must be a whole number of at least 1'),
    (dict(patch_size=0), 'patch_size=0 must be a whole number of at least 1'),
    (dict(frozen_stages=True), 'frozen_stages=True is unknown'),
    (dict(out_indices=None), r'out_indices=\[None\] must name stages'),
    (dict(out_indices='0123'), r"out_indices=\['0123'\] must name stages"),
    (dict(classifier=True, out_indices=(3, )), 'gives one vector, of its last layer: remove out_indices'),
    (dict(window_rule='both'), "window_rule='both' is unknown; choose from 'dense', 'classification'"),
    (dict(frozen_stages=5), 'frozen_stages=5 is unknown; choose from -1, 0, 1, 2, 3, 4'),
    (dict(out_indices=(4,)), r'out_indices=\[4\] must name stages of a trunk with 4 stages'),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Swin(**options)
