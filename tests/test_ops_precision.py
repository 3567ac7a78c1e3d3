"""In which precision and about which origin the torch backend works, and that its results do not show it."""

import math

import pytest
import torch

from mmtok.ops import blocks, moto, moto_from_logits, torch_backend
from mmtok.ops.reference import layout_reference, moto_reference
from test_ops import (
    FAST,
    SHAPES,
    assert_close,
    device_of,
    draw,
    two_threads,  # noqa: F401  a fixture for all
    value_and_grads,
)


@pytest.fixture
def used(monkeypatch) -> list[torch_backend.Inputs]:
    """What the torch backend worked on, call by call."""
    found, fill = [], torch_backend.Inputs.__post_init__
    monkeypatch.setattr(torch_backend.Inputs, '__post_init__', lambda inputs: found.append(inputs) or fill(inputs))
    return found


@pytest.fixture
def found(monkeypatch) -> list[str]:
    """What `why_too_coarse` answered."""
    answers, look = [], torch_backend.why_too_coarse
    monkeypatch.setattr(torch_backend, 'why_too_coarse', lambda *a: answers.append(look(*a)) or answers[-1])
    return answers


@pytest.mark.parametrize('case, reasons', [
    ('usual', ['']), ('logits', ['']), ('product', ['']), ('far apart', ['spread']), ('constant', ['spread']),
    ('far from 0', ['range']), ('large', ['range']), ('sharp', ['range']), ('float64', []), ('argmax', []),
    ('no eps', [])])
def test_precision_of_blocks(case, reasons, used, found):
    """Float32 where it is as good; what it cannot do is seen, and done again with an origin, or in float64."""
    x, layout, beta, alpha = (t.float() for t in draw(SHAPES['several pixel blocks'], 'soft', False)[:4])
    weight = torch.randn(beta.shape, generator=torch.Generator().manual_seed(0))
    if case == 'far apart':
        layout = torch.zeros_like(layout).scatter_(1, layout.argmax(1, keepdim=True), 1.0)
        x = x + 10 * layout.argmax(1, keepdim=True)
    elif case == 'constant':
        x[:, 0] = 3.0
    elif case == 'far from 0':
        x = x + 1e3
    x = x * {'large': 1e15, 'sharp': 1e3}.get(case, 1)
    if case == 'float64':
        x = x.double()
    if case in ('logits', 'far from 0', 'sharp', 'argmax'):
        moto_from_logits(x, weight, None, beta, alpha, partition='hard' if case == 'argmax' else 'soft')
    else:
        moto(x, layout, beta, alpha, eps=0.0 if case == 'no eps' else 1e-5,
             statistics='product' if case == 'product' else 'region')
    assert found == reasons
    assert [inputs.work for inputs in used] == [torch.float32 if reasons == [''] else torch.float64]


@pytest.mark.parametrize('scale, offset', [(1, 0), (1, 3), (1, 20), (1, 60), (0.1, 0), (70, 0)])
@pytest.mark.parametrize('start', [True, False], ids=['start', 'trained'])
def test_float32_gradients_where_they_nearly_cancel(start, scale, offset):
    """Of the layout's filters, which see the entities' differences alone: relative to their own size, at C = 16, n = 8.

    With the module's start values all entities are alike but for their statistics.
    """
    x, _, beta, alpha, _, upstream = draw((2, 16, 20, 30, 8), 'soft', False)
    if start:
        beta, alpha = torch.ones_like(beta), torch.zeros_like(alpha)
    x = (scale * x + offset).float().double()
    weight, bias = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = x, weight.float().double(), bias[:, 0].float().double(), beta.float().double(), alpha.float().double()

    def reference(x, weight, bias, beta, alpha):
        return moto_reference(x, layout_reference(x, weight, bias, 0.1, 'soft'), beta, alpha)

    upstream = upstream.float().double()
    expected = value_and_grads(reference, inputs, upstream, torch.float64)
    actual = value_and_grads(moto_from_logits, inputs, upstream, torch.float32)
    for name, a, e in zip(('y', 'dx', 'dweight', 'dbias', 'dbeta', 'dalpha'), actual, expected, strict=True):
        assert (a - e).abs().max() <= 1e-4 * e.abs().max(), name


FAR = 5.0  # deviations from 0, where a shift is worth its pass
NAMES = ('y', 'dx', 'dlayout', 'dbeta', 'dalpha')


@pytest.mark.parametrize('case, shape, shifted, reasons', [
    ('around 0', (1, 16, 150, 130, 5), False, ['']), ('far', (1, 16, 150, 130, 5), True, ['']),
    ('far after the first rows', (1, 16, 150, 130, 5), True, ['']),
    ('one far image', (6, 16, 20, 20, 5), True, ['']),
    ('one far image that is not looked at', (2, 2048, 7, 20, 3), True, ['spread', ''])],
    ids=lambda value: value if isinstance(value, str) else '')
def test_a_map_is_shifted_where_it_helps(case, shape, shifted, reasons, used, found):
    """Whatever the pixels that were looked at told, float32 does, and backward goes by forward's choice."""
    x, layout, beta, alpha, _, upstream = draw(shape, 'soft', False)
    if case == 'far':
        x += FAR
    elif case == 'far after the first rows':
        x[:, :, 2:] += FAR
    elif 'image' in case:
        x[-1:] += FAR
    inputs = [t.float().double() for t in (x, layout, beta, alpha)]
    expected = value_and_grads(moto_reference, inputs, upstream, torch.float64)
    actual = value_and_grads(moto, inputs, upstream, torch.float32)
    assert_close(actual, expected, 2e-5, NAMES)
    assert found == reasons
    assert [(inputs.work, inputs.shifted, inputs.origin is not None) for inputs in used] == [
        (torch.float32, shifted, shifted)] * 2


@pytest.mark.parametrize('pixels', [200, 5000])
def test_lies_around_zero(pixels):
    """The mean of every channel within a deviation, as far as a few pixels tell; not where there is something else."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, pixels)
    x = (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True)
    assert blocks.lies_around_zero(torch.zeros(2, 4, pixels))
    for shift, answer in ((0, True), (0.8, True), (1.2, False), (-1.2, False), (math.nan, False), (math.inf, False)):
        shifted = x.clone()
        shifted[1, 2] += shift
        assert blocks.lies_around_zero(shifted) == answer
    assert blocks.lies_around_zero(x.to(torch.bfloat16))


@pytest.mark.parametrize('answer', [False, True])
def test_whether_a_map_lies_around_zero_is_asked_once(answer, monkeypatch):
    """At the threshold another order of summation would answer otherwise, and the statistics are about one origin."""
    answers = iter([answer])
    monkeypatch.setattr(blocks, 'lies_around_zero', lambda x: next(answers))
    x, layout, beta, alpha, _, upstream = draw(SHAPES['usual'], 'soft', False)
    inputs = [t.float().double() for t in (x + 1, layout, beta, alpha)]
    expected = value_and_grads(moto_reference, inputs, upstream, torch.float64)
    assert_close(value_and_grads(moto, inputs, upstream, torch.float32), expected, 2e-5, NAMES)


def test_threads_share_the_channels_of_a_large_map(monkeypatch):
    """Of a given layout; the groups change nothing but the order of the work."""
    count, groups = torch_backend.groups_of, []
    monkeypatch.setattr(torch_backend, 'groups_of', lambda channels: groups.append(count(channels)) or groups[-1])
    x, layout, beta, alpha = (t.float() for t in draw(SHAPES['several pixel blocks'], 'soft', False)[:4])
    grouped = moto(x, layout, beta, alpha)
    assert groups == [4]  # of two threads
    monkeypatch.setattr(torch_backend, 'groups_of', lambda channels: 1)
    assert torch.allclose(moto(x, layout, beta, alpha), grouped, rtol=1e-5, atol=1e-5)
    assert [count(channels) for channels in (1, 3, 7, 24)] == [1, 3, 7, 4]


@pytest.mark.parametrize('backend', FAST)
def test_gradients_of_filters_where_one_entity_leads(backend):
    """Each filter's to a few roundings of its own size: that of the leader is the small sum of the others'."""
    torch.manual_seed(0)
    x, upstream = torch.randn(1, 2, 6, 7, dtype=torch.float64), torch.randn(1, 2, 6, 7, dtype=torch.float64)
    weight, bias = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.0, -160.0, -170.0], dtype=torch.float64)
    beta, alpha = torch.randn(2, 3, 2, dtype=torch.float64)
    weight, bias, x, beta, alpha, upstream = (t.float() for t in (weight, bias, x, beta, alpha, upstream))

    def gradients(function, convert):
        leaves = [convert(t).requires_grad_() for t in (weight, bias)]
        return torch.autograd.grad(function(convert(x), *leaves, convert(beta), convert(alpha)), leaves,
                                   convert(upstream))

    def reference(x, weight, bias, beta, alpha):
        return moto_reference(x, layout_reference(x, weight, bias, 0.1, 'soft'), beta, alpha)

    device = device_of(backend)
    expected = gradients(reference, lambda t: t.double())
    actual = gradients(lambda *t: moto_from_logits(*t, backend=backend), lambda t: t.clone().to(device))
    for a, e in zip(actual, expected, strict=True):
        a, e = (t.cpu().double().reshape(3, -1) for t in (a, e))
        assert ((a - e).abs().amax(1) <= 2e-5 * e.abs().amax(1)).all()


@pytest.mark.parametrize('backend', FAST)
def test_a_region_that_is_one_pixel_and_a_trace_of_others(backend):
    """Its deviation is 1e-6, of which float64 would keep nothing beside a mean of 3e5."""
    torch.manual_seed(0)
    x = (3e5 + torch.randn(1, 2, 1, 7)).double()  # multiples of 1/32
    first = torch.tensor([1.0, 4e-12, 7e-12, 3e-21, 9e-30, 3e-31, 4e-37])
    layout = torch.stack([first, 1 - first])[None, :, None].double()
    beta, alpha, upstream = torch.randn(2, 2).double(), torch.randn(2, 2).double(), torch.randn(1, 2, 1, 7).double()

    def gradient(function, convert, x):
        leaf = convert(layout).requires_grad_()
        y = function(convert(x), leaf, convert(beta), convert(alpha))
        return torch.autograd.grad(y, leaf, convert(upstream))[0].cpu().double()

    device = device_of(backend)
    expected = gradient(moto_reference, lambda t: t.clone(), x - x[..., :1])  # regions do not see what all share
    actual = gradient(lambda *t: moto(*t, backend=backend), lambda t: t.to(device, torch.float32), x)
    assert (actual - expected).abs().max() <= 5e-5 * expected.abs().max()
