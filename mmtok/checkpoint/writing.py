"""Files that are there whole or not at all, and checkpoints in them."""

import contextlib
import io
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from ..errors import StorageError

TEMPORARY = '.unfinished'  # behind the name of a file that is being written
META = 'mmtok'  # the metadata of a .safetensors file that hold ours, as JSON
SUFFIXES = ('.pth', '.pt', '.safetensors')


def write_whole(path: str, data: bytes) -> None:
    """Write a file that is there whole or not at all: temporary name, flush to the disk, rename.

    Raises:
        OSError: Nothing is left of the temporary file; what stood at `path` before still does.
    """
    temporary = f'{path}{TEMPORARY}'
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    with contextlib.suppress(OSError):  # the rename itself, which a power cut could lose; not every file system can
        folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def checkpoint_bytes(state: dict[str, Tensor], meta: dict, suffix: str, wrapper: str = 'state_dict') -> bytes:
    """A checkpoint as the content of a .safetensors file, or of a .pth file.

    Args:
        wrapper: Under which name a .pth file holds the tensors; '' for the tensors alone.
    """
    state = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}  # no larger storages
    if suffix == '.safetensors':
        return safetensors_bytes(state, {'format': 'pt', META: json.dumps(meta, default=str)})
    buffer = io.BytesIO()
    torch.save({wrapper: state, 'meta': meta} if wrapper else state, buffer)
    return buffer.getvalue()


def check_target(path: Path) -> None:
    """Refuse to overwrite, and names that say nothing of the format.

    Raises:
        StorageError: For such a path.
    """
    if path.suffix not in SUFFIXES:
        raise StorageError(f'{str(path)!r} must end in {", ".join(SUFFIXES)}')
    try:
        there, folder = path.exists(), path.resolve().parent.is_dir()
    except OSError as error:
        raise StorageError(f'{str(path)!r} cannot be written ({error.strerror or error})') from error
    if there:
        raise StorageError(f'{str(path)!r} exists: name another file or move it away')
    if not folder:
        raise StorageError(f'the folder of {str(path)!r} does not exist: make it first')


def write_new(path: Path, data: bytes) -> None:
    """Write a file that was not there.

    Raises:
        StorageError: When it cannot be written.
    """
    check_target(path)
    try:
        write_whole(str(path), data)
    except OSError as error:
        raise StorageError(f'{str(path)!r} cannot be written ({error.strerror or error})') from error
