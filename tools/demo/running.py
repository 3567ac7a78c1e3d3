"""Tools run by the demos: all they print goes into a log, a few of its lines to the screen."""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

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
