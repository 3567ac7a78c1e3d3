"""Train the README's CIFAR-10 table: plain and MoTo in each placement, without and with TokenProp, several seeds each.

    python tools/cifar10_study.py --data /path/to/cifar10

The folder of images has `train` and `val`, in each a folder for each class; it need not be CIFAR-10. Run it again after
an interruption: it goes on where it was.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmtok.classification.fingerprint import fingerprint
from mmtok.classification.images import ImageDataset
from mmtok.classification.results import RESULTS, config_hash
from mmtok.errors import ConfigError
from train_classifier import load_config, parse_args

TOOLS = Path(__file__).resolve().parent
CONFIGS = sorted((TOOLS.parent / 'configs' / 'cifar10').glob('deit-nano*.py'))
# The C library keeps freed pages, and does not fault in new ones at each step
KEEP_PAGES = dict(MALLOC_MMAP_THRESHOLD_='33554432', MALLOC_TRIM_THRESHOLD_='4294967296')


def arguments(config: Path, seed: int, args: argparse.Namespace) -> list[str]:
    """Of train_classifier.py."""
    work_dir = args.out / f'{config.stem}-seed{seed}'
    return [str(config), '--work-dir', str(work_dir), '--resume', '--epochs', str(args.epochs), '--cfg-options',
            f'randomness.seed={seed}', 'train_dataloader.num_workers=1', 'default_hooks.checkpoint.interval=1',
            'default_hooks.checkpoint.max_keep_ckpts=1']


def is_done(work_dir: Path, command: list[str], data: dict) -> bool:
    """Whether this training, on images with the fingerprint `data`, has ended.

    Raises:
        ConfigError: What lies there is another training's, or one's on other images.
    """
    if not (work_dir / RESULTS).is_file():
        return False
    found = json.loads((work_dir / RESULTS).read_text())
    parsed = parse_args(command)
    if found['config_hash'] != config_hash(load_config(parsed)) or found['epochs'] != parsed.epochs:
        raise ConfigError(f'{work_dir} holds a training with other settings: remove it, or name another folder with '
                          '--out')
    if found.get('data', data) != data:
        raise ConfigError(f'{work_dir} holds a training on other images than those of --data: remove it, or name '
                          'another folder with --out')
    return found['metrics']['epoch'] == parsed.epochs


def train(command: list[str], env: dict[str, str]) -> None:
    """Ends the program if the training fails; those beside it end first."""
    work_dir = Path(command[command.index('--work-dir') + 1])
    print(time.strftime('%H:%M:%S'), work_dir.name, flush=True)
    log = work_dir.with_suffix('.log')
    with log.open('w') as out:
        run = subprocess.run([sys.executable, str(TOOLS / 'train_classifier.py'), *command], stdout=out,
                             stderr=subprocess.STDOUT, env=env)
    if run.returncode:
        raise RuntimeError(f'{work_dir.name} failed: see {log}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('data/cifar10'), help='folder of the images (%(default)s)')
    parser.add_argument('--epochs', type=int, default=12, help='of each training (%(default)s)')
    parser.add_argument('--seeds', type=int, default=3, help='trainings of each config (%(default)s)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time, one CPU thread each')
    parser.add_argument('--out', type=Path, help='where results go; work_dirs/cifar10-study-EPOCHSe')
    args = parser.parse_args()
    args.out = args.out or Path('work_dirs') / f'cifar10-study-{args.epochs}e'
    args.out.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **KEEP_PAGES, 'OMP_NUM_THREADS': '1', 'CIFAR10_ROOT': str(args.data)}
    runs = {args.out / f'{config.stem}-seed{seed}': arguments(config, seed, args)
            for seed in range(args.seeds) for config in CONFIGS}
    data = fingerprint(ImageDataset(str(args.data)))
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = [pool.submit(train, command, env) for work_dir, command in runs.items()
                   if not is_done(work_dir, command, data)]
        try:
            for training in waiting:
                training.result()
        except RuntimeError as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f'mmtok: {error}')
    subprocess.run([sys.executable, str(TOOLS / 'summarize.py'), *sorted(map(str, runs)), '--out',
                    str(args.out / 'table.md'), '--json', str(args.out / 'summary.json'), '--plot',
                    str(args.out / 'curves.png')], check=True)


if __name__ == '__main__':
    main()
