"""Benchmarks as commands that anyone can run; each prints ratios against what a user would pick instead.

    python tools/benchmark.py moto            # the operator against the paper's formula in plain PyTorch
    python tools/benchmark.py backbones       # each trunk, plain and with MoTo, against timm's, mmdet's and mmseg's
    python tools/benchmark.py size            # parameters and multiply-adds beside the paper's
    python tools/benchmark.py classifier      # loading and training images against timm's loader and a plain loop
    python tools/benchmark.py training        # an iteration of each framework: what MoTo and TokenProp add
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from benchmarks import backbones, classifier, moto, size, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for module in (moto, backbones, size, classifier, training):
        name = module.__name__.rpartition('.')[2]
        module.add_arguments(commands.add_parser(name, help=module.__doc__.splitlines()[0], description=module.__doc__,
                                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    args = parser.parse_args()
    args.run(args)


if __name__ == '__main__':
    main()
