"""torchrun, without its traceback behind what a process has said: `launch.py [arguments of torch.distributed.run]`."""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(f'mmtok: the training has ended, because process {rank} ended with exit code {failure.exitcode}; what '
                 'it says of that stands above')


if __name__ == '__main__':
    main()
