"""Images per second of a classifier's data and of its training, against timm's loader and a plain loop.

The same images, timm transforms, batches, data workers, model and optimizer on both sides; epochs take turns. Whole
epochs are measured, after one in which the data workers start; the heap keeps its pages, on both sides. A loader's
batch counts once its pixels lie in the order (B,3,H,W), as those of both loaders do. Beside the images per second
stands the processor time of an image, of the training process and its data workers, which other work on a machine moves
less. One process is faster or slower than the next, each side by itself, most of all where threads and data workers
share a core: so all is measured in several processes, and a figure is the median of theirs.
"""

import argparse
import itertools
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from timm.data import create_dataset, create_loader
from timm.scheduler import CosineLRScheduler
from torch import nn

from mmtok.backbones import DeiT
from mmtok.engine.runner import Runner

from . import timing
from .timing import order_of_round, provenance, spread, write_csv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'demo'))
CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'cifar10' / 'deit-nano_1xb64-32e_cifar10.py'
# Not m9, with which timm 1.0.31 asks Pillow 13 for what it refuses, now and then
AUGMENTATIONS = {'flip and crop': {}, 'RandAugment': dict(auto_augment='rand-m6-mstd0.5-inc1')}


def add_arguments(parser) -> None:
    parser.add_argument('--data', type=Path, help='image folder with train and val; without it, 800 images are drawn')
    parser.add_argument('--side', type=int, default=256, help='pixels of the drawn images')
    parser.add_argument('--loader-sizes', type=timing.positive, nargs='+', default=[64, 224],
                        help='pixels of the images that the loaders give')
    parser.add_argument('--train-sizes', type=sixteens, nargs='+', default=[64, 224],
                        help='pixels of the images that are trained on, 16x16 patches of them')
    parser.add_argument('--batch', type=timing.positive, default=32, help='images')
    parser.add_argument('--workers', type=timing.positive, default=1, help='data workers')
    parser.add_argument('--threads', type=timing.positive, help='of a training on the CPU; as many as torch takes, '
                        'less the data workers, since all would wait for one that shares its core')
    parser.add_argument('--processes', type=timing.positive, default=5, help='in each of which all is measured')
    timing.add_arguments(parser, repeats=2, name='classifier')
    parser.set_defaults(run=run)


def sixteens(text: str) -> int:
    """An argument that 16 divides."""
    value = timing.positive(text)
    if value % 16:
        raise argparse.ArgumentTypeError(f'{value} is no multiple of 16')
    return value


def transform(augmentation: str) -> dict:
    return dict(is_training=True, interpolation='bicubic', color_jitter=None, **AUGMENTATIONS[augmentation])


def our_loader(args, size: int, augmentation: str):
    return Runner.build_dataloader(dict(
        batch_size=args.batch, num_workers=args.workers, persistent_workers=True, drop_last=True,
        collate_fn=dict(type='mmtok.stack_images'), sampler=dict(type='mmtok.EpochSampler'),
        dataset=dict(type='mmtok.ImageDataset', data_root=str(args.data),
                     transform=dict(input_size=size, **transform(augmentation)))), args.seed)


def timm_loader(args, size: int, augmentation: str, normalise: bool):
    """timm's; with `normalise` as its training script has it, else its DataLoader alone, whose batches are uint8."""
    loader = create_loader(
        create_dataset('', str(args.data), 'train'), (3, size, size), args.batch,
        num_workers=args.workers, device=torch.device('cpu'), **transform(augmentation))
    return loader if normalise else loader.loader


class Speed(NamedTuple):
    """Of an epoch."""

    images_per_second: float
    cpu_ms: float  # of an image


Found = dict[tuple[str, int], dict[str, list[Speed]]]  # of what is measured and its pixels: the epochs of each side


class Clock:
    """Starts when it is made."""

    def __init__(self):
        self.cpu, self.time = timing.cpu_seconds(), time.perf_counter()

    def speed(self, images: int) -> Speed:
        seconds = time.perf_counter() - self.time
        return Speed(images / seconds, 1e3 * (timing.cpu_seconds() - self.cpu) / images)


def epoch_of(loader) -> Callable[[], Speed]:
    """Reads an epoch."""
    def read() -> Speed:
        clock = Clock()
        return clock.speed(sum(len(images.contiguous()) for images, _ in loader))
    return read


def speeds_in_turns(sides: dict[str, Callable[[], Speed]], repeats: int, first: int) -> dict[str, list[Speed]]:
    """The speed in each round, the order of the sides changing from that of round `first`; after one warm-up."""
    found = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name in order_of_round(sides, first + number):
            value = sides[name]()
            if number:
                found[name].append(value)
    return found


def train_in_turns(args, size: int, work_dir: str, first: int) -> dict[str, list[Speed]]:
    """Trains by mmengine's Runner with the hooks of our configs, epochs in turns with a plain loop's; see above."""
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({
        'work_dir': work_dir, 'visualizer.name': work_dir, 'log_level': 'ERROR', 'model.num_classes': args.classes,
        'model.backbone.img_size': size, 'model.backbone.patch_size': size // 16,
        'train_cfg.max_epochs': args.repeats + 1, 'val_cfg': None,
        'val_dataloader': None, 'val_evaluator': None, 'default_hooks.checkpoint.interval': -1,
        'default_hooks.checkpoint.save_last': False, 'train_dataloader.batch_size': args.batch,
        'train_dataloader.num_workers': args.workers, 'train_dataloader.dataset.data_root': str(args.data)})
    cfg.train_dataloader.dataset.transform = dict(input_size=size, **transform('RandAugment'))
    if first % 2:  # built first, too
        runner, train_plainly = RUNNERS.build(cfg), plain_training(args, size)
    else:
        train_plainly, runner = plain_training(args, size), RUNNERS.build(cfg)
    ours, others = [], []

    class Turns(Hook):
        """Times an epoch and lets the other side train one."""

        priority = 'LOWEST'

        def before_train_epoch(self, runner):
            if (first + len(ours)) % 2:  # each side is first in every other round
                others.append(train_plainly())
            self.clock, self.count = Clock(), 0

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.count += len(data_batch[1])

        def after_train_epoch(self, runner):
            ours.append(self.clock.speed(self.count))
            if len(others) < len(ours):
                others.append(train_plainly())
    runner.register_hook(Turns())
    runner.train()
    return {'mmtok': ours[1:], 'plain loop': others[1:]}


class Plain(nn.Module):
    """The same model without mmengine around it."""

    def __init__(self, size: int, classes: int):
        super().__init__()
        options = Config.fromfile(CONFIG).model.backbone.to_dict()
        options.pop('type')
        self.backbone = DeiT(**{**options, 'img_size': size, 'patch_size': size // 16, 'classifier': True})
        self.head = nn.Linear(self.backbone.out_channels[-1], classes)

    def forward(self, x):
        return self.head(self.backbone(x)[0])


def plain_training(args, size: int) -> Callable[[], Speed]:
    """A loop as one types it: timm's loader, AdamW, a cosine; trains an epoch."""
    loader, model = timm_loader(args, size, 'RandAugment', normalise=True), Plain(size, args.classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule, state = CosineLRScheduler(optimizer, 1000, t_in_epochs=False), dict(step=0)

    def train() -> Speed:
        model.train()
        count, clock = 0, Clock()
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state['step'] += 1
            schedule.step_update(state['step'])
            loss.item()  # a loop that logs
            count += len(images)
        return clock.speed(count)
    return train


def measure(args, process: int) -> Found:
    """Everything, in this process; which side is first depends on its number."""
    # Data workers start as they do in a training, and not as this process did
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    timing.keep_pages()
    found = {}
    for size, augmentation in itertools.product(args.loader_sizes, AUGMENTATIONS):
        sides = {'mmtok': epoch_of(our_loader(args, size, augmentation)),
                 'timm': epoch_of(timm_loader(args, size, augmentation, normalise=False))}
        found[f'loader, {augmentation}', size] = speeds_in_turns(sides, args.repeats, process)
    with tempfile.TemporaryDirectory() as folder:
        for size in args.train_sizes:
            torch.manual_seed(args.seed)
            found['training', size] = train_in_turns(args, size, f'{folder}/{size}', process)
    return found


def measure_anew(args, process: int) -> Found:
    """In a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as executor:
        return executor.submit(measure, args, process).result()


def ratios(sides: dict[str, list[Speed]], name: str) -> np.ndarray:
    """mmtok's images per second and processor time over another side's, medians over the rounds."""
    return np.median(np.array(sides['mmtok']) / np.array(sides[name]), axis=0)


def report(what: str, size: int, processes: list[dict[str, list[Speed]]], args) -> list[dict]:
    """One block; each figure is a median over the processes of their medians over rounds, the ratios' of ours / theirs.
    """
    rows = []
    print(f'\n{what}, {size} px\n  {"":14} {"images/s":>9} {"20 %":>8} {"80 %":>8}   mmtok / this, 20 %, 80 %    '
          'CPU ms an image   mmtok / this, 20 %, 80 %')
    for name in processes[0]:
        medians = np.array([np.median(found[name], axis=0) for found in processes])
        over = np.array([ratios(found, name) for found in processes])
        (median, low, high), (cpu, _, _) = (spread(values) for values in medians.T)
        ratio, cpu_ratio = (spread(values) for values in over.T)
        print(f'  {name:14} {median:9.1f} {low:8.1f} {high:8.1f}   {ratio[0]:7.3f} {ratio[1]:7.3f} {ratio[2]:7.3f}'
              f'    {cpu:15.3f}   {cpu_ratio[0]:7.3f} {cpu_ratio[1]:7.3f} {cpu_ratio[2]:7.3f}')
        rows.append(dict(what=what, method=name, images_per_second=round(median, 2), p20=round(low, 2),
                         p80=round(high, 2), mmtok_over_it=round(ratio[0], 4), ratio_p20=round(ratio[1], 4),
                         ratio_p80=round(ratio[2], 4), cpu_ms=round(cpu, 4), cpu_over_it=round(cpu_ratio[0], 4),
                         cpu_ratio_p20=round(cpu_ratio[1], 4), cpu_ratio_p80=round(cpu_ratio[2], 4), size=size,
                         batch=args.batch, workers=args.workers, processes=args.processes, repeats=args.repeats,
                         **provenance(args.seed)))
    return rows


def run(args) -> None:
    args.threads = args.threads or max(1, torch.get_num_threads() - args.workers)
    torch.set_num_threads(args.threads)  # as the file says
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            from scenes import draw_image_folder
            args.data = Path(folder) / 'data'
            print(f'Drawing 800 images of {args.side}x{args.side} pixels')
            draw_image_folder(args.data, train=200, val=1, side=args.side)
        args.classes = len(our_loader(args, 64, 'flip and crop').dataset.metainfo['classes'])
        found = []
        for process in range(args.processes):
            found.append(measure_anew(args, process))
            print(f'process {process + 1} of {args.processes}, mmtok / peer: ' + ', '.join(
                f'{what} {size} px {ratios(sides, list(sides)[1])[0]:.3f}'
                for (what, size), sides in found[-1].items()), flush=True)
    write_csv(args.out, [row for what, size in found[0] for row in report(
        what, size, [process[what, size] for process in found], args)])
