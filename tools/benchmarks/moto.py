"""MoTo on feature maps: the operator against the formula, instance norm and self-attention between pixels.

By default the sizes of the paper's complexity table (16 channels, a batch of 1; the row that it gives is of its own
GPU) with 2048 added, and three shapes of real tokenizers. The floor is the time in which the memory moves what the
operator cannot do without at the speed of a copy: forward 3 times the bytes of the map, backward 5 times, and the
layout once more in each where it is given.
"""

import argparse
import math
import re
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mmtok.ops.triton_backend import why_not

from . import memory, timing
from .moto_methods import DIRECTIONS, FORMULAS, METHODS, Case, make_call
from .moto_sizes import PAPER, compare_sizes, rows_of_sizes, side_of, time_in_turns
from .own_process import OwnProcess
from .timing import provenance, spread, time_interleaved, write_csv

SHAPES = [(1, 16, side, side) for side in (224, 384, 512, 1024, 2048)] + [(8, 16, 256, 256), (2, 16, 400, 672),
                                                                          (64, 384, 14, 14)]
PASSES = {'forward': (3, 1), 'forward + backward': (8, 2)}  # over the map, over a layout that is given
DTYPES = ('float32', 'float16', 'bfloat16')


def parse_shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){3}', text):
        raise argparse.ArgumentTypeError(f'{text!r} is no shape such as 1x16x224x224')
    return tuple(map(int, text.split('x')))


def name_of(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape))


def add_arguments(parser) -> None:
    parser.add_argument('--shapes', type=parse_shape, nargs='+', default=SHAPES, metavar='BxCxHxW',
                        help='of the maps')
    parser.add_argument('--methods', choices=METHODS, nargs='+', default=list(METHODS), metavar='METHOD',
                        help='which to measure, each name in quotes')
    parser.add_argument('--entities', type=timing.positive, default=8, help='semantic entities')
    parser.add_argument('--dtype', choices=DTYPES, default='float32', help='of map and layout')
    parser.add_argument('--device', type=timing.device, default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='where to compute')
    parser.add_argument('--patience', type=float, default=10, metavar='S',
                        help='a method whose call takes longer is called once, and not on larger maps')
    timing.add_arguments(parser, repeats=7, name='moto')
    parser.set_defaults(run=run)


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of copies too large for any cache."""
    source = torch.ones(1 << 26, device=device)
    target, times = torch.zeros_like(source), []
    for _ in range(9):
        start = time.perf_counter()
        target.copy_(source)
        timing.wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * source.numel() * 4 / sorted(times[1:])[4]


def try_out(call: Callable, args, compiles: bool) -> tuple[float, str]:
    """Seconds of a call, of the second where the first compiles or is short; or why there are none."""
    try:
        for _ in range(2):
            start = time.perf_counter()
            call()
            timing.wait_for(args.device)
            seconds = time.perf_counter() - start
            if seconds > timing.SHORT and not compiles:
                break
        return seconds, ''
    except (RuntimeError, MemoryError) as error:
        if 'memory' in str(error) or isinstance(error, MemoryError):
            return 0.0, 'out of memory'
        return 0.0, (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


def measure(methods: list[str], shape: tuple[int, ...], direction: str, case: Case, dropped: dict[tuple, str], args,
            bandwidth: float) -> list[dict]:
    """One block of the report; rows for the CSV. What takes too long or too much is added to `dropped`."""
    torch.compiler.reset()
    calls, seconds, notes = {}, {}, {}
    for method in methods:
        if (method, direction) in dropped:
            notes[method] = dropped[method, direction]
            continue
        call = make_call(method, direction, case)
        seconds[method], notes[method] = try_out(call, args, method.endswith('compiled'))
        if notes[method]:
            dropped[method, direction] = f'{notes[method]} at {name_of(shape)}'
        elif seconds[method] > args.patience:
            dropped[method, direction] = f'over {args.patience:g} s at {name_of(shape)}'
        else:
            calls[method] = call
    in_turn = {name: timing.calls_in_turn(seconds[name]) for name in calls}
    times = time_interleaved(calls, args.repeats, in_turn, args.device)
    rows, passes = [], PASSES[direction]
    print(f'\n{f"{name_of(shape)}, {direction}":40} {"ms":>9} {"20 %":>9} {"80 %":>9} {"MiB":>8} {"floor":>8}')
    for method in methods:
        given = case.layout.nbytes if 'layout' in METHODS[method].names else 0
        floor = 1e3 * (passes[0] * case.x.nbytes + passes[1] * given) / bandwidth
        row = dict(method=method, direction=direction, shape=name_of(shape), entities=args.entities, dtype=args.dtype,
                   ms_median='', ms_p20='', ms_p80='', peak_mib='', over_floor='', ns_per_pixel='', repeats=0,
                   note=notes[method])
        if method in times or (method in seconds and not notes[method]):
            values = spread(times[method]) if method in times else 3 * (1e3 * seconds[method],)
            peak = memory.added_peak(calls[method], args.device) if method in calls else None
            row.update(zip(('ms_median', 'ms_p20', 'ms_p80'), (round(value, 4) for value in values), strict=True),
                       peak_mib='' if peak is None else round(peak, 1), over_floor=round(values[0] / floor, 2),
                       ns_per_pixel=round(1e6 * values[0] / (shape[0] * shape[2] * shape[3]), 3),
                       repeats=args.repeats if method in times else 1)
            print(f'  {method:38} {values[0]:9.3f} {values[1]:9.3f} {values[2]:9.3f} '
                  f'{"-" if peak is None else format(peak, ".0f"):>8} {values[0] / floor:6.1f} x', flush=True)
        else:
            print(f'  {method:38} {notes[method]}', flush=True)
        rows.append(row)
    return rows


def measure_map(shape: tuple[int, ...], dropped: dict[tuple, str], args, bandwidth: float) -> tuple[list[dict], dict]:
    """Rows of both directions, and `dropped` with what these add to it."""
    if args.device == 'cpu':
        memory.limit_to_available()
    case = Case(shape, args.entities, getattr(torch, args.dtype), args.device, args.seed)
    rows, dropped = [], {**dropped}
    for late in (False, True):
        methods = [method for method in args.methods if METHODS[method].late == late]
        for direction in DIRECTIONS if methods else ():
            block = measure(methods, shape, direction, case, dropped, args, bandwidth)
            compare(block)
            rows += block
    return rows, dropped


def send_map(connection: Connection, *args) -> None:
    connection.send(measure_map(*args))


def measure_map_alone(shape: tuple[int, ...], *args) -> tuple[list[dict], dict]:
    """In a process of its own: with what the heap keeps of smaller maps the formula takes up to five times less."""
    with OwnProcess(name_of(shape), send_map, shape, *args) as process:
        return process.receive()


def compare(rows: list[dict]) -> None:
    """The lines below each shape: what a user saves."""
    found = {row['method']: row['ms_median'] for row in rows if row['ms_median']}
    formulas = [found[name] for name in FORMULAS if name in found]
    for ours in ('mmtok', 'mmtok triton'):
        if ours in found and formulas:
            text = f'  {ours}: the faster formula takes {min(formulas) / found[ours]:.1f} times as long'
            if 'formula, compiled' in found:
                text += f', compiled {found["formula, compiled"] / found[ours]:.1f} times'
            print(text)


def draw(rows: list[dict], path: Path) -> None:
    """Time against pixels, on log axes, of square maps of the paper's width."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True)
    for axis, direction in zip(axes, DIRECTIONS, strict=True):
        for number, method in enumerate(METHODS):
            points = [(side_of(row) ** 2, row['ms_median']) for row in rows if row['ms_median'] and side_of(row)
                      and (row['method'], row['direction']) == (method, direction)]
            if points:
                axis.plot(*zip(*points, strict=True), 'o-', markersize=3, color=f'C{number}', label=method,
                          linewidth=2.2 if 'mmtok' in method else 1.2)
        if direction == 'forward':
            axis.plot([size**2 for size in PAPER], list(PAPER.values()), 'kx', label='paper, on its GPU')
        axis.set(title=direction, xlabel='pixels', xscale='log', yscale='log')
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('ms')
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=5, loc='lower center')
    figure.suptitle(f'MoTo on 16 channels, batch 1, n = {rows[0]["entities"]}, {rows[0]["dtype"]}: {rows[0]["device"]}',
                    fontsize=10)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f'Picture in {path}')


def run(args) -> None:
    dtype = getattr(torch, args.dtype)
    where = provenance(args.seed)
    if args.device != 'cpu':
        where['device'] = torch.cuda.get_device_name(args.device)
    probe = Case((1, 1, 1, 1), args.entities, dtype, args.device, args.seed)
    reason = why_not(probe.x, (probe.layout, probe.beta, probe.alpha), args.entities, 'region')
    if reason or args.device == 'cpu':  # the interpreter is no backend to measure
        if args.methods != list(METHODS) and any('triton' in method for method in args.methods):
            print(f'Left out: triton, which does not cover {reason or "a CPU"}')
        args.methods = [method for method in args.methods if 'triton' not in method]
    if not args.methods:
        raise SystemExit('mmtok: no method is left to measure')
    bandwidth = copy_bandwidth(args.device)
    print(f'MoTo, n = {args.entities}, {args.dtype}, on {where["device"]}, {torch.get_num_threads()} thread(s), torch '
          f'{torch.__version__}. Copies run at {bandwidth / 1e9:.1f} GB/s, read and written: the floor. Medians of '
          f'{args.repeats} interleaved rounds, of attention after the others; MiB is what a call adds.')
    rows, dropped = [], {}
    for shape in sorted(args.shapes, key=math.prod):
        each = measure_map_alone if args.device == 'cpu' else measure_map
        of_map, dropped = each(shape, dropped, args, bandwidth)
        rows += [{**row, 'copy_gb_per_s': round(bandwidth / 1e9, 1), **where} for row in of_map]
        write_csv(args.out, rows)  # each time: larger maps take longer and longer
    print()
    draw(rows, args.out.with_suffix('.png'))
    sizes = rows_of_sizes(rows, args)
    if args.device == 'cpu':
        time_in_turns(sizes, args)
        write_csv(args.out, rows)
    compare_sizes(sizes)
