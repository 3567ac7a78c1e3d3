"""`python -m mmtok.check_env`: combinations that work and that do not."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from mmtok.check_env import Environment, find_notes, find_problems, look

OPENMMLAB = {'torch': '2.1.2+cu121', 'torchvision': '0.16.2', 'numpy': '1.26.4', 'opencv-python': '4.11.0.86',
             'timm': '1.0.31', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0', 'mmsegmentation': '1.2.2'}
ONEDL = {'torch': '2.8.0', 'torchvision': '0.23.0', 'numpy': '2.2.6', 'opencv-python': '4.12.0.88', 'timm': '1.0.31',
         'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1',
         'onedl-mmsegmentation': '1.4.2'}
PROBES = {'opencv': 'ok', 'mmengine': 'ok', 'torch': '12.1', 'gpu': 'none', 'gpu known to torch': 'True',
          'mmcv operators': 'not available',
          'mmseg': 'ok', 'mmdet': 'ok'}


def problems_of(versions, probes=None, errors=None, python=(3, 11, 7), **changes):
    versions = {**versions, **{name.replace('_', '-'): value for name, value in changes.items()}}
    return find_problems(Environment(python, versions, {**PROBES, **(probes or {})}, errors or {}))


@pytest.mark.parametrize('versions, python', [(OPENMMLAB, (3, 10, 1)), (OPENMMLAB, (3, 11, 7)), (ONEDL, (3, 12, 1))])
def test_both_stacks_work(versions, python):
    assert problems_of(versions, python=python) == []


@pytest.mark.parametrize('stack', [OPENMMLAB, ONEDL])
def test_classifiers_need_neither_mmcv_nor_mmseg_nor_mmdet(stack):
    """What is known to work: torch 2.14 with mmengine and timm alone."""
    env = Environment((3, 11), {k: v for k, v in stack.items() if 'engine' in k or 'mm' not in k or k == 'timm'},
                      {**PROBES, 'mmcv operators': None, 'mmseg': None, 'mmdet': None})
    assert find_problems(env) == []
    assert any('the pretraining of classifiers work' in note for note in find_notes(env))


def test_mmcv_built_against_newer_torch_still_works():
    assert problems_of(OPENMMLAB, torch='2.5.1', torchvision='0.20.1') == []


@pytest.mark.parametrize('versions, options, sentence, command', [
    (OPENMMLAB, dict(mmcv='2.2.0'), 'mmcv 2.2.0 is outside of what mmdet and mmsegmentation accept', 'mmcv==2.1.0'),
    (OPENMMLAB, dict(mmcv=None), 'mmcv is not installed, and mmdet and mmsegmentation cannot', 'mmcv==2.1.0'),
    (ONEDL, dict(onedl_mmcv=None), 'mmcv is not installed, and mmdet and mmsegmentation cannot', 'onedl-mmcv'),
    (OPENMMLAB, dict(numpy='2.0.1'), 'torch 2.1.2+cu121 was built for numpy 1, but numpy 2.0.1', "'numpy<2'"),
    (OPENMMLAB, dict(opencv_python='4.12.0.88'), 'opencv-python 4.12.0.88 needs numpy 2', 'opencv-python<4.12'),
    (OPENMMLAB, dict(torchvision='0.17.0'), 'torchvision 0.17.0 does not match torch', "torchvision==0.16.*"),
    (ONEDL, dict(torchvision=None), 'torchvision (not installed) does not match torch 2.8.0', "torchvision==0.23.*"),
    (OPENMMLAB, dict(torch='2.6.0', torchvision='0.21.0'), 'refuses to load the checkpoints', 'onedl-mmengine'),
    (OPENMMLAB, dict(onedl_mmcv='2.3.6'), 'mmcv and its fork onedl-mmcv overwrite each other', 'pip uninstall'),
    (OPENMMLAB, dict(mmengine=None), 'mmengine is not installed', 'pip install mmengine'),
    (OPENMMLAB, dict(timm=None), 'timm is not installed', "timm>=1.0.20"),
    (OPENMMLAB, dict(timm='0.9.16'), 'timm 0.9.16 needs to be 1.0.20 or newer', "timm>=1.0.20"),
    (OPENMMLAB, dict(torch=None), 'torch is not installed', 'pip install torch'),
    (OPENMMLAB, dict(torch='2.0.1', torchvision='0.15.2'), 'torch 2.0.1 is older than 2.1', 'new environment'),
    (OPENMMLAB, dict(python=(3, 12, 1)), 'do not support Python 3.12', 'onedl'),
    (OPENMMLAB, dict(probes={'torch': None}, errors={'torch': 'libcudart.so.12: cannot open'}),
     'torch 2.1.2+cu121 does not import (libcudart.so.12: cannot open)', '--force-reinstall torch==2.1.2'),
    (OPENMMLAB, dict(probes={'mmcv operators': None}, errors={'mmcv operators': 'undefined symbol'}),
     "mmcv's compiled operators do not load (undefined symbol)", '--no-cache-dir --force-reinstall --no-deps mmcv=='),
    (OPENMMLAB, dict(opencv_python=None), 'opencv-python is not installed', 'opencv-python<4.12'),
    (OPENMMLAB, dict(probes={'opencv': None, 'mmcv operators': None, 'mmseg': None},
                     errors={'opencv': 'libGL.so.1: cannot open shared object file'}),
     'opencv does not import (libGL.so.1', 'opencv-python-headless'),
    (OPENMMLAB, dict(probes={'mmengine': None}, errors={'mmengine': "No module named 'addict'"}),
     'mmengine does not import', 'pip install addict'),
    (OPENMMLAB, dict(mmcv=None, onedl_mmcv='2.3.6'), 'and the forks onedl-mmcv are mixed', 'pip uninstall'),
    (OPENMMLAB, dict(probes={'gpu': 'NVIDIA B200', 'gpu known to torch': 'False', 'mmcv operators': '12.1'}),
     'has no kernels for this GPU (NVIDIA B200)', 'STACK=onedl'),
    (OPENMMLAB, dict(probes={'mmseg': None}, errors={'mmseg': "ModuleNotFoundError: No module named 'ftfy'"}),
     'mmseg does not import', 'pip install ftfy'),
])
def test_problem_is_named_with_its_remedy(versions, options, sentence, command):
    problems = problems_of(versions, **options)
    assert any(sentence in said and command in mend for said, mend in problems), problems


def test_one_cause_is_one_problem():
    broken = dict(probes={'opencv': None, 'mmcv operators': None, 'mmseg': None, 'mmdet': None})
    assert len(problems_of(OPENMMLAB, **broken)) == 1
    assert len(problems_of(OPENMMLAB, mmengine=None, probes={'mmengine': None, 'mmcv operators': None})) == 1


def test_cpu_operators_beside_a_gpu_are_a_note_and_no_problem():
    """What the set-up builds on a GPU machine without nvcc must pass its own check."""
    env = Environment((3, 11), OPENMMLAB, {**PROBES, 'gpu': 'NVIDIA H100'})
    assert find_problems(env) == []
    assert any('compiled without CUDA, but there is a GPU (NVIDIA H100)' in note for note in find_notes(env))
    without = Environment((3, 11), {**OPENMMLAB, 'mmdet': None}, PROBES)
    assert any('mmdet is not installed' in note for note in find_notes(without))


def test_this_environment_works():
    env = look()
    assert find_problems(env) == [] and env.probes['mmcv operators']


def test_runs_where_nothing_is_installed():
    """A bare interpreter: site-packages hidden, one sentence and exit status 1."""
    run = subprocess.run([sys.executable, '-S', '-m', 'mmtok.check_env'], cwd=ROOT, text=True, capture_output=True,
                         env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
    assert run.returncode == 1 and not run.stderr
    assert 'PROBLEM: torch is not installed.' in run.stdout
