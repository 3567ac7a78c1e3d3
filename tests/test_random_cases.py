"""Random calls of every backend against the float64 reference: shapes, entities, strides, dtypes, extreme values.

A case is drawn from its number alone: `check_case(1234, 'torch')` runs one again.
"""

import random

import pytest
import torch

from mmtok.ops import blocks, moto, moto_from_logits
from mmtok.ops.reference import layout_reference, moto_reference
from test_ops import DEVICE, TRITON, device_of

# What float32 and the rounding of half precision leave, of the largest magnitude of a result, or of 1.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
STRIDES = {
    'contiguous': lambda t: t,
    'channels_last': lambda t: t.contiguous(memory_format=torch.channels_last),
    'transposed': lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    'every other column': lambda t: t.repeat_interleave(2, 3)[..., ::2],
    'part of the channels': lambda t: torch.cat([t, t], 1)[:, :t.shape[1]],
    'one image for all': lambda t: t[:1].expand(t.shape),
}


def draw_values(kind, shape, regions, generator):
    """(B,C,H,W) float64; `regions (B,1,H,W)` numbers the entity that owns a pixel."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == 'huge mean':
        return x + 1e6 * torch.randn(1, shape[1], 1, 1, generator=generator, dtype=torch.float64)
    if kind == 'regions apart':
        return x + 1e3 * (regions % 3 - 1)
    if kind == 'denormal':
        return x * 1e-40
    if kind == 'tiny':
        return x * 1e-12
    if kind == 'large':
        return x * 1e15
    if kind == 'all equal':
        return torch.full_like(x, x.flatten()[0])
    if kind == 'flat regions':
        return (regions + torch.arange(shape[1])[:, None, None] * 0.7).double()
    if kind == 'one flat channel':
        x[:, 0] = 3.14159
        return x
    if kind == 'whole numbers':
        return x.mul(2).round()
    return x


VALUES = ('plain', 'plain', 'huge mean', 'regions apart', 'denormal', 'tiny', 'large', 'all equal', 'flat regions',
          'one flat channel', 'whole numbers')
LAYOUTS = ('soft', 'sharp', 'one-hot', 'one owner', 'half empty')


def draw_layout(kind, shape, generator):
    """(B,n,H,W) float64."""
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == 'soft':
        return logits.softmax(1)
    if kind == 'sharp':
        return (30 * logits).softmax(1)
    owner = logits.argmax(1, keepdim=True)
    if kind == 'one owner':
        owner = torch.zeros_like(owner)
    if kind == 'half empty':
        owner = owner // 2
    return torch.zeros_like(logits).scatter_(1, owner, 1.0)


def conditioning(x, layout, real):
    """How often the deviation of a region goes, at most, into its mean's distance from the channel's, and from 0.

    0 for regions that are flat; whether there are any comes third.
    """
    share, x = (layout * real)[:, :, None], x[:, None]
    mass = share.sum((3, 4), keepdim=True)
    mean = (share * x).sum((3, 4), keepdim=True) / mass.clamp(min=1e-6)
    deviation = ((share * (x - mean) ** 2).sum((3, 4), keepdim=True) / mass.clamp(min=1e-6)).sqrt()
    flat = deviation <= 1e-12 * mean.abs()
    distances = (mean - x.mean((3, 4), keepdim=True)).abs(), mean.abs()
    return *(torch.where(flat, 0, d / deviation).max().item() for d in distances), (flat & (mass > 1e-6)).any().item()


def check_case(number: int, backend: str) -> None:
    """In half of the cases the torch backend cuts the map into many small blocks, as it does large maps."""
    with pytest.MonkeyPatch.context() as patch:
        rng = random.Random(f'blocks of {number}')
        if rng.random() < 0.5:
            patch.setattr(blocks, 'WHOLE_ELEMENTS', 0)
            patch.setattr(blocks, 'CHUNK', rng.randint(5, 64))
            patch.setattr(blocks, 'BLOCK_BYTES', dict(cpu=1 << rng.randint(8, 15)))
        compare_case(number, backend)


def compare_case(number: int, backend: str) -> None:
    rng, generator = random.Random(number), torch.Generator().manual_seed(number)
    side = 9 if backend == 'triton' and DEVICE == 'cpu' else 24  # Triton's interpreter is slow
    batch, height, width = rng.choice([1, 1, 2, 3]), rng.randint(1, side), rng.randint(1, side)
    channels, n = rng.randint(1, 4 if side == 9 else 24), rng.choice([1, 2, 3, 4, 5, 8, 12, 17])
    dtypes = [torch.float32, torch.float32, torch.float16, torch.bfloat16]
    dtype = rng.choice(dtypes if backend == 'triton' else [*dtypes, torch.float64])
    statistics = 'region' if backend == 'triton' else rng.choice(['region', 'region', 'product'])
    partition, from_logits = rng.choice(['soft', 'hard']), rng.random() < 0.5
    kinds = [kind for kind in VALUES if dtype in (torch.float32, torch.float64) or kind not in ('large', 'huge mean')]
    if statistics == 'product':  # of X * L over all positions: not of what is flat or far apart
        kinds = ['plain', 'tiny', 'whole numbers']
    kind = rng.choice(kinds)
    layout = draw_layout(rng.choice(LAYOUTS), (batch, n, height, width), generator)
    x = draw_values(kind, (batch, channels, height, width), layout.argmax(1, keepdim=True), generator)
    # Gradients of several images may be beyond float16 where their sum is not.
    strides = [name for name in STRIDES if dtype != torch.float16 or name != 'one image for all']
    change = STRIDES[rng.choice(strides)]
    mask = None
    if rng.random() < 0.4:
        mask = torch.rand(batch, 1, height, width, generator=generator) < rng.choice([0.0, 0.3, 0.9])
    x, layout = change(x).to(dtype).double(), layout.to(dtype).double()

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).double()
    beta, alpha, upstream = normal(n, channels), normal(n, channels), normal(*x.shape)
    weight, bias = normal(n, channels), normal(n)
    if kind in ('regions apart', 'large', 'huge mean') and from_logits:  # so that logits stay of use
        weight = (weight * 1e-3).to(dtype).double()
    inputs = (x, weight, bias, beta, alpha) if from_logits else (x, layout, beta, alpha)

    # Regions do not see what a channel has in common. Beside a mean of 1e6 even the reference would lose a deviation of
    # 1e-12, which one pixel that has nearly all of a region leaves it.
    common = x[:, :, :1, :1] if kind == 'huge mean' else 0.0

    def reference(x, *rest):
        layout = layout_reference(x, *rest[:2], 0.1, partition) if from_logits else rest[0]
        return moto_reference(x - common, layout, *rest[-2:], statistics=statistics, mask=mask)

    device = device_of(backend)
    options = dict(statistics=statistics, mask=None if mask is None else mask.to(device), backend=backend)

    def fast(*tensors):
        return moto_from_logits(*tensors, partition=partition, **options) if from_logits else moto(*tensors, **options)

    expected = run(reference, inputs, upstream, lambda t: t, change)
    actual = run(fast, inputs, upstream, lambda t: t.to(device, dtype), change)
    real = torch.ones_like(x[:, :1]) if mask is None else mask.double()
    used = layout_reference(x, weight, bias, 0.1, partition) if from_logits else layout
    # Beside the tolerance: what squares that are summed in float64 lose of a variance far from the origin (where that
    # is all of it, the region counts as flat), and the roundings of the reference itself, in flat regions over eps.
    condition, magnitude, flat = conditioning(x - common, used, real)
    if dtype == torch.float64:  # whose own roundings these are
        magnitude = conditioning(x, used, real)[1]
    tolerance = TOLERANCE[dtype] + 1e-14 * min(condition, 1e6)**2 + 5e-15 * magnitude
    if flat:
        tolerance += 5e-16 / 1e-5 * (x - common).abs().max().item() * x[:, 0].numel() ** 0.5
    names = 'y', 'dx', *(('dweight', 'dbias') if from_logits else ('dlayout',)), 'dbeta', 'dalpha'
    for name, a, e in zip(names, actual, expected, strict=True):
        within = e.abs() <= torch.finfo(dtype).max  # gradients near 1/eps are beyond float16, in truth
        a, e = a.cpu().double()[within], e[within]
        if not e.numel():
            continue
        assert a.isfinite().all(), f'case {number} ({kind}, {dtype}): {name} is not finite'
        if condition > 1e6:
            continue
        scale, error = e.abs().max().item(), (a - e).abs().max().item()
        assert error <= tolerance * max(scale, 1.0), (
            f'case {number} ({kind}, {dtype}, {statistics}, logits {from_logits}, {partition}, '
            f'{(batch, channels, height, width, n)}): {name} is off by {error:.2e} at magnitude {scale:.2e}')


def run(function, inputs, upstream, convert, change):
    leaves = [convert(t).clone().requires_grad_() for t in inputs]
    value = function(change(leaves[0]), *leaves[1:])
    return [value.detach(), *torch.autograd.grad(value, leaves, convert(upstream))]


@pytest.mark.parametrize('backend, count', [('torch', 200), pytest.param('triton', 24, marks=TRITON)])
def test_random_cases(backend, count):
    for number in range(count):
        check_case(number, backend)


@pytest.mark.slow
@pytest.mark.parametrize('backend, count', [
    ('torch', 10_000), pytest.param('triton', 10_000 if DEVICE == 'cuda' else 1000, marks=TRITON)])
def test_many_random_cases(backend, count):
    """All failures together, since each tells something else."""
    failures = []
    for number in range(count):
        try:
            check_case(number, backend)
        except AssertionError as error:
            failures.append(str(error).splitlines()[0])
    assert not failures, f'{len(failures)} of {count}:\n' + '\n'.join(failures[:50])
