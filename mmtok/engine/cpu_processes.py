"""The process group of trainings on several CPU processes (gloo)."""

import atexit
import datetime
import gc
import sys
import traceback

from torch import distributed


def join_cpu_processes(timeout: float | None = None) -> None:
    """Make the default process group of what the launcher says in the environment, until this process ends.

    Args:
        timeout: Seconds that one process waits for another; torch's default if None.
    """
    options = {} if timeout is None else dict(timeout=datetime.timedelta(seconds=timeout))
    distributed.init_process_group('gloo', **options)
    atexit.register(leave_cpu_processes)


def leave_cpu_processes() -> None:
    """End gloo's threads while Python still runs.

    A thread may still hold a tensor of the last exchange. Were it to give it back to a Python that is ending, C++ would
    abort the process (exit code -6), and a training that went well would count as a failure.
    """
    if not distributed.is_initialized():
        return
    group = distributed.group.WORLD
    distributed.destroy_process_group()
    # A model wrapped for several processes uses the group, and would wait for its threads without letting them have
    # Python: it must go before the group does. The runner's cycles hold it, and the frames of what ended this process
    error = getattr(sys, 'last_value', None)
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    del group
