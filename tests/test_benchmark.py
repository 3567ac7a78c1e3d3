"""`tools/benchmark.py`: it runs, compares equals with equals, and writes what it measured."""

import csv
import subprocess
import sys

import pytest
import torch

from conftest import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
from benchmarks.backbones import TRUNKS, methods_of
from benchmarks.moto import METHODS, make_inputs
from benchmarks.timing import time_interleaved


def run_benchmark(tmp_path, *arguments) -> tuple[str, list[dict]]:
    """What a command printed, and the rows of its CSV, each with provenance."""
    command = [sys.executable, ROOT / 'tools' / 'benchmark.py', *arguments, '--out', tmp_path / 'out.csv']
    run = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    with (tmp_path / 'out.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row['ms_median']) > 0 and row['torch'] and row['device'] and row['date'] for row in rows)
    return run.stdout, rows


def test_moto_command(tmp_path):
    output, rows = run_benchmark(tmp_path, 'moto', '--size', '64', '--repeats', '2')
    assert output.count('faster than the faster formula: ') == 2 and len(rows) == 6


def test_backbones_command(tmp_path):
    output, rows = run_benchmark(tmp_path, 'backbones', '--trunk', 'DeiT-S', '--size', '64', '--repeats', '2')
    assert output.count('MoTo adds ') == 2
    assert [row['method'] for row in rows] == 2 * ['mmtok', 'mmtok + MoTo', 'timm', 'mmseg']


@pytest.mark.parametrize('trunk', TRUNKS)
def test_all_backbones_give_the_same_maps(trunk):
    """None is timed while it does less than the others."""
    methods = methods_of(trunk)
    assert {'mmtok', 'mmtok + MoTo', 'timm', 'mmseg'} <= set(methods)
    shapes = set()
    for make in methods.values():
        backbone = make(96)
        backbone.train()  # mmdet's returns None
        outs = backbone(torch.randn(1, 3, 96, 96))
        sum(out.mean() for out in outs).backward()
        shapes.add(tuple(out.shape for out in outs))
        assert not any('drop' in type(m).__name__.lower() and getattr(m, 'drop_prob', 0) for m in backbone.modules())
    assert len(shapes) == 1


def test_all_methods_compute_the_same():
    class Args:
        size, channels, entities, seed = 32, 6, 4, 0
    inputs, upstream = make_inputs(Args)
    results = []
    for method in METHODS.values():
        value = method(*inputs)
        results.append([value, *torch.autograd.grad(value, inputs, upstream)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def test_rounds_are_interleaved():
    calls = []
    times = time_interleaved({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, 2)
    assert ''.join(calls) == 'ababab' and len(times['a']) == len(times['b']) == 2
