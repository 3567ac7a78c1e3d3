"""How much memory the torch backend takes, and of which kind."""

import re
import threading
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmtok.ops import blocks, moto, moto_from_logits, pages, work_space


class Fresh(TorchDispatchMode):
    """Bytes of the memory that operators ask for; what they write elsewhere, or look at, is not theirs."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {storage_of(t) for t in tensors_of((args, kwargs))}
        self.sizes += [t.nbytes for t in tensors_of(out) if storage_of(t) not in given]
        return out


def tensors_of(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def storage_of(t: torch.Tensor) -> int:
    return t.untyped_storage().data_ptr()


@pytest.mark.parametrize('case', ['soft', 'hard', 'masked', 'half', 'layout', 'layout, masked', 'layout, half'])
def test_a_block_asks_for_no_memory(case, monkeypatch):
    """Beyond a few tables: the C library may give pages back after each, and fetch them again for the next."""
    monkeypatch.setattr(work_space, 'KEPT', threading.local())
    torch.manual_seed(0)
    x = torch.randn(1, 16, 512, 384, dtype=torch.half if 'half' in case else torch.float).requires_grad_()
    mask = torch.rand(1, 1, 512, 384) < 0.9 if 'masked' in case else None
    of_layout = torch.randn((1, 8, 512, 384) if 'layout' in case else (8, 16))
    beta, alpha = torch.randn(2, 8, 16).unbind()
    if 'layout' in case:
        leaf = of_layout.softmax(1).to(x.dtype).requires_grad_()
    else:
        leaf = of_layout.requires_grad_()
    with Fresh() as seen:
        if 'layout' in case:
            y = moto(x, leaf, beta, alpha, mask=mask, backend='torch')
        else:
            y = moto_from_logits(x, leaf, None, beta, alpha, partition='hard' if case == 'hard' else 'soft', mask=mask,
                                 backend='torch')
        torch.autograd.grad(y, [x, leaf], y.detach())
    large = [size for size in seen.sizes if size >= blocks.BLOCK_BYTES['cpu'] // 8]
    assert len(large) <= 5, large  # Y, dX, dL; work space, larger in backward


def test_memory_never_holds_entities_times_channels():
    """No tensor of the torch backend has B*n*C*H*W elements, in forward or backward, nor more bytes than the map."""
    class Largest(TorchDispatchMode):
        nbytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor):
                    self.nbytes = max(self.nbytes, t.nbytes)
            return out

    x = torch.randn(1, 16, 1024, 1024, requires_grad=True)
    layout = torch.randn(1, 8, 1024, 1024).softmax(1).requires_grad_()
    with Largest() as seen:
        moto(x, layout, torch.ones(8, 16), torch.zeros(8, 16)).sum().backward()
    assert seen.nbytes <= x.nbytes


def test_large_results_and_work_space_are_asked_for_in_huge_pages(monkeypatch):
    """Of 4 MiB and more, whole pages that lie inside; where the C library cannot ask, nothing else changes."""
    asked = []
    monkeypatch.setattr(pages, 'MADVISE', lambda start, size, advice: asked.append((start, start + size)))
    monkeypatch.setattr(work_space, 'KEPT', threading.local())

    def compute(side):
        asked.clear()
        x, layout = torch.randn(1, 4, side, side, requires_grad=True), torch.ones(1, 2, side, side) / 2
        y = moto(x, layout.requires_grad_(), torch.ones(2, 4), torch.zeros(2, 4), backend='torch')
        return y, *torch.autograd.grad(y, [x, layout], torch.ones_like(y))

    results = compute(1024)
    for t in results:
        assert any(t.data_ptr() <= start < t.data_ptr() + 8192 and end <= t.data_ptr() + t.nbytes < end + 8192
                   for start, end in asked)
    assert all(start % 4096 == end % 4096 == 0 and end - start > 4_000_000 for start, end in asked)
    assert len(asked) == len(results) + 2  # the work space of forward, and the larger one of backward
    assert len(compute(1024)) == len(asked)  # now it is there
    compute(64)
    assert not asked
    monkeypatch.setattr(pages, 'MADVISE', None)
    assert len(compute(1024)) == 3 and not asked


@pytest.mark.skipif(not Path('/sys/kernel/mm/transparent_hugepage').exists(), reason='no huge pages here')
def test_the_system_hears_of_it():
    """It marks the memory with 'hg', whether it has such pages to give or not."""
    fresh = pages.in_huge_pages(torch.empty(40 << 20, dtype=torch.uint8))  # nothing of that size comes from the heap
    middle, found, flags = fresh.data_ptr() + fresh.nbytes // 2, False, []
    for line in Path('/proc/self/smaps').read_text().splitlines():
        limits = re.match(r'([0-9a-f]+)-([0-9a-f]+) ', line)
        if limits:
            found = int(limits[1], 16) <= middle < int(limits[2], 16)
        elif found and line.startswith('VmFlags:'):
            flags = line.split()[1:]
    assert 'hg' in flags
