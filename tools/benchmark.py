"""Benchmarks as commands that anyone can run; each prints ratios against what a user would pick instead.

    python tools/benchmark.py moto            # the operator against the paper's formula in plain PyTorch
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from benchmarks import moto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    moto.add_arguments(commands.add_parser('moto', help=moto.__doc__.splitlines()[0]))
    args = parser.parse_args()
    args.run(args)


if __name__ == '__main__':
    main()
