"""`tools/gpu_study.py`: each of its steps works, in small and on the CPU, without mmcv, mmseg and mmdet."""

import json
import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
from gpu_study import verdicts

TOOL = ROOT / 'tools' / 'gpu_study.py'


STEPS = ['tests', 'moto_float32', 'half_precision', 'training_triton', 'training_torch', 'moto_float16',
         'moto_bfloat16', 'random']


@pytest.mark.parametrize('chosen', [['tests', 'half_precision', 'moto_float16'],
                                    pytest.param(STEPS, marks=pytest.mark.slow)], ids=['some', 'all'])
def test_steps_run(chosen, tmp_path):
    for package in ('mmcv', 'mmseg', 'mmdet'):
        (tmp_path / f'{package}.py').write_text('raise ImportError("not on that machine")')
    run = subprocess.run([sys.executable, TOOL, tmp_path / 'out', '--smoke', '--steps', *chosen], text=True,
                         capture_output=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / 'out' / 'verdicts.json').read_text())
    assert [name for name, step in found['steps'].items() if step['result'] == 'ok'] == chosen
    assert re.search(r'[1-9]\d* passed', (tmp_path / 'out' / 'tests.log').read_text())
    assert json.loads((tmp_path / 'out' / 'half_precision.json').read_text())['finite']
    measured = [row['what'] for row in found['verdicts'] if row['measured'] is not None]
    assert measured == ['MoTo in a step of classifier-deit-s with AMP, %'] * (chosen == STEPS) + [
        'float16 with GradScaler, lambda = 1: finite iterations']
    assert not found['verdicts'][-1]['met']  # 2 iterations are no 200


def test_time_is_limited(tmp_path):
    run = subprocess.run([sys.executable, TOOL, tmp_path, '--smoke', '--limit', '5'], text=True, capture_output=True)
    assert run.returncode == 1 and 'some steps failed or were left out' in run.stderr
    steps = json.loads((tmp_path / 'verdicts.json').read_text())['steps']
    assert list(steps) == STEPS and {step['result'] for step in steps.values()} == {'left out: no time'}


def write_rows(path, rows):
    names = list(rows[0])
    path.write_text('\n'.join([','.join(names), *(','.join(f'"{row[name]}"' for name in names) for row in rows)]))


@pytest.mark.parametrize('slower, met', [(1, True), (1.7, False)])
def test_verdicts(slower, met, tmp_path):
    """At the speed that is given, one pass over the map of 64 MiB takes a millisecond."""
    times = {'mmtok triton': (4 * slower, 10 * slower), 'formula, loop': (100, 300), 'formula, broadcast': (90, 250),
             'formula, compiled': (15, 40)}
    write_rows(tmp_path / 'moto_float32.csv', [
        dict(method=method, direction=direction, shape='1x16x1024x1024', entities=8, ms_median=pair[number],
             copy_gb_per_s=67.108864, over_floor='' if number else pair[0] / 3.5)
        for method, pair in times.items() for number, direction in enumerate(('forward', 'forward + backward'))])
    found = {row['what']: row for row in verdicts(tmp_path)}
    wanted = {'mmtok triton, forward over the floor at 1024': 4 * slower / 3.5,
              'mmtok triton, backward over the floor at 1024': 6 * slower / 5.5,
              'eager formula over mmtok triton, forward at 1024': 22.5 / slower,
              'compiled formula over mmtok triton, forward at 1024': 3.75 / slower}
    for what, value in wanted.items():
        assert found[what]['measured'] == pytest.approx(value, abs=1e-3), what
    assert [found[what]['met'] for what in wanted] == [met, True, met, met]
    assert not any(row['met'] for row in found.values() if row['measured'] is None)
