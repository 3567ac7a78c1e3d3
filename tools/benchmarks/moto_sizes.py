"""How MoTo's time a pixel changes with the size of a map, 16 channels as in the paper's complexity table.

On a CPU the sizes take turns, each in a process of its own. Measured one after the other, minutes apart, they would
tell as much of other guests of a virtual machine's host.
"""

import argparse
import contextlib
import re
import time
from multiprocessing.connection import Connection

import numpy as np
import torch

from . import memory
from .moto_methods import Case, make_call
from .own_process import OwnProcess
from .timing import AHEAD, calls_in_turn, order_of_round

SQUARE = r'1x16x(\d+)x\1'
PAPER = {224: 0.52, 384: 1.67, 512: 4.23, 1024: 18.42}  # ms forward on the paper's GPU, table 3


def side_of(row: dict) -> int | None:
    """Of a square map of the paper's width."""
    found = re.fullmatch(SQUARE, row['shape'])
    return int(found[1]) if found else None


def answer(connection: Connection, shape: tuple[int, ...], args: argparse.Namespace) -> None:
    """Milliseconds of a call, each time it is asked for a method, a direction and a number of calls."""
    memory.limit_to_available()
    case, calls = Case(shape, args.entities, getattr(torch, args.dtype), args.device, args.seed), {}
    with contextlib.suppress(EOFError):
        while True:
            method, direction, count = connection.recv()
            call = calls.setdefault((method, direction), make_call(method, direction, case))
            for _ in range(AHEAD):  # caches and heap may have gone to others
                call()
            start = time.perf_counter()
            for _ in range(count):
                call()
            connection.send(1e3 * (time.perf_counter() - start) / count)


def rows_of_sizes(rows: list[dict], args: argparse.Namespace) -> list[dict]:
    """Those of mmtok on square maps, one size right after the other; nothing if there is but one."""
    ours = [row for row in rows if 'mmtok' in row['method'] and side_of(row) and row['ms_median']
            and row['ms_median'] <= 1e3 * args.patience]
    ours.sort(key=lambda row: (row['method'], row['direction'], side_of(row)))
    return ours if len({side_of(row) for row in ours}) > 1 else []


def time_in_turns(sizes: list[dict], args: argparse.Namespace) -> None:
    """Replace `ns_per_pixel` by medians of rounds in which the sizes take turns."""
    with contextlib.ExitStack() as stack:
        processes = {side: stack.enter_context(OwnProcess(f'1x16x{side}x{side}', answer, (1, 16, side, side), args))
                     for side in sorted({side_of(row) for row in sizes})}
        times = [[] for _ in sizes]
        for round_number in range(args.repeats + 1):
            for number in order_of_round(range(len(sizes)), round_number):
                row = sizes[number]
                milliseconds = processes[side_of(row)].receive(
                    row['method'], row['direction'], calls_in_turn(1e-3 * row['ms_median']))
                if round_number:  # the first one is for the heap to find its size
                    times[number].append(milliseconds)
    for row, values in zip(sizes, times, strict=True):
        row['ns_per_pixel'] = round(1e6 * float(np.median(values)) / side_of(row) ** 2, 3)


def compare_sizes(sizes: list[dict]) -> None:
    """How time grows with the map, and the paper's times beside ours."""
    for ours, direction in dict.fromkeys((row['method'], row['direction']) for row in sizes):
        rows = {side_of(row): row for row in sizes if (row['method'], row['direction']) == (ours, direction)}
        if len(rows) < 2:
            continue
        each = [row['ns_per_pixel'] for row in rows.values()]
        print(f'{ours}, {direction}: time a pixel from {min(rows)} to {max(rows)} within a factor of '
              f'{max(each) / min(each):.2f}')
        beside = [f'{side}: {row["ms_median"]:.2f} ms (paper, another GPU: {PAPER[side]})'
                  for side, row in rows.items() if side in PAPER]
        if direction == 'forward' and 'logits' in ours and beside:
            print('  ' + ', '.join(beside))
