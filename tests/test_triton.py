"""What is Triton's own: channel blocks, entities up to 64, buffers, torch.compile, what it leaves to 'torch'.

`test_ops.py` compares this backend with the reference, as every other one. Without a GPU Triton's interpreter runs the
kernels (see conftest.py).
"""

import itertools
import logging
import re

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from conftest import ROOT
from mmtok.ops import dispatch, moto, moto_from_logits, triton_backend
from mmtok.ops.reference import layout_reference, moto_reference
from test_ops import DEVICE, TRITON, assert_close, draw, value_and_grads

NAMES = 'y', 'dx', 'dweight', 'dbias', 'dbeta', 'dalpha'


def draw_logits(shape, dtype=torch.float32, masked=False):
    """Float64 inputs of `moto_from_logits` that `dtype` can hold: [x, weight, bias, beta, alpha], mask, upstream."""
    x, _, beta, alpha, mask, upstream = draw(shape, 'soft', masked)
    weight, bias = torch.randn(beta.shape), torch.randn(len(beta))
    return [t.to(dtype).double() for t in (x, weight, bias, beta, alpha)], mask, upstream.to(dtype).double()


def compare_from_logits(inputs, mask, upstream, dtype, tolerance, partition='soft', change=lambda t: t):
    def reference(x, weight, bias, beta, alpha):
        return moto_reference(x, layout_reference(x, weight, bias, 0.5, partition), beta, alpha, mask=mask)

    def fast(x, *rest):
        fast_mask = None if mask is None else mask.to(x.device)
        return moto_from_logits(change(x), *rest, tau=0.5, partition=partition, mask=fast_mask, backend='triton')

    expected = value_and_grads(reference, inputs, upstream, torch.float64)
    actual = value_and_grads(fast, inputs, upstream, dtype, DEVICE)
    assert_close(actual, expected, tolerance, NAMES)


@TRITON
@pytest.mark.parametrize('block', [2, 8])
def test_channels_by_blocks_that_do_not_divide_them(block, monkeypatch):
    monkeypatch.setattr(triton_backend, 'CHANNELS_AT_ONCE', block)
    compare_from_logits(*draw_logits((1, 7, 9, 11, 3), masked=True), torch.float32, 2e-5)


@TRITON
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)],
                         ids=['f32', 'bf16', 'f16'])
@pytest.mark.parametrize('partition', ['soft', 'hard'])
def test_channels_last(partition, dtype, tolerance):
    """Neighbouring channels are loaded together; 11 are no whole number of blocks."""
    inputs, mask, upstream = draw_logits((2, 11, 9, 14, 3), dtype, masked=True)
    compare_from_logits(inputs, mask, upstream, dtype, tolerance, partition,
                        lambda t: t.contiguous(memory_format=torch.channels_last))


@TRITON
@pytest.mark.parametrize('entities', [20, 33, 64])
def test_many_entities(entities, monkeypatch):
    monkeypatch.setattr(triton_backend, 'CHANNELS_AT_ONCE', 2)
    compare_from_logits(*draw_logits((1, 2, 9, 31, entities)), torch.float32, 2e-5)


@TRITON
def test_logits_of_a_map_far_from_zero():
    """A thousand deviations off, the layout is as sharp as the input: logits are those of X - origin."""
    (x, *rest), mask, upstream = draw_logits((2, 4, 8, 9, 3), masked=True)
    compare_from_logits([(x + 1e3).float().double(), *rest], mask, upstream, torch.float32, 5e-5)


@TRITON
def test_equal_logits_go_to_the_first_entity():
    x, zero = torch.randn(1, 2, 4, 5, device=DEVICE), torch.zeros(3, 2, device=DEVICE)
    alpha = torch.arange(6.0, device=DEVICE).view(3, 2)
    y = moto_from_logits(x, zero, None, zero, alpha, partition='hard', backend='triton')
    assert torch.equal(y, alpha[0, :, None, None].expand_as(y))


@TRITON
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_every_place_of_a_buffer_that_is_read_was_written(memory_format, monkeypatch):
    """With buffers that start as NaN."""
    inputs, mask, upstream = draw_logits((2, 3, 5, 20, 5), masked=True)
    for name in ('empty', 'empty_like'):
        allocate = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, f=allocate, **k: f(*a, **k).fill_(float('nan')))
    compare_from_logits(inputs, mask, upstream, torch.float32, 2e-5,
                        change=lambda t: t.contiguous(memory_format=memory_format))


@TRITON
@pytest.mark.parametrize('wanted', list(itertools.product((False, True), repeat=3)))
def test_gradients_are_those_that_are_asked_for(wanted):
    """Of x, the filters and beta: any of them may be frozen."""
    (x, weight, _, beta, alpha), _, upstream = draw_logits((1, 2, 4, 6, 3))
    tensors = [t.float().to(DEVICE) for t in (x, weight, beta)]
    alpha, upstream = (t.float().to(DEVICE) for t in (alpha, upstream))
    grads = []
    for flags in ((True,) * 3, wanted):
        leaves = [t.clone().requires_grad_(flag) for t, flag in zip(tensors, flags, strict=True)]
        y = moto_from_logits(leaves[0], leaves[1], None, leaves[2], alpha, backend='triton')
        assert y.requires_grad == any(flags)
        if any(flags):
            y.backward(upstream)
        grads.append([leaf.grad for leaf in leaves])
    for flag, full, some in zip(wanted, *grads, strict=True):
        assert torch.equal(full, some) if flag else some is None


@TRITON
def test_second_derivatives_are_refused():
    x = torch.randn(1, 2, 3, 4, device=DEVICE, requires_grad=True)
    ones = torch.ones(2, 2, device=DEVICE)
    y = moto_from_logits(x, ones, None, ones, ones, backend='triton')
    grad, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


@TRITON
def test_activation_checkpointing():
    inputs, _, upstream = draw_logits((1, 2, 4, 6, 3))

    def plain(*a):
        return moto_from_logits(*a, backend='triton')
    expected, actual = (value_and_grads(f, inputs, upstream, torch.float32, DEVICE)
                        for f in (plain, lambda *a: checkpoint(plain, *a, use_reentrant=False)))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@TRITON
@pytest.mark.skipif(not triton_backend.CUSTOM_OPS, reason='torch < 2.4 has no custom operators: it breaks the graph')
@pytest.mark.parametrize('given', [False, True], ids=['logits', 'layout'])
def test_compiled_in_one_graph(given):
    (x, weight, bias, beta, alpha), mask, upstream = draw_logits((1, 2, 4, 6, 3), masked=True)
    layout = layout_reference(x, weight, bias, 0.1, 'soft')
    inputs = (x, layout, beta, alpha) if given else (x, weight, bias, beta, alpha)
    mask = mask.to(DEVICE)

    def plain(*a):
        return 2 * (moto if given else moto_from_logits)(*a, mask=mask, backend='triton') + 1
    compiled = torch.compile(plain, fullgraph=True, backend='aot_eager')
    expected, actual = (value_and_grads(f, inputs, upstream, torch.float32, DEVICE) for f in (plain, compiled))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@TRITON
@pytest.mark.skipif(not triton_backend.CUSTOM_OPS, reason='torch < 2.4 has no custom operators')
def test_operator_is_registered_as_torch_wants_it():
    x, weight, bias, beta, alpha = (t.float().to(DEVICE).requires_grad_() for t in draw_logits((1, 2, 3, 4, 3))[0])
    arguments = x, None, weight, bias, beta, alpha, None, 0.1, False, 1e-5
    torch.library.opcheck(torch.ops.mmtok.moto.default, arguments,
                          test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'))


@pytest.mark.parametrize('change, reason', [
    (dict(statistics='product'), "statistics='product'"),
    (dict(dtype=torch.float64), 'other dtypes'),
    (dict(entities=65), 'more than 64 entities'),
    pytest.param({}, 'Triton|tensors on the cpu', marks=pytest.mark.skipif(
        triton_backend.INTERPRETED, reason='the interpreter covers CPUs')),
])
def test_what_is_not_covered_goes_to_torch_with_one_line(change, reason, monkeypatch, caplog):
    if 'dtype' in change or 'entities' in change or 'statistics' in change:
        monkeypatch.setattr(triton_backend, 'PROBLEM', '')
    monkeypatch.setattr(dispatch, 'SAID', set())
    entities, dtype = change.get('entities', 2), change.get('dtype', torch.float32)
    inputs = (torch.randn(1, 3, 4, 4, dtype=dtype), torch.ones(1, entities, 4, 4, dtype=dtype) / entities,
              torch.ones(entities, 3, dtype=dtype), torch.zeros(entities, 3, dtype=dtype))
    statistics = change.get('statistics', 'region')
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            y = moto(*inputs, statistics=statistics, backend='triton')
    assert torch.equal(y, moto(*inputs, statistics=statistics, backend='torch'))
    line, = (record.getMessage() for record in caplog.records if 'triton' in record.getMessage())
    assert re.search(reason, line), line


def test_ops_import_without_triton(run_tool, tmp_path):
    (tmp_path / 'script.py').write_text("""import sys
sys.modules['triton'] = None
import torch
from mmtok.ops import moto
ones = torch.ones(1, 2, 3, 4)
print(moto(ones, ones / 2, torch.ones(2, 2), torch.ones(2, 2), backend='triton').mean())
""")
    run = run_tool(tmp_path / 'script.py', cwd=tmp_path, env={'PYTHONPATH': ROOT})
    assert run.returncode == 0 and 'Triton cannot be imported' in run.stdout and 'tensor(1.' in run.stdout, run.stdout
