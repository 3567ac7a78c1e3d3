"""Train an image classifier of a config, such as those in configs/imagenet and configs/cifar10.

    python tools/train_classifier.py CONFIG                              # writes to work_dirs/CONFIG's name
    python tools/train_classifier.py CONFIG --resume                     # goes on from the last checkpoint
    tools/dist_train.sh classifier CONFIG 8                              # on 8 GPUs
"""

import argparse
import difflib
import inspect
import os
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from mmtok.engine.options import DictAction
from mmtok.engine.settings import subtrees
from mmtok.errors import ConfigError, check_positive_int

# What mmengine's Runner and its wrappers read beside its arguments
READ = ('find_unused_parameters', 'model_wrapper_cfg', 'activation_checkpointing', 'efficient_conv_bn_eval', 'compile',
        'sync_bn', 'custom_imports')


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('--work-dir', help="where logs, checkpoints and results.json go; work_dirs/CONFIG's name")
    parser.add_argument('--resume', nargs='?', const='auto', metavar='FILE',
                        help='go on from this checkpoint, without a name from the last one in the work directory')
    parser.add_argument('--epochs', type=int,
                        help='train for so many, and fit the schedule of the learning rate to them')
    parser.add_argument('--amp', action='store_true', help='mixed precision; needs a GPU')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help="scale the learning rate by the batch of all processes over the recipe's")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='change settings of the config, such as train_dataloader.batch_size=64')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def load_config(args: argparse.Namespace) -> Config:
    """The config with what the command line changes."""
    if not Path(args.config).is_file():
        raise ConfigError(f'the config {args.config!r} is not there')
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        check_keys(cfg, args.cfg_options)
        cfg.merge_from_dict(args.cfg_options)
    if getattr(args, 'epochs', None) is not None:
        check_positive_int('--epochs', args.epochs)
        if not isinstance(cfg.param_scheduler, dict) or 'epochs' not in cfg.param_scheduler:
            raise ConfigError('--epochs fits the schedule mmtok.CosineLR alone: change train_cfg.max_epochs and '
                              f'param_scheduler of {args.config} together')
        epochs = dict.fromkeys(('train_cfg.max_epochs', 'param_scheduler.epochs'), args.epochs)
        for key, value in (args.cfg_options or {}).items():
            if value != epochs.get(key, value):
                raise ConfigError(f'--epochs {args.epochs} and --cfg-options {key}={value} contradict each other: give '
                                  'one of them')
        if 'epochs' in cfg:  # a variable of the file, which is part of what is written beside the checkpoints
            epochs['epochs'] = args.epochs
        cfg.merge_from_dict(epochs)
    if args.work_dir is not None or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or os.path.join('work_dirs', Path(args.config).stem)
    return cfg


def check_keys(cfg: Config, options: dict) -> None:
    """Refuse options of a name that neither the config nor mmengine's Runner has, and those without effect.

    Raises:
        ConfigError: Names what is meant, or the settings that a variable of the config file went into.
    """
    known = {*inspect.signature(Runner).parameters, 'runner_type', 'auto_scale_lr', 'resume', 'load_from', *READ}
    whole = cfg.to_dict()
    for key in options:
        name = key.split('.')[0]
        if name in known:
            continue
        if name not in cfg:
            near = difflib.get_close_matches(name, {*known, *cfg}, 1)
            raise ConfigError(f'--cfg-options {key}: the config has no {name!r}'
                              + (f'; is {near[0]!r} meant?' if near else ''))
        places = [path for path, node in subtrees(whole) if node == whole[name] and path.split('.')[0] != name]
        if places and not isinstance(whole[name], bool):  # else a hook may read it
            raise ConfigError(f'--cfg-options {key}: {name!r} is a variable of the config file, which has been put in '
                              f'place; change the settings themselves: {", ".join(places)}')


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ConfigError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...), the batch of all '
                              f'processes that the learning rate belongs to, in {args.config}')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    runner = RUNNERS.build(cfg)
    try:
        runner.train()
    except KeyboardInterrupt:
        if is_main_process():
            last = find_latest_checkpoint(runner.work_dir)
            if not runner._resume and last != runner.message_hub.get_info('last_ckpt'):
                last = None  # of an earlier training
            how = f'--resume goes on after {last}' if last else 'it has no checkpoint yet'
            print(f'mmtok: interrupted; {how}', file=sys.stderr)
        sys.excepthook = lambda *_: None
        raise  # Python then ends by the signal, with which a shell's loop around it ends too


if __name__ == '__main__':
    main()
