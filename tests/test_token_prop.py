"""TokenProp: decoder, losses, hook, and its absence from inference."""

import copy
import warnings

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import load_state_dict
from torch.utils._python_dispatch import TorchDispatchMode

from mmtok.backbones import DeiT
from mmtok.errors import ConfigError
from mmtok.tokenprop import TokenProp
from mmtok.tokenprop.hook import LOSS_NAME, attach
from mmtok.tokenprop.loss import make_target, output_size, reconstruction_loss

NANO = dict(embed_dims=32, depth=2, num_heads=2)
REDUCTIONS = ('sum', 'mean')


class Classifier(BaseModel):
    """The smallest mmengine model around a backbone."""

    def __init__(self, **backbone):
        super().__init__()
        self.backbone = DeiT(NANO, img_size=64, patch_size=8, **backbone)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.backbone(inputs)[0].mean((2, 3))
        return {'loss_cls': features.square().mean()} if mode == 'loss' else features


@pytest.mark.parametrize('size, expected', [((224, 224), (64, 64)), ((512, 512), (64, 64)), ((800, 200), (128, 32)),
                                            ((3, 2000), (2, 1652))], ids=str)
def test_output_size_keeps_area_and_aspect(size, expected):
    assert output_size(*size, 64) == expected


@pytest.mark.parametrize('kind', ['l1', 'l2'])
def test_loss_equals_a_loop(kind):
    torch.manual_seed(0)
    output, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    real = torch.rand(2, 1, 4, 5)
    per_image = []
    for o, t, r in zip(output, target, real, strict=True):
        per_image.append(sum(r[0, y, x].item() * (abs(d) if kind == 'l1' else d * d)
                             for y in range(4) for x in range(5) for d in (o - t)[:, y, x].tolist()))
    weights = [3 * r.sum().item() for r in real]
    mean = sum(p / w for p, w in zip(per_image, weights, strict=True)) / 2
    assert reconstruction_loss(output, target, real, kind, 'mean').item() == pytest.approx(mean, 1e-5)
    assert reconstruction_loss(output, target, real, kind, 'sum').item() == pytest.approx(60 * mean, 1e-5)
    whole = torch.ones_like(real)
    plain = (output - target).abs() if kind == 'l1' else (output - target) ** 2
    assert reconstruction_loss(output, target, whole, kind, 'sum').item() == pytest.approx(plain.sum().item() / 2, 1e-5)


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_an_image_weighs_the_same_beside_a_larger_one(reduction):
    """Half of the second image is padding; both are wrong by 2 everywhere."""
    output, target = torch.full((2, 3, 4, 6), 2.0), torch.zeros(2, 3, 4, 6)
    output.requires_grad_()
    real = torch.ones(2, 1, 4, 6)
    real[1, :, :, 3:] = 0
    reconstruction_loss(output, target, real, 'l2', reduction).backward()
    first, second = output.grad.sum((1, 2, 3)).tolist()
    assert first == pytest.approx(second) and output.grad[1, :, :, 3:].eq(0).all()


def test_padding_is_no_part_of_the_target_or_the_loss():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 16, 16)
    padded = torch.nn.functional.pad(image, (0, 16, 0, 4))
    mask = torch.nn.functional.pad(torch.ones(1, 1, 16, 16), (0, 16, 0, 4)).bool()
    target, real = make_target(padded, mask, (5, 8))
    assert torch.allclose(target[..., :4, :4], make_target(image, None, (4, 4))[0], atol=1e-6)
    assert real[..., :4, :4].eq(1).all() and real[..., 4:, :].eq(0).all() and real[..., 4:].eq(0).all()
    output = torch.randn(1, 3, 5, 8)
    changed = torch.where(real > 0, output, 1e3)
    for reduction in REDUCTIONS:
        a, b = (reconstruction_loss(o, target, real, 'l2', reduction) for o in (output, changed))
        assert torch.equal(a, b)
    filled = torch.where(mask, padded, 1e3)  # whatever the padding holds
    assert torch.equal(make_target(filled, mask, (5, 8))[0], target)
    partial, weight = make_target(padded, mask, (3, 3))
    assert partial.abs().max() < 5 and ((weight > 0) & (weight < 1)).any()


@pytest.mark.parametrize('reduction', REDUCTIONS)
@pytest.mark.parametrize('kind', ['l1', 'l2'])
def test_loss_falls_on_a_batch_that_it_should_memorise(kind, reduction):
    torch.manual_seed(0)
    model = DeiT(NANO, img_size=64, patch_size=8, tokenizer=dict(type='mmtok.MoToTokenizer'),
                 token_prop=dict(loss=kind, reduction=reduction, loss_weight=1.0, output_scale=32))
    image = torch.nn.functional.interpolate(torch.randn(2, 3, 8, 8), (64, 64), mode='bicubic')
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    values = []
    for _ in range(120):
        loss = model.token_prop(model.tokenizer(image), image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < (0.35 if kind == 'l1' else 0.15) * values[0]


@pytest.mark.parametrize('width, output_scale', [(1, 64), (2, 64), (4, 64), (1, 128), (1, 256)])
def test_decoder_sizes_of_the_paper(width, output_scale):
    token_prop = TokenProp(48, width=width, output_scale=output_scale)
    assert token_prop.decoder[0].out_channels == 64 * width
    tokens = torch.randn(1, 48, 14, 14)
    assert token_prop.decoder(tokens, output_size(224, 224, output_scale)).shape == (1, 3, output_scale, output_scale)


@pytest.mark.parametrize('reduction, output_scale', [  # full size takes minutes where a CPU has no bf16
    ('sum', 24), pytest.param('sum', 64, marks=pytest.mark.slow), pytest.param('mean', 64, marks=pytest.mark.slow)])
def test_lambda_one_stays_finite_under_bf16(reduction, output_scale, plain_attention):
    """200 iterations; the paper reports NaN."""
    torch.manual_seed(0)
    model = Classifier(tokenizer=dict(type='mmtok.MoToTokenizer'),
                       token_prop=dict(loss_weight=1.0, reduction=reduction, output_scale=output_scale))
    attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(200):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            losses = model(torch.randn(1, 3, 64, 64), mode='loss')
        loss = sum(losses.values())
        assert losses[LOSS_NAME].dtype == torch.float32 and loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_hook_function_moves_the_loss_once():
    torch.manual_seed(0)
    model = Classifier(token_prop=dict())
    detach = attach(model)
    x = torch.randn(2, 3, 64, 64)
    losses = model(x, mode='loss')
    assert set(losses) == {'loss_cls', LOSS_NAME} and losses[LOSS_NAME].requires_grad
    assert model.backbone.token_prop.value is None
    assert isinstance(model(x), torch.Tensor) and model.backbone.token_prop.value is None  # mode='tensor'
    assert LOSS_NAME in model(x, None, 'loss')  # positional, as some callers pass it
    copy.deepcopy(model)  # what mmengine's EMA does
    model.backbone(x)  # an iteration that failed between backbone and head
    stale = model.backbone.token_prop.value
    assert model(x, mode='loss')[LOSS_NAME].item() == pytest.approx(stale.item())
    detach()
    assert not model._forward_hooks and not model._forward_pre_hooks
    with pytest.raises(ConfigError, match='nothing collects its loss'):
        model(x, mode='loss')
    assert model.backbone.token_prop.value is None


def test_gradient_reaches_the_tokenizer_and_the_decoder_only():
    model = Classifier(token_prop=dict())
    attach(model)
    model(torch.randn(1, 3, 64, 64), mode='loss')[LOSS_NAME].backward()
    with_gradient = {name.split('.')[1] for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {'tokenizer', 'token_prop'}


@pytest.mark.parametrize('tokens, scale', [((50, 84), 16), ((31, 20), 32), ((7, 40), 16)], ids=str)
def test_every_token_is_asked_for(tokens, scale):
    """Also where the reconstruction has fewer positions than there are tokens, as in detection."""
    height, width = (8 * side for side in tokens)
    x = torch.randn(1, 12, *tokens, requires_grad=True)
    TokenProp(12, output_scale=scale)(x, torch.randn(1, 3, height, width)).backward()
    weight = x.grad.abs().sum(1)
    assert weight.min() > 1e-3 * weight.median()


def test_decoder_without_hook_is_refused():
    with pytest.raises(ConfigError, match='nothing collects its loss: add custom_hooks='):
        Classifier(token_prop=dict())(torch.randn(1, 3, 64, 64), mode='loss')


def test_inference_knows_no_decoder(monkeypatch):
    torch.manual_seed(0)
    plain, trained = DeiT(NANO, patch_size=8).eval(), DeiT(NANO, patch_size=8, token_prop=dict()).eval()
    plain.load_state_dict(trained.state_dict())  # a checkpoint with decoder, strictly
    monkeypatch.setattr(TokenProp, 'forward', lambda *_: pytest.fail('the decoder ran in eval mode'))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(plain(x)[0], trained(x)[0])

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **(kwargs or {}))
    called = []
    with Operators():
        plain(x)
    of_plain, called = called, []
    with Operators():
        trained(x)
    assert len(called) > 20 and called == of_plain


def test_checkpoint_without_decoder_loads_without_a_word(monkeypatch):
    torch.manual_seed(0)
    plain, trained = Classifier(), Classifier(token_prop=dict())
    before = trained.backbone.token_prop.decoder[0].weight.clone()
    said = []
    monkeypatch.setattr(MMLogger, 'handle', lambda self, record: said.append(record.getMessage()))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_state_dict(trained, plain.state_dict(), strict=True)  # mmengine's own loader
        load_state_dict(plain, trained.state_dict(), strict=True)
        trained.load_state_dict(plain.state_dict())
    assert not said
    assert torch.equal(trained.backbone.token_prop.decoder[0].weight, before)
    assert torch.equal(trained.backbone.trunk.pos_embed, plain.backbone.trunk.pos_embed)


def test_half_a_decoder_is_an_error():
    model = DeiT(NANO, patch_size=8, token_prop=dict())
    state = model.state_dict()
    del state['token_prop.decoder.0.weight']
    with pytest.raises(RuntimeError, match='Missing key'):
        model.load_state_dict(state)


@pytest.mark.parametrize('options, message', [
    (dict(loss='l3'), "token_prop.loss='l3' is unknown; choose from 'l1', 'l2'"),
    (dict(reduction='max'), "token_prop.reduction='max' is unknown; choose from 'sum', 'mean'"),
    (dict(loss_weight=-1.0), r'token_prop.loss_weight=-1.0 \(lambda\) must be a number of at least 0'),
    (dict(loss_weight=float('nan')), 'token_prop.loss_weight=nan'),
    (dict(loss_weight=None), 'token_prop.loss_weight=None'),
    (dict(loss_weight=True), 'token_prop.loss_weight=True'),
    (dict(width=0), 'token_prop.width=0'),
    (dict(output_scale=0), 'token_prop.output_scale=0'),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        DeiT(NANO, token_prop=options)
