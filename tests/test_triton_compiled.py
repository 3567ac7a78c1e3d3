"""The Triton kernels pass its compiler, for GPUs that need not be here: see compile_kernels.py."""

import importlib.util
import os
import subprocess
import sys

import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='Triton is not installed')


def compiled(*arguments: str) -> list[list[str]]:
    """A line for each kernel, made in a process without Triton's interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != 'TRITON_INTERPRET'}
    command = [sys.executable, ROOT / 'tests' / 'compile_kernels.py', *arguments]
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**environment, 'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0, result.stdout[-3000:]
    return [line.split(';') for line in result.stdout.splitlines() if line.count(';') == 7][1:]


def check_registers(lines) -> None:
    """Nothing is spilled but with 64 entities, whose shares alone fill a thread's registers (Triton 2 spills more)."""
    for version, _, case, kernel, _, _, spilled, _ in lines:
        assert int(spilled) <= (1200 if '64 entities' in case or version < '3' else 0), (case, kernel, spilled)


def test_kernels_compile():
    lines = compiled('--case', 'NCHW')
    assert len(lines) == 8
    check_registers(lines)


@pytest.mark.slow
@pytest.mark.parametrize('capability', ['80', '90'])
def test_all_kernels_compile(capability):
    lines = compiled('--capability', capability)
    assert len(lines) == 63
    check_registers(lines)
