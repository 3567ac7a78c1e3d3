"""`tools/benchmark.py`: it runs, compares equals with equals, and writes what it measured."""

import csv
import subprocess
import sys

import torch

from conftest import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
from benchmarks.moto import METHODS, make_inputs
from benchmarks.timing import time_interleaved


def test_moto_command(tmp_path):
    command = [sys.executable, ROOT / 'tools' / 'benchmark.py', 'moto', '--size', '64', '--repeats', '2', '--out',
               tmp_path / 'out.csv']
    run = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    assert run.stdout.count('faster than the faster formula: ') == 2
    with (tmp_path / 'out.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and all(float(row['ms_median']) > 0 and row['torch'] and row['device'] for row in rows)


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
