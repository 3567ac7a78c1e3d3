"""The process group of trainings on several CPU processes (gloo)."""

import atexit
import datetime
import time

from torch import distributed

LEAVING = 0.5  # seconds: many times what a thread needs to get its turn, on a machine with too much to do as well


def join_cpu_processes(timeout: float | None = None) -> None:
    """Make the default process group of what the launcher says in the environment.

    Args:
        timeout: Seconds that one process waits for another; torch's default if None.
    """
    options = {} if timeout is None else dict(timeout=datetime.timedelta(seconds=timeout))
    distributed.init_process_group('gloo', **options)
    atexit.register(let_threads_finish)


def let_threads_finish() -> None:
    """At the end of the process, leave Python to gloo's threads for a moment.

    A thread may still hold a tensor of the last exchange. Were it to give it back to a Python that is ending, C++ would
    abort the process (exit code -6), and a training that went well would count as a failure. To destroy the process
    group would not do: torch 2.1 waits for the threads without letting them have Python, and so does the reducer of
    DistributedDataParallel in later ones, for ever.
    """
    time.sleep(LEAVING)
