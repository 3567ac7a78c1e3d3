"""Test a checkpoint of an image classifier: top-1 and top-5, with an average of the weights of both.

    python tools/test_classifier.py CONFIG CHECKPOINT
"""

import argparse
import os

from mmengine.registry import RUNNERS

from mmtok.engine.options import DictAction
from train_classifier import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('checkpoint', metavar='CHECKPOINT')
    parser.add_argument('--work-dir', help="where log and config go; work_dirs/CONFIG's name/test")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args)
    if args.work_dir is None and 'work_dir' not in (args.cfg_options or {}):
        cfg.work_dir = os.path.join(cfg.work_dir, 'test')  # beside the config of the training, which stays as it was
    cfg.load_from = args.checkpoint
    RUNNERS.build(cfg).test()


if __name__ == '__main__':
    main()
