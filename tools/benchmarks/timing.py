"""Interleaved timing, spread, provenance and CSV files, shared by all benchmarks."""

import argparse
import contextlib
import csv
import ctypes
import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from mmtok.machine import processor_name

T = TypeVar('T')
SHORT = 4.0  # seconds of a call; the first takes several times as long where a host has to give memory back
WARM_UP, AHEAD = 5, 2  # rounds, and calls of a short one before each measured round
TURN = 0.1  # seconds of a method's calls in a round: one call alone may meet what the method before it gave back
SETTLE = 0.5  # seconds in which a system has done what it does with gigabytes that it was given back


def positive(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} is no number of at least 1')
    return value


def device(text: str) -> str:
    """An argument that names a device that is there."""
    try:
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f'{text!r} cannot be used: {str(error).splitlines()[0]}') from None
    return text


def csv_file(text: str) -> Path:
    """An argument that names a file that can be written, found out before anything is measured."""
    path = Path(text)
    if path.suffix != '.csv' or path.is_dir():
        raise argparse.ArgumentTypeError(f'{text} must be a file whose name ends in .csv')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(None, 'it may not be written to')
    except OSError as error:
        raise argparse.ArgumentTypeError(f'{text} cannot be written: {error.strerror}') from None
    return path


def add_arguments(parser, repeats: int, name: str) -> None:
    """What every command takes."""
    parser.add_argument('--repeats', type=positive, default=repeats, help='timed rounds, interleaved')
    parser.add_argument('--seed', type=int, default=0, help='of the random input and weights')
    parser.add_argument('--out', type=csv_file, default=Path(f'work_dirs/benchmark/{name}.csv'),
                        help='CSV, overwritten, as is a picture of the same name where there is one')


def keep_pages() -> None:
    """Let glibc's heap keep freed memory.

    Whether a call returns pages to the system and faults them in again depends on what else lies on the heap, and moves
    the time of a whole backbone by 10 % from one process to the next: more than what is compared here.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if platform.system() == 'Linux' else None
    if mallopt is not None:  # musl has none
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_trim_threshold, -1)  # without limit
        mallopt(m_mmap_max, 0)


def cpu_seconds() -> float:
    """Of this process and of the data workers that it has started, all threads; of living ones on Linux alone."""
    ended, ticks = os.times(), 0
    children = Path(f'/proc/self/task/{os.getpid()}/children')
    for child in children.read_text().split() if children.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            fields = Path(f'/proc/{child}/stat').read_text().rpartition(')')[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime of proc(5)
    return time.process_time() + ended.children_user + ended.children_system + ticks / os.sysconf('SC_CLK_TCK')


def wait_for(device: str) -> None:
    """Until a device has done what it was given; a CPU has."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def calls_in_turn(seconds: float) -> int:
    """How often to call in a round what takes so long."""
    return max(1, min(100, int(TURN / seconds)))


def order_of_round(names: Iterable[T], round_number: int) -> list[T]:
    """The order of a round: every other one goes backwards, so that none always comes after the same or first."""
    return list(names)[::-1 if round_number % 2 else 1]


def time_interleaved(functions: dict[str, Callable], repeats: int, calls: dict[str, int] | None = None,
                     device: str = 'cpu', before: Callable[[], object] = lambda: None) -> dict[str, np.ndarray]:
    """Milliseconds of each call, (repeats,) per function; rounds go through all functions, after one warm-up.

    `before` is called ahead of each clock.

    A function that is over too soon to be timed by itself is called `calls[name]` times in a round. With `calls`, those
    that are short get more rounds of warm-up, since it takes a heap some to find its size, and are called before their
    clock starts, too: others may have left them cold caches and a heap without pages. After one that is not short there
    is a pause first: its memory goes back to the system, and a virtual machine's to the host, which keeps a core busy
    for a while and makes what is touched next slow.
    """
    times, short, disturbed = {name: [] for name in functions}, set(), False
    first = -WARM_UP if calls else 0
    for round_number in range(first, repeats + 1):
        for name in order_of_round(functions, round_number):
            function, count = functions[name], calls[name] if calls else 1
            if first < round_number < 1 and name not in short:
                continue
            if name in short:
                if disturbed:
                    time.sleep(SETTLE)
                for _ in range(AHEAD):
                    function()
                wait_for(device)
            before()
            start = time.perf_counter()
            for _ in range(count):
                function()
            wait_for(device)
            seconds = (time.perf_counter() - start) / count
            if round_number > 0:
                times[name].append(1e3 * seconds)
            elif calls and seconds < SHORT:
                short.add(name)
            disturbed = name not in short
    return {name: np.array(values) for name, values in times.items()}


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    return tuple(float(v) for v in np.percentile(values, [50, 20, 80]))


def huge_pages() -> str:
    """Who gets huge pages on a CPU: 'always', whoever asks ('madvise') or 'never'; '' where there are none."""
    setting = Path('/sys/kernel/mm/transparent_hugepage/enabled')
    return re.search(r'\[(\w+)\]', setting.read_text())[1] if setting.exists() else ''


def provenance(seed: int) -> dict[str, str | int]:
    """What a number needs to be compared with another one."""
    return dict(device=processor_name(), instructions=torch.backends.cpu.get_cpu_capability(),
                threads=torch.get_num_threads(), torch=torch.__version__, python=platform.python_version(),
                huge_pages=huge_pages(), seed=seed, date=time.strftime('%Y-%m-%d'))


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    print(f'Written to {path}')
