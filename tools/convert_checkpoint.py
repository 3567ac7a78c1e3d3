"""Look into a checkpoint, rename it for another package, or make it small enough to give away.

    python tools/convert_checkpoint.py inspect FILE                    # whose it is, and what would load where
    python tools/convert_checkpoint.py convert FILE OUT --to timm      # the backbone alone, under other names
    python tools/convert_checkpoint.py publish FILE OUT                # without optimizer, logs and TokenProp's decoder

FILE is a path, a URL or timm://MODEL; OUT ends in .pth or .safetensors and must not be there. publish adds the first
digits of the file's SHA-256 to its name: OUT-1a2b3c4d.pth.
"""

import argparse
from pathlib import Path

from mmtok.checkpoint.convert import convert, inspect, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, function in (('inspect', inspect), ('convert', convert), ('publish', publish)):
        text = function.__doc__.split('\n\n')[0]
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument('file', metavar='FILE')
        if name != 'inspect':
            command.add_argument('out', metavar='OUT', type=Path)
        if name == 'convert':
            command.add_argument('--to', required=True, metavar='FORMAT',
                                 help='mmtok, timm, authors, mmdet, mmseg or mmpretrain; inspect lists those of a file')
        command.add_argument('--trust', action='store_true', help='unpickle all that the file says, which can run code')
    args = parser.parse_args()
    options = dict(weights_only=not args.trust)
    if args.command == 'inspect':
        print(inspect(args.file, **options))
    elif args.command == 'convert':
        print(convert(args.file, args.out, args.to, **options))
    else:
        print(publish(args.file, args.out, **options)[1])


if __name__ == '__main__':
    main()
