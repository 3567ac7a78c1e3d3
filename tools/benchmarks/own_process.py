"""Measuring in a process of its own, whose heap knows nothing of what others have measured."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection


class OwnProcess:
    """`function(connection, *args)` in another process, started by `with`, which waits for its end.

    What waits for a question gets EOFError when there are no more. The process does not outlive this one (on Linux).
    """

    def __init__(self, what: str, function: Callable[..., None], *args):
        context = multiprocessing.get_context('spawn')
        self.what = what  # for messages
        self.connection, self.other = context.Pipe()
        self.process = context.Process(target=run, args=(function, self.other, *args))

    def __enter__(self) -> 'OwnProcess':
        try:
            self.process.start()
        except BaseException:  # interrupted: at exit, multiprocessing would wait for it
            if self.process.pid is not None:
                self.process.terminate()
            raise
        self.other.close()  # so that the end of that process ends a wait
        return self

    def __exit__(self, error, *_) -> None:
        self.connection.close()
        if error is not None:
            self.process.terminate()
        self.process.join()

    def receive(self, *question) -> object:
        """What the function sends next, or as an answer to what it is asked."""
        try:
            if question:
                self.connection.send(question)
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            why = 'failed: see above' if code >= 0 else (
                f'was killed by signal {-code}: if nobody did that, for memory; leave large --shapes out')
            raise SystemExit(f'mmtok: the process that measured {self.what} {why}') from None


def run(function: Callable[..., None], connection: Connection, *args) -> None:
    """What the other process does."""
    if sys.platform == 'linux':
        pr_set_pdeathsig = 1  # prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')  # others go on starting while the clock runs
    function(connection, *args)
