"""What one call adds to peak memory: of the resident set of this process (Linux), or of a GPU."""

import ctypes
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mmtok.ops import work_space

from .timing import order_of_round


def resident_kib(name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process; getrusage would report the parent's peak after exec."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f'{name} is not in /proc/self/status')


def limit_to_available() -> None:
    """Let what does not fit into the memory that is free raise an error, before the system kills this process."""
    free = next(int(line.split()[1]) for line in Path('/proc/meminfo').read_text().splitlines()
                if line.startswith('MemAvailable'))
    limit = (resident_kib('VmSize') + free * 9 // 10) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def added_peak(call: Callable, device: str) -> float:
    """MiB that a call, not its first, adds to the peak of this process, or of the memory of a GPU."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    work_space.release()  # or what MoTo takes for itself would not count
    ctypes.CDLL(None).malloc_trim(0)  # what lies free on the heap would be taken for nothing
    before = resident_kib('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here
    call()
    return (resident_kib('VmHWM') - before) / 1024


def peaks_interleaved(functions: dict[str, Callable], repeats: int, device: str,
                      before: Callable[[], object]) -> dict[str, np.ndarray]:
    """`added_peak` of each function, (repeats,) MiB, in rounds like those of `timing.time_interleaved`."""
    peaks = {name: [] for name in functions}
    for round_number in range(repeats):
        for name in order_of_round(functions, round_number):
            before()
            peaks[name].append(added_peak(functions[name], device))
    return {name: np.array(values) for name, values in peaks.items()}
