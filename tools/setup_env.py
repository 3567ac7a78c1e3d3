"""Create or update `.envs/<stack>`, the Python environment of one stack of pinned packages.

    python tools/setup_env.py openmmlab          # torch 2.1.2 and the official mm* packages
    python tools/setup_env.py onedl              # torch 2.8.0 and the maintained forks

Each step leaves a fingerprint of what it installed, so that a second run goes on where the first one
stopped, and a changed pin repeats its own step and those after it. `make demo` and `make test` call this.
Standard library only: it runs before anything is installed.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVS = ROOT / '.envs'
STACKS = {'openmmlab': ((3, 10), (3, 11)), 'onedl': ((3, 10), (3, 13))}  # the Python versions of each torch
BUILD_TOOLS = ('setuptools', 'wheel', 'ninja', 'psutil')
PREBUILT_MMCV = 'https://download.openmmlab.com/mmcv/dist/cu{cuda}/torch{torch}/index.html'
PULSE = 30  # seconds between two signs of life where the output is not a terminal

HINTS = (  # what a log says -> what to do about it
    (r'No space left on device', 'free some disk space (about 8 GB for a stack), then'),
    (r'ensurepip is not available|No module named venv', 'install venv for your Python (Debian: python3-venv), then'),
    (r'Python\.h: No such file', 'install the headers of your Python (Debian: python3-dev), then'),
    (r'Killed|cc1plus.*fatal|virtual memory exhausted', 'memory ran out: set MAX_JOBS=1 in the environment, then'),
    (r'Could not find a version|No matching distribution', 'check that your package index serves this version, then'),
    (r'Temporary failure in name resolution|Connection (refused|reset)|NewConnectionError|Read timed out',
     'check the network connection to your package index, then'),
)


class StepError(Exception):
    """A set-up step failed; the message says which, why and what to do."""


def resolve_stack(stack):
    """The stack that this Python can run: 3.12 and up fall to onedl, with one line saying so."""
    version = sys.version_info[:2]
    if stack == 'openmmlab' and version > STACKS[stack][1]:
        print(f'Python {version[0]}.{version[1]}: the openmmlab stack (torch 2.1.2) ends at Python 3.11, '
              'so STACK=onedl is used.', file=sys.stderr)
        stack = 'onedl'
    oldest, newest = STACKS[stack]
    if not oldest <= version <= newest:
        raise StepError(f'Python {version[0]}.{version[1]} does not fit the {stack} stack, which takes Python '
                        f'{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}. Name another interpreter, for example: '
                        'make PYTHON=python3.11 test')
    return stack


class Setup:
    """The steps of one stack, in order, with their logs and fingerprints."""

    def __init__(self, stack, pass_fds=()):
        self.stack = stack
        self.pass_fds = pass_fds  # the lock: it lasts until the last child that holds it ends, also after a kill
        self.env = ENVS / stack
        self.python = self.env / 'bin' / 'python'
        self.logs = ENVS / 'logs'
        self.requirements = ROOT / 'requirements' / f'{stack}.txt'
        lines = (line.split('#')[0].strip() for line in self.requirements.read_text().splitlines())
        self.pins = {re.split(r'[<>=]', line)[0]: line for line in lines if line}
        self.state_file = self.env / '.mmtok-setup.json'

    def pinned(self, *names):
        return [self.pins[name] for name in names if name in self.pins]

    def steps(self):
        """(name, what it depends on, function) of each step."""
        return [
            ('venv', [sys.version, sys.base_prefix, str(self.env)], self.make_venv),
            ('build-tools', self.pinned(*BUILD_TOOLS),
             lambda: self.pip('build-tools', *self.pinned(*BUILD_TOOLS))),
            ('torch', self.pinned('torch', 'torchvision', 'numpy'),
             lambda: self.pip('torch', *self.pinned('torch', 'torchvision', 'numpy'))),
            ('mmcv', self.pinned('mmcv', 'onedl-mmcv', 'mmengine', 'onedl-mmengine', 'opencv-python'), self.make_mmcv),
            ('packages', list(self.pins.values()), lambda: self.pip('packages', '-r', self.requirements)),
            ('mmtok', [str(ROOT), (ROOT / 'setup.py').read_text()],
             lambda: self.pip('mmtok', '--no-deps', '-e', ROOT)),
            ('check', [], lambda: self.run('check', self.python, '-m', 'mmtok.check_env')),
        ]

    def load_state(self):
        try:
            return json.loads(self.state_file.read_text())
        except (OSError, ValueError):
            return {}

    def save_state(self, state):
        """All or nothing, also when the process is killed meanwhile."""
        draft = self.state_file.with_suffix('.new')
        draft.write_text(json.dumps(state, indent=1))
        os.replace(draft, self.state_file)

    def is_done(self):
        state = self.load_state()
        return self.python.exists() and all(state.get(name) == mark for name, mark, _ in self.marked_steps())

    def marked_steps(self):
        """Each mark covers the steps before it too: what changed early repeats all that follows."""
        mark = ''
        for name, depends, function in self.steps():
            mark = hashlib.sha256(json.dumps([mark, name, depends]).encode()).hexdigest()[:16]
            yield name, mark, function

    def install(self):
        steps = list(self.marked_steps())
        state = self.load_state()
        print(f'Setting up .envs/{self.stack} with Python {sys.version.split()[0]} '
              f'(logs in {self.logs.relative_to(ROOT)}/).', flush=True)
        if not self.python.exists():
            state = {}
        if shutil.which(os.environ.get('CXX', 'c++')) is None and shutil.which('g++') is None:
            raise StepError("No C++ compiler found, and mmcv's operators are compiled from source. Install one "
                            '(Debian: apt-get install g++), then run the same command again.')
        for number, (name, mark, function) in enumerate(steps, 1):
            self.label = f'[{number}/{len(steps)}] {name}'
            if state.get(name) == mark and self.python.exists():
                print(f'{self.label}: done before', flush=True)
                continue
            try:
                function()
                state = {**self.load_state(), name: mark}
                self.save_state(state)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                raise StepError(f'{self.label} failed: {error}. Log: {self.log(name)}. Mend that, then run the same '
                                f'command again; or delete {self.env.relative_to(ROOT)} to start afresh.') from error
        print(f'Environment ready: {self.python.relative_to(ROOT)}', flush=True)

    # -- the steps that are more than one pip call --------------------------------------------------

    def make_venv(self):
        if self.env.exists():
            print(f'{self.label}: {self.env.relative_to(ROOT)} was made for another Python or folder, or is '
                  'unfinished, so it is deleted and made anew', flush=True)
            self.state_file.unlink(missing_ok=True)  # first: half a tree must not pass for a finished one
            shutil.rmtree(self.env)
        self.run('venv', sys.executable, '-m', 'venv', self.env)

    def make_mmcv(self):
        pins = self.pinned('mmcv', 'onedl-mmcv')
        gpu = json.loads(self.probe(
            'import json, torch; from torch.utils.cpp_extension import CUDA_HOME as home; '
            'print(json.dumps([torch.cuda.is_available(), torch.version.cuda, torch.__version__, home]))'))
        has_gpu, cuda, torch_version, cuda_home = gpu
        with_cuda = has_gpu and nvcc_fits(cuda_home, cuda)
        extra = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': os.environ.get('MAX_JOBS', str(os.cpu_count()))}
        if with_cuda:
            extra['FORCE_CUDA'] = '1'
        else:
            extra.update(FORCE_CUDA='0', CUDA_VISIBLE_DEVICES='')  # mmcv's setup.py looks for a GPU by itself
        if has_gpu and not with_cuda:
            page = PREBUILT_MMCV.format(cuda=cuda.replace('.', ''), torch='.'.join(torch_version.split('.')[:2]) + '.0')
            print(f'{self.label}: a GPU but no nvcc for CUDA {cuda}; trying the prebuilt wheel.', flush=True)
            try:
                self.pip('mmcv', '--only-binary', 'mmcv,onedl-mmcv', '--find-links', page, *pins)
                if self.ops_load():
                    return
            except StepError:
                pass
            print(f"{self.label}: no prebuilt wheel fits, so mmcv's CPU operators are compiled. Detectors that use "
                  f'CUDA operators need nvcc {cuda} and a second set-up.', flush=True)
        self.pip('mmcv', '-v', *pins, extra=extra)
        if not self.ops_load(with_cuda):  # pip's cache may hold a wheel that was built against another torch
            self.pip('mmcv', '-v', '--no-cache-dir', '--force-reinstall', '--no-deps', *pins, extra=extra)
        if not self.ops_load(with_cuda):
            raise StepError(f"{self.label}: mmcv is installed, but its compiled operators do not load. "
                            f'Log: {self.log("mmcv")}. Delete {self.env} and run the same command again.')

    def ops_load(self, with_cuda=False):
        code = 'from mmcv.ops import get_compiling_cuda_version as v; print(v())'
        result = subprocess.run([self.python, '-c', code], capture_output=True, text=True, env=self.clean_environment())
        return result.returncode == 0 and not (with_cuda and 'not available' in result.stdout)

    # -- running things -----------------------------------------------------------------------------

    def log(self, name):
        return (self.logs / f'{self.stack}-{name}.log').relative_to(ROOT)

    def clean_environment(self, extra=None):
        """The caller's environment without what would leak other packages in, and with the stack's own ninja."""
        leaks = ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_USER')
        environment = {k: v for k, v in os.environ.items() if k not in leaks}
        path = os.pathsep.join([str(self.env / 'bin'), environment.get('PATH', '')])
        environment.update(PATH=path, PYTHONNOUSERSITE='1', **(extra or {}))
        return environment

    def probe(self, code):
        result = subprocess.run([self.python, '-c', code], capture_output=True, text=True,
                                env=self.clean_environment())
        if result.returncode:
            raise StepError(f'{self.label} failed: the Python of {self.env.relative_to(ROOT)} stopped with '
                            f'{(result.stderr.strip().splitlines() or ["no message"])[-1]!r}. Delete that folder and '
                            'run the same command again.')
        return result.stdout.strip().splitlines()[-1]

    def pip(self, name, *arguments, extra=None):
        """Every call sees all pins as constraints, so that no step undoes another."""
        constraints = ['-c', self.requirements] if name != 'mmtok' else []
        self.run(name, self.python, '-m', 'pip', 'install', '--disable-pip-version-check', '--no-build-isolation',
                 '--progress-bar', 'off', *constraints, *arguments, extra=extra)

    def run(self, name, *command, extra=None):
        """Run one command with its output in a log, showing that it lives."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log, start, shown = ROOT / self.log(name), time.time(), 0.0
        terminal = sys.stdout.isatty()
        with log.open('a') as out:
            out.write(f'\n$ {" ".join(map(str, command))}\n')
            out.flush()
            begin = out.tell()
            process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL, cwd=ROOT, env=self.clean_environment(extra),
                                       pass_fds=self.pass_fds)
            if not terminal:
                print(f'{self.label} ...', flush=True)
            while True:
                try:
                    code = process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    pass
                except KeyboardInterrupt:
                    process.terminate()  # pip stops its compilers
                    process.wait()
                    raise
                if terminal or time.time() - shown - start >= PULSE:
                    shown = time.time() - start
                    line = f'{self.label}  {clock(shown)}  {last_line(log)}'
                    print(f'\r\x1b[K{line[:shutil.get_terminal_size().columns - 1]}' if terminal else line[:110],
                          end='' if terminal else '\n', flush=True)
        took = clock(time.time() - start)
        if code:
            text = log.read_bytes()[begin:].decode(errors='replace')
            hint = next((hint for pattern, hint in HINTS if re.search(pattern, text)), 'read the end of the log;')
            print('\r\x1b[K' if terminal else '', end='')
            tail = '\n'.join('    ' + line for line in text.strip().splitlines()[-4:])
            raise StepError(f'{self.label} failed after {took} (exit status {code}). Log: {self.log(name)}, its end:\n'
                            f'{tail}\nWhat to do: {hint} run the same command again; it goes on from this step.')
        print(f'{chr(13) + chr(27) + "[K" if terminal else ""}{self.label}: ok, {took}', flush=True)


def nvcc_fits(cuda_home, cuda):
    """Whether an nvcc of torch's own CUDA major version is at hand."""
    nvcc = Path(cuda_home or '') / 'bin' / 'nvcc'
    if not cuda_home or not nvcc.exists():
        return False
    text = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
    release = re.search(r'release (\d+)\.', text)
    return bool(release) and release.group(1) == cuda.split('.')[0]


def clock(seconds):
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def last_line(log):
    lines = log.read_bytes()[-2000:].decode(errors='replace').strip().splitlines()
    return lines[-1].strip() if lines else ''


def main():
    parser = argparse.ArgumentParser(description='Create or update .envs/<stack>.')
    parser.add_argument('stack', choices=STACKS)
    parser.add_argument('--resolve', action='store_true', help='only print the stack that this Python can run')
    args = parser.parse_args()
    try:
        stack = resolve_stack(args.stack)
        if args.resolve:
            print(stack)
            return
        if Setup(stack).is_done():
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        ENVS.mkdir(exist_ok=True)
        with (ENVS / f'{stack}.lock').open('w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                print(f'Another set-up of .envs/{stack} is running; waiting for it.', flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            setup = Setup(stack, (lock.fileno(), ))
            if not setup.is_done():
                setup.install()
    except StepError as error:
        sys.exit(f'\n{error}')
    except KeyboardInterrupt:
        sys.exit('\nStopped. Run the same command again; it goes on from this step.')


if __name__ == '__main__':
    main()
