"""`tools/setup_env.py` with a stand-in for pip: order, resuming, changed pins, messages, two runs at once."""

import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
import setup_env


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """A Setup of a copy of the project whose steps only write down that they ran."""
    (tmp_path / 'requirements').mkdir()
    for file in (ROOT / 'requirements').glob('*.txt'):
        (tmp_path / 'requirements' / file.name).write_text(file.read_text())
    (tmp_path / 'setup.py').write_text('')
    monkeypatch.setattr(setup_env, 'ROOT', tmp_path)
    monkeypatch.setattr(setup_env, 'ENVS', tmp_path / '.envs')
    ran = []

    class Recorded(setup_env.Setup):
        fail = None

        def run(self, name, *command, extra=None):
            ran.append(name)
            if name == self.fail:
                super().run(name, sys.executable, '-c', 'import sys; sys.exit("No space left on device")')
            if name == 'venv':
                self.python.parent.mkdir(parents=True)
                self.python.touch()

        def probe(self, code):
            return json.dumps([False, None, '2.1.2', None])

        def ops_load(self, with_cuda=False):
            return True

    Recorded.ran = ran
    return Recorded


STEPS = ['venv', 'build-tools', 'torch', 'mmcv', 'packages', 'mmtok', 'check']


def test_runs_once_in_order(setup):
    setup('openmmlab').install()
    assert setup.ran == STEPS and setup('openmmlab').is_done()
    assert not setup('onedl').is_done()


def test_goes_on_where_it_failed(setup, capsys):
    setup.fail = 'mmcv'
    with pytest.raises(setup_env.StepError) as error:
        setup('openmmlab').install()
    said = str(error.value)
    assert said.startswith('[4/7] mmcv failed after') and 'No space left on device' in said
    assert 'Log: .envs/logs/openmmlab-mmcv.log' in said and 'free some disk space' in said and 'goes on from' in said
    setup.fail = None
    setup.ran.clear()
    setup('openmmlab').install()
    assert setup.ran == STEPS[3:] and capsys.readouterr().out.count('done before') == 3


def test_changed_pin_repeats_its_step_and_those_after(setup):
    setup('openmmlab').install()
    setup.ran.clear()
    file = setup_env.ROOT / 'requirements' / 'openmmlab.txt'
    file.write_text(file.read_text().replace('mmcv==2.1.0', 'mmcv==2.0.1'))
    assert not setup('openmmlab').is_done()
    setup('openmmlab').install()
    assert setup.ran == STEPS[3:]


def test_python_that_does_not_fit(monkeypatch, capsys):
    class Version(tuple):
        pass
    monkeypatch.setattr(setup_env.sys, 'version_info', Version((3, 12, 1)))
    assert setup_env.resolve_stack('openmmlab') == 'onedl'
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'STACK=onedl is used' in said
    monkeypatch.setattr(setup_env.sys, 'version_info', Version((3, 9, 18)))
    with pytest.raises(setup_env.StepError, match='make PYTHON=python3.11 test'):
        setup_env.resolve_stack('onedl')
    monkeypatch.setattr(setup_env.sys, 'version_info', Version((3, 14, 0)))
    with pytest.raises(setup_env.StepError, match='takes Python 3.10 to 3.13'):
        setup_env.resolve_stack('openmmlab')


def test_second_run_waits_for_the_first(tmp_path):
    """Two real processes: the second one says that it waits, and finds the work done."""
    code = f'''
import sys, time
sys.path.insert(0, {str(ROOT / "tools")!r})
import setup_env
from pathlib import Path
setup_env.ENVS = Path({str(tmp_path)!r}) / 'envs'
class Slow(setup_env.Setup):
    def steps(self):
        return [('only', [], self.work)]
    def work(self):
        self.python.parent.mkdir(parents=True)
        print('working', flush=True)
        time.sleep(3)
    def is_done(self):
        return bool(self.load_state())
setup_env.Setup = Slow
setup_env.ROOT = setup_env.ENVS.parent
(setup_env.ROOT / 'requirements').mkdir(exist_ok=True)
(setup_env.ROOT / 'requirements' / 'onedl.txt').touch()
sys.argv = ['setup_env.py', 'onedl']
setup_env.main()
'''
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    first = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=env)
    while 'working' not in first.stdout.readline():
        pass
    second = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=env, timeout=60)
    assert first.wait() == 0 and second.returncode == 0
    assert 'Another set-up of .envs/onedl is running; waiting for it.' in second.stdout
    assert 'working' not in second.stdout


def test_lock_outlives_a_killed_set_up(tmp_path):
    """kill -9 leaves pip running: nobody else may touch the environment until it has ended."""
    code = f'''
import fcntl, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import setup_env
from pathlib import Path
setup_env.ENVS = setup_env.ROOT = Path({str(tmp_path)!r})
(setup_env.ROOT / 'requirements').mkdir()
(setup_env.ROOT / 'requirements' / 'onedl.txt').touch()
lock = (setup_env.ENVS / 'onedl.lock').open('w')
fcntl.flock(lock, fcntl.LOCK_EX)
setup = setup_env.Setup('onedl', (lock.fileno(), ))
setup.label = 'step'
setup.run('step', 'sh', '-c', 'echo started > {tmp_path}/started; sleep 4')
'''
    parent = subprocess.Popen([sys.executable, '-c', code])
    while not (tmp_path / 'started').exists():
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    with (tmp_path / 'onedl.lock').open('w') as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(lock, fcntl.LOCK_EX)  # free once the child has ended


def test_environment_without_its_python_is_made_again(setup):
    setup('openmmlab').install()
    setup('openmmlab').python.unlink()
    assert not setup('openmmlab').is_done()
    setup.ran.clear()
    setup('openmmlab').install()
    assert setup.ran == STEPS


def test_broken_environment_is_named(setup, monkeypatch):
    monkeypatch.setattr(setup, 'probe', setup_env.Setup.probe)
    with pytest.raises(setup_env.StepError, match=r'\[4/7\] mmcv failed: .*run the same command again'):
        setup('openmmlab').install()  # its python is an empty file


def test_no_compiler_is_said_before_anything_is_downloaded(setup, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    with pytest.raises(setup_env.StepError, match=r'No C\+\+ compiler found'):
        setup('openmmlab').install()
    assert setup.ran == []


@pytest.mark.parametrize('nvcc, built', [(True, {'FORCE_CUDA': '1'}), (False, {'FORCE_CUDA': '0'})])
def test_gpu_with_and_without_nvcc(setup, monkeypatch, nvcc, built, capsys):
    calls = []

    class WithGpu(setup):
        def probe(self, code):
            return json.dumps([True, '12.1', '2.1.2+cu121', '/usr/local/cuda'])

        def ops_load(self, with_cuda=False):
            return len(calls) > (0 if nvcc else 1)  # the prebuilt wheel does not load

        def pip(self, name, *arguments, extra=None):
            if name == 'mmcv':
                calls.append((arguments, extra or {}))
    monkeypatch.setattr(setup_env, 'nvcc_fits', lambda home, cuda: nvcc)
    WithGpu('openmmlab').install()
    assert calls[-1][1].items() >= built.items()
    assert len(calls) == (1 if nvcc else 2)
    if not nvcc:
        assert '--only-binary' in calls[0][0] and 'cu121/torch2.1.0' in ' '.join(calls[0][0])
        assert "mmcv's CPU operators are compiled" in capsys.readouterr().out


def test_every_pin_is_exact_or_bounded():
    for stack in setup_env.STACKS:
        for name, pin in setup_env.Setup(stack).pins.items():
            assert name in ('wheel', 'ninja', 'psutil') or '==' in pin or '<' in pin, pin
