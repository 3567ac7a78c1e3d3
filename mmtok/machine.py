"""The names of this machine's processors, which measured numbers are kept with."""

import platform
from pathlib import Path

import torch


def processor_name(cpuinfo: Path = Path('/proc/cpuinfo')) -> str:
    """As Linux knows it, where Python has nothing or the architecture alone."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def training_device() -> str:
    """The name of the GPU that mmengine trains on, or else of the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
