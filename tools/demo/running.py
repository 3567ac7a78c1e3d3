"""Tools run by the demos: all they print goes into a log, a few of its lines to the screen."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import torch

from mmtok.machine import training_device

ROOT = Path(__file__).resolve().parents[2]


def run_tool(command: list, log: Path, lines: str, show: str, env: dict[str, str] | None = None) -> None:
    """Run a command from the project's root; of its log lines that match `lines`, print what matches `show`.

    Ends the program with the end of the log if the command fails.
    """
    with log.open('w') as out:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        for line in process.stdout:
            out.write(line)
            if re.search(f' - INFO - {lines}', line):
                print('   ', '  '.join(re.findall(show, line)), flush=True)
    if process.wait():
        tail = '\n'.join(log.read_text().splitlines()[-5:])
        sys.exit(f'{Path(command[2]).name} failed; the end of {log.relative_to(ROOT)}:\n{tail}')


class UpstreamDemo:
    """A demo that trains and tests one of our configs by the tools of mmseg or mmdet.

    Attributes:
        tools: The package's, as installed.
        out: Folder of this demo and environment (.envs/<stack>), so that one does not overwrite the other's.
    """

    def __init__(self, name: str, package: ModuleType, config: Path):
        self.config, self.tools = config, Path(package.__file__).parent / '.mim' / 'tools'
        self.out = ROOT / 'work_dirs' / f'{name}-{Path(sys.prefix).name}'
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = alone(name)  # until this process ends

    def run(self, name: str, *arguments, lines: str, show: str) -> None:
        """Run `tools/<name>.py` on the config; see `run_tool`."""
        run_tool([sys.executable, '-u', self.tools / f'{name}.py', self.config, *arguments], self.out / f'{name}.log',
                 lines, show)

    def train(self, lines: str, show: str) -> Path:
        """Returns the last checkpoint."""
        self.run('train', '--work-dir', self.out, lines=lines, show=show)
        return Path((self.out / 'last_checkpoint').read_text().strip())

    def test(self, checkpoint: Path, *arguments, lines: str, show: str) -> dict[str, float]:
        """Returns the metrics, from the JSON that the tool wrote last."""
        self.run('test', checkpoint, '--work-dir', self.out / 'test', *arguments, lines=lines, show=show)
        newest = max((self.out / 'test').glob('*/*.json'), key=lambda path: path.stat().st_mtime)
        return json.loads(newest.read_text().splitlines()[-1])


def measured_on() -> dict[str, str | int]:
    """What the results of a demo need to be compared with others'."""
    return dict(device=training_device(), threads=torch.get_num_threads(), torch=torch.__version__,
                date=time.strftime('%Y-%m-%d'))


def short(path) -> Path:
    """Relative to the project where it lies below."""
    path = Path(path)
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def alone(name: str):
    """A lock held until this process ends; all demos of a name draw to the same folder."""
    folder = ROOT / 'work_dirs'
    folder.mkdir(exist_ok=True)
    lock = (folder / f'{name}.lock').open('w')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit('Another demo is running in this folder; wait for it, or stop it first.')
    return lock
