"""The work space that a thread keeps between calls."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from mmtok.ops import blocks, moto, moto_from_logits, torch_backend, work_space


def case(size: int, seed: int = 0):
    torch.manual_seed(seed)
    x, layout = torch.randn(1, 16, size, size), torch.randn(1, 4, size, size).softmax(1)
    return x, layout, torch.randn(4, 16), torch.randn(4, 16)


def in_new_thread(function):
    """Where nothing is kept yet."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def result_and_gradient(x, *others):
    x = x.clone().requires_grad_()
    out = moto(x, *others, backend='torch')
    return out, *torch.autograd.grad(out.square().sum(), x)


def test_a_thread_keeps_its_piece_and_nobody_else_gets_it():
    def steps():
        first = work_space.take_piece(1000)
        second = work_space.take_piece(10)  # while the first is in use
        assert first.data_ptr() != second.data_ptr()
        work_space.keep_piece(first)
        of_another = in_new_thread(lambda: getattr(work_space.KEPT, 'piece', None))
        kept = work_space.take_piece(500)
        work_space.keep_piece(kept)
        work_space.keep_piece(work_space.take_piece(2000))
        larger = work_space.KEPT.piece
        work_space.release()
        return of_another, kept is first, len(larger), work_space.KEPT.piece

    assert in_new_thread(steps) == (None, True, 2000, None)


def test_a_huge_piece_is_not_kept(monkeypatch):
    monkeypatch.setattr(work_space, 'MOST_KEPT', 100)

    def steps():
        small = work_space.take_piece(99)
        work_space.keep_piece(small)
        work_space.keep_piece(work_space.take_piece(101))
        return work_space.KEPT.piece is small

    assert in_new_thread(steps)


@pytest.mark.parametrize('size', [14, 224])
def test_calls_of_one_size_share_a_piece_that_others_make_larger(size, monkeypatch):
    made, make = [], torch.empty
    monkeypatch.setattr(work_space.torch, 'empty', lambda n, **o: made.append(n) or make(n, **o))
    small, large = case(size), case(300)

    def steps():
        with torch.no_grad():
            for inputs in (small, small, large, small, large):
                moto(*inputs, backend='torch')

    in_new_thread(steps)
    made = [n for n in made if isinstance(n, int)]
    assert len(made) == 2 and made[0] < made[1]


def test_training_after_inference_mode():
    inputs = case(40)

    def steps():
        with torch.inference_mode():
            moto(*inputs, backend='torch')
        assert not work_space.KEPT.piece.is_inference()
        return result_and_gradient(*inputs)

    for ours, alone in zip(in_new_thread(steps), in_new_thread(lambda: result_and_gradient(*inputs)), strict=True):
        assert torch.equal(ours, alone)


def test_threads_do_not_disturb_each_other():
    cases = [case(size, seed) for seed, size in enumerate((30, 64, 150, 64))]
    alone = [result_and_gradient(*inputs) for inputs in cases]
    start, wrong = Barrier(len(cases)), []

    def work(inputs, right):
        start.wait()
        for _ in range(20):
            wrong.extend(not torch.allclose(a, b, atol=1e-4) for a, b in
                         zip(result_and_gradient(*inputs), right, strict=True))

    threads = [Thread(target=work, args=pair) for pair in zip(cases, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 160 and not any(wrong)


def test_a_call_that_fails_leaves_the_next_one_right(monkeypatch):
    inputs = case(40)

    def steps():
        right = result_and_gradient(*inputs)
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(torch_backend, 'coefficients', lambda *a: (_ for _ in ()).throw(MemoryError))
            moto(*inputs, backend='torch')
        assert work_space.KEPT.piece is None  # the traceback may still refer to it
        return right, result_and_gradient(*inputs)

    for right, ours in zip(*in_new_thread(steps), strict=True):
        assert torch.equal(ours, right)


def test_the_default_device_does_not_matter():
    inputs = case(40)

    def steps():
        with torch.device('meta'):
            return moto(*inputs, backend='torch')

    assert torch.equal(in_new_thread(steps), moto(*inputs, backend='torch'))


def test_one_piece_at_a_time_where_forward_starts_again(monkeypatch):
    """Of a map whose mean lies 20 deviations off, the second try asks for more: x - origin."""
    x, _, beta, alpha = case(60)
    made, make = [], work_space.new_piece

    def new_piece(size):
        assert all(piece.expired() for piece in made)
        piece = make(size)
        made.append(StorageWeakRef(piece.untyped_storage()))
        return piece

    monkeypatch.setattr(work_space, 'new_piece', new_piece)
    monkeypatch.setattr(blocks, 'lies_around_zero', lambda x: True)
    in_new_thread(lambda: moto_from_logits(x + 20, beta, None, beta, alpha, backend='torch'))
    assert len(made) == 2
