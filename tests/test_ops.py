"""`mmtok.ops` against the float64 reference: values and every gradient."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmtok.ops import blocks, dispatch, moto, moto_from_logits, triton_backend
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
# The same oddities at a size that Triton's interpreter gets through
SMALL_SHAPES = {
    'usual': (2, 4, 9, 12, 3),
    'one pixel': (2, 2, 1, 1, 3),
    'one row': (1, 3, 1, 37, 4),
    'one entity': (2, 3, 7, 5, 1),
    'one channel': (2, 1, 9, 9, 4),
    'more entities than pixels': (1, 2, 2, 2, 9),
    'several pixel blocks': (1, 2, 31, 40, 5),
    'several batch blocks': (3, 5, 7, 7, 3),
}
OPTIONS = list(itertools.product(('soft', 'hard'), ('region', 'product'), (False, True)))
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TRITON = pytest.mark.skipif(DEVICE == 'cpu' and not triton_backend.INTERPRETED,
                            reason='neither a GPU nor a Triton whose interpreter does without one')
FAST = ['torch', pytest.param('triton', marks=TRITON)]


def cases():
    """Every backend, shape, option and precision: backend, shape, partition, statistics, masked, dtype, tolerance."""
    for (name, shape), option in itertools.product(SHAPES.items(), OPTIONS):
        label = '-'.join((name, option[0], option[1], 'mask' if option[2] else 'nomask'))
        yield pytest.param('torch', shape, *option, torch.float64, 1e-10, id=f'torch-{label}-f64')
        yield pytest.param('torch', shape, *option, torch.float32, 2e-5, id=f'torch-{label}-f32')
        if option[1] == 'region':
            shape = shape if DEVICE == 'cuda' else SMALL_SHAPES[name]
            yield pytest.param('triton', shape, *option, torch.float32, 2e-5, id=f'triton-{label}-f32', marks=TRITON)


CASES = pytest.mark.parametrize('backend, shape, partition, statistics, masked, dtype, tolerance',
                                list(cases()))


def shape_for(backend, name='usual'):
    return SMALL_SHAPES[name] if backend == 'triton' and DEVICE == 'cpu' else SHAPES[name]


def device_of(backend):
    return DEVICE if backend == 'triton' else 'cpu'


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Whatever the run of the suite gives a test process: small blocks are split among threads in use, too."""
    monkeypatch.setattr(blocks, 'BLOCK_BYTES', dict(cpu=1 << 21))
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


def value_and_grads(function, inputs, upstream, dtype, device='cpu'):
    leaves = [t.to(device, dtype).clone().requires_grad_() for t in inputs]
    value = function(*leaves)
    grads = torch.autograd.grad(value, leaves, upstream.to(device, dtype))
    return [t.detach().cpu() for t in (value, *grads)]


def assert_close(actual, expected, tolerance, names):
    """Largest error relative to the largest magnitude of each tensor, or to 1, the size of what was drawn.

    The floor matters where the truth is 0: dx of a one-pixel map is a difference of numbers near 1/eps.
    """
    for name, a, e in zip(names, actual, expected, strict=True):
        assert a.isfinite().all(), name
        scale = e.abs().max().item()
        error = (a.double() - e).abs().max().item()
        assert error <= tolerance * max(scale, 1.0), f'{name}: error {error:.2e} at magnitude {scale:.2e}'


@CASES
def test_moto(backend, shape, partition, statistics, masked, dtype, tolerance):
    *inputs, mask, upstream = draw(shape, partition, masked)
    # The same float32 numbers go to both, so that only arithmetic is compared.
    inputs, upstream = [t.to(dtype).double() for t in inputs], upstream.to(dtype).double()
    expected = value_and_grads(lambda *a: moto_reference(*a, statistics=statistics, mask=mask), inputs, upstream,
                               torch.float64)
    device = device_of(backend)
    fast_mask = mask if mask is None else mask.to(device)
    actual = value_and_grads(lambda *a: moto(*a, statistics=statistics, mask=fast_mask, backend=backend), inputs,
                             upstream, dtype, device)
    assert_close(actual, expected, tolerance, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))


@CASES
def test_moto_from_logits(backend, shape, partition, statistics, masked, dtype, tolerance):
    x, _, beta, alpha, mask, upstream = draw(shape, partition, masked)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(beta.shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(len(beta), generator=generator, dtype=torch.float64)
    inputs = [t.to(dtype).double() for t in (x, weight, bias, beta, alpha)]
    upstream = upstream.to(dtype).double()

    def reference(x, weight, bias, beta, alpha):
        layout = layout_reference(x, weight, bias, 0.5, partition)
        return moto_reference(x, layout, beta, alpha, statistics=statistics, mask=mask)

    device = device_of(backend)
    fast_mask = mask if mask is None else mask.to(device)

    def fast(*a):
        return moto_from_logits(*a, tau=0.5, partition=partition, statistics=statistics, mask=fast_mask,
                                backend=backend)

    expected = value_and_grads(reference, inputs, upstream, torch.float64)
    actual = value_and_grads(fast, inputs, upstream, dtype, device)
    assert_close(actual, expected, tolerance, ('y', 'dx', 'dweight', 'dbias', 'dbeta', 'dalpha'))


@pytest.mark.parametrize('backend, statistics', [('torch', 'region'), ('torch', 'product'),
                                                 pytest.param('triton', 'region', marks=TRITON)])
@pytest.mark.parametrize('offset', [1e3, -1e3])
def test_offset(offset, backend, statistics):
    """A common offset of a thousand deviations costs no accuracy beyond the rounding of the input itself."""
    x, layout, beta, alpha, _, upstream = draw(shape_for(backend), 'soft', False)
    inputs = [t.float().double() for t in (x + offset, layout, beta, alpha)]
    expected = value_and_grads(lambda *a: moto_reference(*a, statistics=statistics), inputs, upstream, torch.float64)
    actual = value_and_grads(lambda *a: moto(*a, statistics=statistics, backend=backend), inputs, upstream,
                             torch.float32, device_of(backend))
    assert_close(actual, expected, 2e-5, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))


@pytest.mark.parametrize('backend', FAST)
def test_hard_regions_far_apart(backend):
    """Means +-1e3, deviation 1: the variance that the output implies is right within 1e-4."""
    generator = torch.Generator().manual_seed(0)
    side = torch.rand(1, 1, 64, 64, generator=generator) < 0.5
    x = (torch.randn(1, 4, 64, 64, generator=generator) + torch.where(side, 1e3, -1e3)).requires_grad_()
    device = device_of(backend)
    layout = torch.cat([side, ~side], 1).float()
    ones = torch.ones(2, 4)
    y = moto(*(t.to(device) for t in (x, layout, ones, ones * 0)), eps=0.0, backend=backend).cpu()
    for region in (side, ~side):
        inside, normed = x[region.expand_as(x)].view(4, -1).double(), y[region.expand_as(y)].view(4, -1).double()
        implied = inside.var(1, unbiased=False) / normed.var(1, unbiased=False)
        assert torch.allclose(implied, inside.var(1, unbiased=False), rtol=1e-4, atol=0)
    inputs = [t.detach().double() for t in (x, layout, ones, ones * 0)]
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    expected = value_and_grads(moto_reference, inputs, upstream, torch.float64)
    actual = value_and_grads(lambda *a: moto(*a, backend=backend), inputs, upstream, torch.float32, device)
    assert_close(actual, expected, 2e-5, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))


def test_a_mask_of_another_dtype():
    x, layout, beta, alpha, mask = (t.float() for t in draw(SHAPES['usual'], 'soft', True)[:5])
    results = [moto(x, layout, beta, alpha, mask=mask.to(dtype)) for dtype in (torch.bool, torch.float64, torch.uint8)]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize('backend, statistics', [
    *itertools.product(('reference', 'torch'), ('region', 'product')), pytest.param('triton', 'region', marks=TRITON)])
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
    device = device_of(backend)
    fast_mask = mask if mask is None else mask.to(device)
    results = value_and_grads(
        lambda *a: moto(*a, statistics=statistics, mask=fast_mask, backend=backend),
        (x, layout, torch.ones(4, 3), alpha), torch.randn_like(x), dtype, device)
    assert all(result.isfinite().all() for result in results)
    if statistics == 'region' and case in ('constant map', '1x1 map', 'two flat regions'):
        assert torch.allclose(results[0], torch.einsum('nc,bnhw->bchw', alpha, layout).to(dtype), atol=1e-4)


def test_gradcheck():
    *inputs, mask, _ = draw((2, 3, 3, 4, 3), 'soft', True)
    inputs = [t.requires_grad_() for t in inputs]
    for statistics in ('region', 'product'):
        assert torch.autograd.gradcheck(lambda *a, s=statistics: moto(*a, statistics=s, mask=mask), inputs)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('memory_format', ['channels_last', 'transposed', 'strided'])
def test_memory_formats(memory_format, backend):
    device = device_of(backend)
    x, layout, beta, alpha, upstream = (t.float().to(device) for t in draw(shape_for(backend), 'soft', False)
                                        if t is not None)
    expected = value_and_grads(moto, (x, layout, beta, alpha), upstream, torch.float32)
    change = {
        'channels_last': lambda t: t.contiguous(memory_format=torch.channels_last),
        'transposed': lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        'strided': lambda t: t.repeat_interleave(2, 3)[..., ::2],
    }[memory_format]
    leaves = [t.clone().requires_grad_() for t in (x, layout, beta, alpha)]
    y = moto(change(leaves[0]), change(leaves[1]), *leaves[2:], backend=backend)
    actual = [y, *torch.autograd.grad(y, leaves, change(upstream))]
    for a, e in zip(actual, expected, strict=True):
        assert torch.allclose(a.cpu(), e, rtol=1e-5, atol=5e-6)
    if memory_format == 'channels_last':
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=['bf16', 'f16'])
@pytest.mark.parametrize('backend', ['reference', *FAST])
def test_half_precision(dtype, tolerance, backend):
    """Only the input and the output are rounded: statistics are as exact as in float32."""
    x, layout, beta, alpha, _, upstream = draw(shape_for(backend), 'soft', False)
    inputs = [t.to(dtype).double() for t in (x + 5, layout, beta, alpha)]
    expected = value_and_grads(moto_reference, inputs, upstream.to(dtype).double(), torch.float64)
    actual = value_and_grads(lambda *a: moto(*a, backend=backend), inputs, upstream, dtype, device_of(backend))
    assert all(a.dtype == dtype for a in actual)
    assert_close(actual, expected, tolerance, ('y', 'dx', 'dlayout', 'dbeta', 'dalpha'))


@pytest.mark.parametrize('backend', ['reference', *FAST])
def test_autocast_does_not_touch_the_statistics(backend):
    device = device_of(backend)
    x, layout, beta, alpha, _ = (t.float().to(device) for t in draw(shape_for(backend), 'soft', False)
                                 if t is not None)
    weight = torch.randn(beta.shape, device=device)
    for function in (lambda: moto(x, layout, beta, alpha, backend=backend),
                     lambda: moto_from_logits(x, weight, None, beta, alpha, backend=backend)):
        expected = function()
        with torch.autocast(device, dtype=torch.bfloat16):
            actual = function()
        assert actual.dtype == torch.float32 and torch.equal(actual, expected)


@pytest.mark.parametrize('backend', FAST)
def test_runs_are_bitwise_equal(backend):
    x, layout, beta, alpha, _, upstream = draw(shape_for(backend, 'several pixel blocks'), 'soft', False)
    first, second = (value_and_grads(lambda *a: moto(*a, backend=backend), (x, layout, beta, alpha), upstream,
                                     torch.float32, device_of(backend)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize('change, message', [
    (dict(statistics='mean'), "statistics='mean' is unknown"),
    (dict(backend='cuda'), "backend='cuda' is unknown"),
    (dict(layout=torch.ones(1, 3, 4, 4)), 'layout has shape'),
    (dict(beta=torch.ones(2, 5), alpha=torch.ones(2, 5)), 'x has 3 channels'),
    (dict(mask=torch.ones(1, 1, 4, 5)), 'mask has shape'),
    (dict(x=torch.ones(1, 3, 4)), 'x must be'),
    (dict(x=torch.ones(1, 3, 4, 4, dtype=torch.int64)), 'floating-point'),
    (dict(eps=-1.0), 'eps=-1.0 must be at least 0'),
])
def test_bad_input_is_named(change, message):
    good = dict(x=torch.ones(1, 3, 4, 4), layout=torch.ones(1, 2, 4, 4) / 2, beta=torch.ones(2, 3),
                alpha=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=message):
        moto(**{**good, **change})


@pytest.mark.parametrize('change, message', [
    (dict(weight=torch.ones(2, 4)), 'the layout filters have shape'),
    (dict(bias=torch.ones(3)), r'bias has shape \(3,\)'),
    (dict(tau=0.0), 'tau=0.0 must be a positive number'),
])
def test_bad_filters_are_named(change, message):
    good = dict(x=torch.ones(1, 3, 4, 4), weight=torch.ones(2, 3), bias=None, beta=torch.ones(2, 3),
                alpha=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=message):
        moto_from_logits(**{**good, **change})


def test_backend_can_be_forced_by_the_environment(monkeypatch):
    inputs = torch.ones(1, 3, 4, 4), torch.ones(1, 2, 4, 4) / 2, torch.ones(2, 3), torch.zeros(2, 3)
    monkeypatch.setenv('MMTOK_BACKEND', 'nonsense')
    with pytest.raises(ValueError, match="MMTOK_BACKEND='nonsense'"):
        moto(*inputs)
    monkeypatch.setenv('MMTOK_BACKEND', 'reference')
    called = []
    monkeypatch.setattr(dispatch, 'moto_reference', lambda *a: called.append(a) or moto_reference(*a))
    moto(*inputs)
    moto(*inputs, backend='torch')
    assert len(called) == 1


def test_a_trace_holds_operators_for_maps_of_any_size():
    """FLOP counters trace; exporters do, and keep the graph."""
    def op(x, weight, beta, alpha):
        layout = layout_reference(x, weight, None, 1.0, 'soft')
        return moto_from_logits(x, weight, None, beta, alpha, backend='torch') + moto(x, layout, beta, alpha)

    draws = [torch.randn(2, 3, 5, 5), *torch.randn(3, 4, 3)]
    traced = torch.jit.trace(op, draws)
    assert {node.kind().split('::')[0] for node in traced.graph.nodes()} <= {'aten', 'prim'}  # no Python function
    draws[0] = torch.randn(1, 3, 40, 60)
    assert torch.allclose(traced(*draws), op(*draws), atol=1e-5)


def test_a_map_without_values_gives_its_shape():
    """As tools ask that look at shapes alone."""
    with FakeTensorMode():
        x, weight = torch.empty(2, 3, 40, 40, requires_grad=True), torch.empty(4, 3)
        y = moto_from_logits(x, weight, None, weight, weight)
        y.sum().backward()
    assert y.shape == x.grad.shape == (2, 3, 40, 40)


@pytest.mark.parametrize('backend', ['reference', *FAST])
@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (2, 3, 0, 5)], ids=str)
def test_empty_maps(shape, backend):
    device = device_of(backend)
    x = torch.ones(shape, requires_grad=True, device=device)
    layout = torch.ones(shape[0], 2, *shape[2:], device=device)
    moto(x, layout, torch.ones(2, 3, device=device), torch.zeros(2, 3, device=device), backend=backend).sum().backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize('backend', FAST)
def test_frozen_map_still_gives_gradients_of_beta_and_alpha(backend):
    device = device_of(backend)
    x, layout, beta, alpha, upstream = (t.float().to(device) for t in draw(shape_for(backend), 'soft', False)
                                        if t is not None)
    expected = value_and_grads(lambda *a: moto(*a, backend=backend), (x, layout, beta, alpha), upstream, torch.float32,
                               device)[3:]
    beta, alpha = beta.requires_grad_(), alpha.requires_grad_()
    actual = torch.autograd.grad(moto(x, layout, beta, alpha, backend=backend), (beta, alpha), upstream)
    assert all(torch.equal(a.cpu(), e) for a, e in zip(actual, expected, strict=True))
