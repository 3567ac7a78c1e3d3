"""Everything that only a GPU can show of MoTo and TokenProp, in one call: tests, speed, mixed precision, verdicts.

    python tools/gpu_study.py OUT            # needs a GPU, torch, timm, mmengine, pytest; no mmcv, mmseg, mmdet
    python tools/gpu_study.py OUT --limit 560    # on a machine that is lent for ten minutes
    python tools/gpu_study.py OUT --smoke    # each step in small, on the CPU: whether the script itself works

Each step is a command whose output goes to OUT/STEP.log and whose numbers go to OUT/STEP.csv or .json; a step that
fails or takes too long does not stop the others, which come in the order of their worth. OUT/verdicts.json says what
was asked and what was measured.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.moto_methods import FORMULAS
from benchmarks.moto_sizes import PAPER

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = [sys.executable, ROOT / 'tools' / 'benchmark.py']
TRITON = {'MMTOK_BACKEND': 'triton'}
SIZES = (*PAPER, 2048)
WORTH_IT = 10  # seconds, less than which no step takes
OURS = ['mmtok', 'mmtok triton', 'mmtok, from logits', 'mmtok triton, from logits', 'instance norm']


def steps(out: Path, smoke: bool) -> dict[str, tuple[list, dict, int]]:
    """Name -> command, environment, seconds at most."""
    shapes = [f'1x16x{size}x{size}' for size in ((16, 32) if smoke else SIZES)]
    device = ['--device', 'cpu' if smoke else 'cuda']
    few = ['--repeats', '1' if smoke else '25', *device]
    tests = [ROOT / 'tests' / f'test_{name}.py' for name in ('ops', 'triton', 'random_cases')]
    narrow = ['-k', 'one and pixel and f32' if smoke else 'not test_many_random']
    many = f'{tests[2]}::test_{"" if smoke else "many_"}random_cases'
    found = {
        'tests': ([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *tests, *narrow], {}, 240),
        'moto_float32': ([*BENCHMARK, 'moto', *few, *(['--shapes', *shapes] if smoke else [])], {}, 400),
        'half_precision': ([sys.executable, __file__, out, '--half-precision', *(['--smoke'] if smoke else [])],
                           {} if smoke else TRITON, 150),
    }
    classifiers = ['classifier-deit-s'] if smoke else ['classifier-deit-s', 'classifier-swin-t']
    for name, environment in (('triton', {} if smoke else TRITON), ('torch', {})):  # its interpreter is slow
        found[f'training_{name}'] = (
            [*BENCHMARK, 'training', *few, '--framework', *classifiers, '--batch', '1' if smoke else '8',
             *([] if smoke else ['--amp']), '--variants', 'MoTo', *([] if smoke else ['TokenProp', 'both'])],
            environment, 150)
    for dtype in ('float16', 'bfloat16'):
        found[f'moto_{dtype}'] = ([*BENCHMARK, 'moto', *few, '--dtype', dtype, '--shapes', *shapes, '--methods', *OURS],
                                  {}, 120)
    for name, (command, *_) in found.items():
        if BENCHMARK[1] in command:
            command += ['--out', out / f'{name}.csv']
    found['random'] = ([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', many, '-k',
                        'torch' if smoke else 'triton'], {}, 400)
    return found


def run_step(name: str, command: list, environment: dict, limit: float, out: Path) -> dict:
    start = time.time()
    if limit < WORTH_IT:
        print(f'{name:16} left out: no time')
        return dict(result='left out: no time', seconds=0)
    with (out / f'{name}.log').open('w') as log:
        try:
            code = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                  timeout=limit, env={**os.environ, **environment}).returncode
        except subprocess.TimeoutExpired:
            code = f'over {limit:.0f} s'
    result = dict(result='ok' if code == 0 else f'failed ({code})', seconds=round(time.time() - start))
    print(f'{name:16} {result["result"]}, {result["seconds"]} s: {out}/{name}.log', flush=True)
    return result


def train_in_half_precision(out: Path, smoke: bool) -> None:
    """A backbone with TokenProp at lambda = 1 under float16 with a gradient scaler: every loss finite."""
    import torch

    from mmtok.backbones import DeiT
    device, iterations, side = ('cpu', 2, 64) if smoke else ('cuda', 200, 224)
    torch.manual_seed(0)
    backbone = DeiT(arch='tiny', img_size=side, tokenizer=dict(type='mmtok.MoToTokenizer'),
                    token_prop=dict(loss_weight=1.0)).to(device).train()
    backbone.token_prop.collected = True  # by this loop
    optimizer = torch.optim.AdamW(backbone.parameters(), 1e-4)
    scaler = torch.cuda.amp.GradScaler(enabled=not smoke)
    images = torch.randn(2 if smoke else 32, 3, side, side, device=device)
    losses, skipped = [], 0
    for _ in range(iterations):
        with torch.autocast(device, torch.bfloat16 if smoke else torch.float16):
            maps = backbone(images)
            loss = backbone.token_prop.take() + sum(map_.float().square().mean() for map_ in maps)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        losses.append(loss.item())
    finite = all(torch.tensor(losses).isfinite()) and all(p.isfinite().all() for p in backbone.parameters())
    (out / 'half_precision.json').write_text(json.dumps(dict(
        iterations=iterations, skipped=skipped, first=losses[0], last=losses[-1], finite=bool(finite)), indent=1))
    if not finite:
        sys.exit('a loss or a weight is not finite')


def rows_of(out: Path, name: str) -> list[dict]:
    path = out / f'{name}.csv'
    if not path.is_file():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def verdicts(out: Path) -> list[dict]:
    """What was asked of a GPU, what was measured, and whether it is met; what was not measured is not met."""
    rows = {(row['method'], row['direction'], row['shape']): row for row in rows_of(out, 'moto_float32')}
    found = []

    def milliseconds(method: str, size: int, direction: str = 'forward') -> float | None:
        text = rows.get((method, direction, f'1x16x{size}x{size}'), {}).get('ms_median')
        return float(text) if text else None

    def ask(what: str, limit: float, measured: float | None, at_least: bool = False) -> None:
        met = measured is not None and (measured >= limit if at_least else measured <= limit)
        found.append(dict(what=what, limit=('at least ' if at_least else 'at most ') + f'{limit:g}',
                          measured=None if measured is None else round(measured, 3), met=met))

    for size in (1024, 2048):
        for method in ('mmtok triton', 'mmtok triton, from logits'):
            row = rows.get((method, 'forward', f'1x16x{size}x{size}'), {})
            forward, both = (milliseconds(method, size, way) for way in ('forward', 'forward + backward'))
            backward = None
            if forward and both:
                map_bytes = 4 * 16 * size**2
                given = 4 * int(row['entities']) * size**2 if 'logits' not in method else 0
                floor = (5 * map_bytes + given) / float(row['copy_gb_per_s']) / 1e6
                backward = (both - forward) / floor
            ask(f'{method}, forward over the floor at {size}', 1.5,
                float(row['over_floor']) if row.get('over_floor') else None)
            ask(f'{method}, backward over the floor at {size}', 2, backward)
        for direction in ('forward', 'forward + backward'):
            ours = milliseconds('mmtok triton', size, direction)
            eager = [milliseconds(name, size, direction) for name in FORMULAS]
            compiled = milliseconds('formula, compiled', size, direction)
            ask(f'eager formula over mmtok triton, {direction} at {size}', 20,
                min(filter(None, eager)) / ours if any(eager) and ours else None, at_least=True)
            ask(f'compiled formula over mmtok triton, {direction} at {size}', 3,
                compiled / ours if compiled and ours else None, at_least=True)
    for size, paper in PAPER.items():
        ask(f'mmtok triton, from logits: ms at {size}, below the paper', paper,
            milliseconds('mmtok triton, from logits', size))
    training = {(row['framework'], row['variant']): row for row in rows_of(out, 'training_triton')}
    for framework in ('classifier-deit-s', 'classifier-swin-t'):
        over = training.get((framework, 'MoTo'), {}).get('over_plain_percent')
        ask(f'MoTo in a step of {framework} with AMP, %', 3, float(over) if over else None)
    half = out / 'half_precision.json'
    ask('float16 with GradScaler, lambda = 1: finite iterations', 200,
        (lambda r: r['iterations'] * r['finite'])(json.loads(half.read_text())) if half.is_file() else None, True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, metavar='OUT', help='folder of the results')
    parser.add_argument('--smoke', action='store_true', help='each step in small, on the CPU')
    parser.add_argument('--limit', type=float, default=math.inf, metavar='S',
                        help='seconds of all steps together; a step that is due then is left out')
    parser.add_argument('--steps', nargs='+', metavar='STEP', help='only these, such as moto_float32')
    parser.add_argument('--half-precision', action='store_true', help=argparse.SUPPRESS)  # the step of this name
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.half_precision:
        train_in_half_precision(out, args.smoke)
        return
    if not args.smoke:
        import torch
        if not torch.cuda.is_available():
            sys.exit('gpu_study.py: no GPU is visible to torch; --smoke tries every step on the CPU')
    found = steps(out, args.smoke)
    if unknown := set(args.steps or ()) - set(found):
        parser.error(f'there is no step {", ".join(sorted(unknown))}; choose from {", ".join(found)}')
    results, end = {}, time.monotonic() + args.limit
    for name, (command, environment, limit) in found.items():
        if name in (args.steps or found):
            results[name] = run_step(name, command, environment, min(limit, end - time.monotonic()), out)
    asked = verdicts(out)
    (out / 'verdicts.json').write_text(json.dumps(dict(steps=results, verdicts=asked), indent=1) + '\n')
    for row in asked:
        print(f'{"met    " if row["met"] else "NOT MET"} {row["what"]}: {row["measured"]} ({row["limit"]})')
    if any(result['result'] != 'ok' for result in results.values()):
        sys.exit('some steps failed or were left out: see their logs')


if __name__ == '__main__':
    main()
