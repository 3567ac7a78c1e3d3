"""The name of this machine's processor, which measured numbers are kept with."""

import platform
from pathlib import Path


def processor_name(cpuinfo: Path = Path('/proc/cpuinfo')) -> str:
    """As Linux knows it, where Python has nothing or the architecture alone."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()
