"""`mmtok.ops` against the float64 reference: values and every gradient."""

import itertools
import random

import pytest
import torch

from mmtok.ops import dispatch, moto, moto_from_logits
from mmtok.ops.reference import layout_reference, moto_reference

# (B, C, H, W, n), labelled by what is odd about it
SHAPES = {
    'usual': (2, 16, 12, 20, 8),
    'one pixel': (3, 4, 1, 1, 3),
    'one row': (1, 5, 1, 37, 4),
    'one entity': (2, 3, 7, 5, 1),
    'one channel': (2, 1, 9, 9, 4),
    'more entities than pixels': (1, 6, 2, 2, 9),
    'several pixel blocks': (1, 16, 150, 130, 5),
    'several batch blocks': (90, 64, 7, 7, 3),
}
OPTIONS = list(itertools.product(('soft', 'hard'), ('region', 'product'), (False, True)))
IDS = ['-'.join((p, s, 'mask' if m else 'nomask')) for p, s, m in OPTIONS]


@pytest.fixture(autouse=True)
def two_threads():
    """Whatever the run of the suite gives a test process: blocks are split among threads in use, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def draw(shape, partition, masked, seed=0):
    """Float64 inputs of `moto`: x, layout, beta, alpha, mask, and a gradient of the output."""
    batch, channels, height, width, n = shape
    generator = torch.Generator().manual_seed(seed)
    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)
    logits = normal(batch, n, height, width)
    layout = logits.softmax(1)
    if partition == 'hard':
        layout = torch.zeros_like(layout).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    mask = None
    if masked:
        mask = torch.ones(batch, 1, height, width, dtype=torch.bool)
        mask[0, :, :, -(width // 3 or 1):] = False  # a 1x1 map is padding altogether
        mask[-1, :, -(height // 2):] = height < 2
    x = normal(batch, channels, height, width)
    return x, layout, 1 + 0.3 * normal(n, channels), 0.3 * normal(n, channels), mask, normal(*x.shape)


def value_and_grads(function, inputs, upstream, dtype):
    leaves = [t.to(dtype).clone().requires_grad_() for t in inputs]
    value = function(*leaves)
    grads = torch.autograd.grad(value, leaves, upstream.to(dtype))
    return [value.detach(), *grads]


def assert_close(actual, expected, tolerance, names):
    """Largest error relative to the largest magnitude of each tensor, or to 1, the size of what was drawn.

    The floor matters where the truth is 0: dx of a one-pixel map is a difference of numbers near 1/eps.
    """
    for name, a, e in zip(names, actual, expected, strict=True):
        assert a.isfinite().all(), name
        scale = e.abs().max().item()
        error = (a.double() - e).abs().max().item()
        assert error <= tolerance * max(scale, 1.0), f'{name}: error {error:.2e} at magnitude {scale:.2e}'


@pytest.mark.parametrize('partition, statistics, masked', OPTIONS, ids=IDS)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=['f64', 'f32'])
def test_moto(shape, partition, statistics, masked, dtype, tolerance):
    *inputs, mask, upstream = draw(shape, partition, masked)
    # The same float32 numbers go to both, so that only arithmetic is compared.
    inputs, upstream = [t.to(dtype).double() for t in inputs], upstream.to(dtype).double()
    expected = value_and_grads(lambda *a: moto_reference(*a, statistics=statistics, mask=mask), inputs, upstream,
                               torch.float64)
    actual = value_and_grads(lambda *a: moto(*a, statistics=statistics, mask=mask, backend='torch'), inputs, upstream,
                             dtype)
    assert_close(actual, expected, tolerance, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))


@pytest.mark.parametrize('partition, statistics, masked', OPTIONS, ids=IDS)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=['f64', 'f32'])
def test_moto_from_logits(shape, partition, statistics, masked, dtype, tolerance):
    x, _, beta, alpha, mask, upstream = draw(shape, partition, masked)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(beta.shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(len(beta), generator=generator, dtype=torch.float64)
    inputs = [t.to(dtype).double() for t in (x, weight, bias, beta, alpha)]
    upstream = upstream.to(dtype).double()

    def reference(x, weight, bias, beta, alpha):
        layout = layout_reference(x, weight, bias, 0.5, partition)
        return moto_reference(x, layout, beta, alpha, statistics=statistics, mask=mask)

    def fast(*a):
        return moto_from_logits(*a, tau=0.5, partition=partition, statistics=statistics, mask=mask, backend='torch')

    expected = value_and_grads(reference, inputs, upstream, torch.float64)
    actual = value_and_grads(fast, inputs, upstream, dtype)
    assert_close(actual, expected, tolerance, ('y', 'dx', 'dweight', 'dbias', 'dbeta', 'dalpha'))


@pytest.mark.parametrize('statistics', ['region', 'product'])
@pytest.mark.parametrize('offset', [1e3, -1e3])
def test_offset(offset, statistics):
    """A common offset of a thousand deviations costs no accuracy beyond the rounding of the input itself."""
    x, layout, beta, alpha, _, upstream = draw(SHAPES['usual'], 'soft', False)
    inputs = [t.float().double() for t in (x + offset, layout, beta, alpha)]
    expected = value_and_grads(lambda *a: moto_reference(*a, statistics=statistics), inputs, upstream, torch.float64)
    actual = value_and_grads(lambda *a: moto(*a, statistics=statistics, backend='torch'), inputs, upstream,
                             torch.float32)
    assert_close(actual, expected, 2e-5, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))


def test_hard_regions_far_apart():
    """Means +-1e3, deviation 1: the variance that the output implies is right within 1e-4."""
    generator = torch.Generator().manual_seed(0)
    side = torch.rand(1, 1, 64, 64, generator=generator) < 0.5
    x = (torch.randn(1, 4, 64, 64, generator=generator) + torch.where(side, 1e3, -1e3)).requires_grad_()
    layout = torch.cat([side, ~side], 1).float()
    ones = torch.ones(2, 4)
    y = moto(x, layout, ones, ones * 0, eps=0.0, backend='torch')
    for region in (side, ~side):
        inside, normed = x[region.expand_as(x)].view(4, -1).double(), y[region.expand_as(y)].view(4, -1).double()
        implied = inside.var(1, unbiased=False) / normed.var(1, unbiased=False)
        assert torch.allclose(implied, inside.var(1, unbiased=False), rtol=1e-4, atol=0)
    inputs = [t.detach().double() for t in (x, layout, ones, ones * 0)]
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    expected = value_and_grads(moto_reference, inputs, upstream, torch.float64)
    actual = value_and_grads(lambda *a: moto(*a, backend='torch'), inputs, upstream, torch.float32)
    assert_close(actual, expected, 2e-5, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))


@pytest.mark.parametrize('statistics', ['region', 'product'])
@pytest.mark.parametrize('backend', ['reference', 'torch'])
@pytest.mark.parametrize('case', ['empty region', 'constant map', '1x1 map', 'all padding', 'two flat regions'])
def test_degenerate(case, backend, statistics):
    dtype = torch.float64 if backend == 'reference' else torch.float32  # the formula at 1e3 / eps needs float64
    side = 1 if case == '1x1 map' else 6
    x = torch.randn(2, 3, side, side)
    layout = torch.randn(2, 4, side, side).softmax(1)
    mask = None
    if case == 'empty region':
        layout = torch.zeros_like(layout)
        layout[:, 0] = 1
    elif case == 'constant map':
        x = torch.full_like(x, 1e3)
    elif case == 'all padding':
        mask = torch.zeros(2, 1, side, side)
    elif case == 'two flat regions':
        x = torch.full_like(x, 0.3)
        x[..., :2] = 0.7
        layout = torch.zeros_like(layout)
        layout[:, 1, :, :2], layout[:, 2, :, 2:] = 1, 1
    alpha = torch.randn(4, 3)
    results = value_and_grads(
        lambda *a: moto(*a, statistics=statistics, mask=mask, backend=backend), (x, layout, torch.ones(4, 3), alpha),
        torch.randn_like(x), dtype)
    assert all(result.isfinite().all() for result in results)
    if statistics == 'region' and case in ('constant map', '1x1 map', 'two flat regions'):
        assert torch.allclose(results[0], torch.einsum('nc,bnhw->bchw', alpha, layout).to(dtype), atol=1e-4)


def test_gradcheck():
    *inputs, mask, _ = draw((2, 3, 3, 4, 3), 'soft', True)
    inputs = [t.requires_grad_() for t in inputs]
    for statistics in ('region', 'product'):
        assert torch.autograd.gradcheck(lambda *a, s=statistics: moto(*a, statistics=s, mask=mask), inputs)


@pytest.mark.parametrize('memory_format', ['channels_last', 'transposed', 'strided'])
def test_memory_formats(memory_format):
    x, layout, beta, alpha, _, upstream = (t if t is None else t.float() for t in draw(SHAPES['usual'], 'soft', False))
    expected = value_and_grads(moto, (x, layout, beta, alpha), upstream, torch.float32)
    change = {
        'channels_last': lambda t: t.contiguous(memory_format=torch.channels_last),
        'transposed': lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        'strided': lambda t: t.repeat_interleave(2, 3)[..., ::2],
    }[memory_format]
    leaves = [t.clone().requires_grad_() for t in (x, layout, beta, alpha)]
    y = moto(change(leaves[0]), change(leaves[1]), *leaves[2:])
    actual = [y, *torch.autograd.grad(y, leaves, change(upstream))]
    for a, e in zip(actual, expected, strict=True):
        assert torch.allclose(a, e, rtol=1e-5, atol=1e-6)
    if memory_format == 'channels_last':
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=['bf16', 'f16'])
def test_half_precision(dtype, tolerance):
    """Only the input and the output are rounded: statistics are as exact as in float32."""
    x, layout, beta, alpha, _, upstream = draw(SHAPES['usual'], 'soft', False)
    inputs = [t.to(dtype).double() for t in (x + 5, layout, beta, alpha)]
    expected = value_and_grads(moto_reference, inputs, upstream.to(dtype).double(), torch.float64)
    for backend in ('torch', 'reference'):
        actual = value_and_grads(lambda *a, b=backend: moto(*a, backend=b), inputs, upstream, dtype)
        assert all(a.dtype == dtype for a in actual)
        assert_close(actual, expected, tolerance, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))


def test_autocast_does_not_touch_the_statistics():
    x, layout, beta, alpha, _, _ = (t if t is None else t.float() for t in draw(SHAPES['usual'], 'soft', False))
    weight = torch.randn(beta.shape)
    for function in (lambda: moto(x, layout, beta, alpha), lambda: moto_from_logits(x, weight, None, beta, alpha),
                     lambda: moto_from_logits(x, weight, None, beta, alpha, backend='reference')):
        expected = function()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            actual = function()
        assert actual.dtype == torch.float32 and torch.equal(actual, expected)


def test_runs_are_bitwise_equal():
    x, layout, beta, alpha, _, upstream = draw(SHAPES['several pixel blocks'], 'soft', False)
    first, second = (value_and_grads(moto, (x, layout, beta, alpha), upstream, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_memory_never_holds_entities_times_channels(monkeypatch):
    """No tensor of the torch backend has B*n*C*H*W elements, in forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor):
                    self.numel = max(self.numel, t.numel())
            return out

    x = torch.randn(1, 16, 256, 256, requires_grad=True)
    layout = torch.randn(1, 8, 256, 256).softmax(1).requires_grad_()
    with Largest() as seen:
        moto(x, layout, torch.ones(8, 16), torch.zeros(8, 16)).sum().backward()
    assert seen.numel <= x.numel()


@pytest.mark.parametrize('change, message', [
    (dict(statistics='mean'), "statistics='mean' is unknown"),
    (dict(backend='cuda'), "backend='cuda' is unknown"),
    (dict(layout=torch.ones(1, 3, 4, 4)), 'layout has shape'),
    (dict(beta=torch.ones(2, 5), alpha=torch.ones(2, 5)), 'x has 3 channels'),
    (dict(mask=torch.ones(1, 1, 4, 5)), 'mask has shape'),
    (dict(x=torch.ones(1, 3, 4)), 'x must be'),
    (dict(x=torch.ones(1, 3, 4, 4, dtype=torch.int64)), 'floating-point'),
])
def test_bad_input_is_named(change, message):
    good = dict(x=torch.ones(1, 3, 4, 4), layout=torch.ones(1, 2, 4, 4) / 2, beta=torch.ones(2, 3),
                alpha=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=message):
        moto(**{**good, **change})


def test_backend_can_be_forced_by_the_environment(monkeypatch):
    inputs = torch.ones(1, 3, 4, 4), torch.ones(1, 2, 4, 4) / 2, torch.ones(2, 3), torch.zeros(2, 3)
    monkeypatch.setenv('MMTOK_BACKEND', 'nonsense')
    with pytest.raises(ValueError, match='nonsense'):
        moto(*inputs)
    monkeypatch.setenv('MMTOK_BACKEND', 'reference')
    called = []
    monkeypatch.setattr(dispatch, 'moto_reference', lambda *a: called.append(a) or moto_reference(*a))
    moto(*inputs)
    moto(*inputs, backend='torch')
    assert len(called) == 1


@pytest.mark.parametrize('backend', ['reference', 'torch'])
@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (2, 3, 0, 5)], ids=str)
def test_empty_maps(shape, backend):
    x = torch.ones(shape, requires_grad=True)
    layout = torch.ones(shape[0], 2, *shape[2:])
    moto(x, layout, torch.ones(2, 3), torch.zeros(2, 3), backend=backend).sum().backward()
    assert x.grad.shape == shape


def test_frozen_map_still_gives_gradients_of_beta_and_alpha():
    x, layout, beta, alpha, _, upstream = (t if t is None else t.float() for t in draw(SHAPES['usual'], 'soft', False))
    expected = value_and_grads(moto, (x, layout, beta, alpha), upstream, torch.float32)[3:]
    beta, alpha = beta.requires_grad_(), alpha.requires_grad_()
    actual = torch.autograd.grad(moto(x, layout, beta, alpha), (beta, alpha), upstream)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize('block', range(4))
def test_random_cases(block):
    """Shapes, entities, partitions, statistics, masks, offsets and memory formats at random; both operators."""
    rng = random.Random(block)
    for case in range(60):
        shape = (rng.choice([1, 2, 3]), rng.randint(1, 24), rng.randint(1, 24), rng.randint(1, 24), rng.randint(1, 12))
        partition, statistics = rng.choice(['soft', 'hard']), rng.choice(['region', 'product'])
        x, layout, beta, alpha, mask, upstream = draw(shape, partition, rng.random() < 0.5, seed=1000 * block + case)
        offset = rng.choice([0, 0, 1, 1e3])
        if statistics == 'region':
            x = x + offset * torch.where(layout.argmax(1, keepdim=True) % 2 == 1, 1, -1)
        inputs = [t.float().double() for t in (x, layout, beta, alpha)]
        upstream = upstream.float().double()
        expected = value_and_grads(lambda *a, s=statistics, m=mask: moto_reference(*a, statistics=s, mask=m), inputs,
                                   upstream, torch.float64)
        last = rng.random() < 0.3

        def fast(x, *rest, s=statistics, m=mask, last=last):
            x = x.contiguous(memory_format=torch.channels_last) if last else x
            return moto(x, *rest, statistics=s, mask=m, backend='torch')
        actual = value_and_grads(fast, inputs, upstream, torch.float32)
        assert_close(actual, expected, 5e-5, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))
