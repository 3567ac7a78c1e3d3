"""torch's two file formats, read with an unpickler that makes data alone.

torch.load is not used for zip files: it hands what it takes for TorchScript to torch.jit, which runs it, and zip
readers can be made to disagree about what a file holds.
"""

import tarfile
import zipfile
from pathlib import Path

import torch

from ..errors import CheckpointError
from .unpickling import DataPickle, Forbidden, Unpickler

STORAGES = {f'{name}Storage': dtype for name, dtype in (
    ('Double', torch.float64), ('Float', torch.float32), ('Half', torch.float16), ('BFloat16', torch.bfloat16),
    ('Long', torch.int64), ('Int', torch.int32), ('Short', torch.int16), ('Char', torch.int8), ('Byte', torch.uint8),
    ('Bool', torch.bool), ('ComplexDouble', torch.complex128), ('ComplexFloat', torch.complex64))}


class ArchiveUnpickler(Unpickler):
    """Reads data.pkl; the storages of its tensors are members of their own."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(archive.open(f'{folder}/data.pkl'), encoding='utf-8')
        self.archive, self.folder, self.storages = archive, folder, {}

    def find_class(self, module: str, name: str) -> object:
        if module == 'torch' and name in STORAGES:
            return STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: tuple) -> torch.storage.TypedStorage:
        """('storage', dtype, name of the member, device, number of elements) -> its storage, on the CPU."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != 'storage' or pid[1] not in STORAGES.values():
            raise Forbidden(f'a reference {pid!r}')
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f'{self.folder}/data/{key}'))
            untyped = torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else (
                torch.UntypedStorage(0))
            self.storages[key] = torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)
        return self.storages[key]


def read_archive(path: Path) -> object:
    """What a zip file of torch.save holds.

    Raises:
        CheckpointError: For another kind of zip file.
        Forbidden: For content that is no data.
        zipfile.BadZipFile, OSError, EOFError, ...: For a damaged one; sums of all that is read are checked.
    """
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        folders = [name.removesuffix('/data.pkl') for name in members if name.endswith('/data.pkl')]
        if any(name.endswith('/constants.pkl') for name in members):
            raise CheckpointError('is a TorchScript program, which would be run: save '
                                  'torch.jit.load(FILE).state_dict() with torch.save and name that')
        if not folders:
            what = 'a NumPy archive' if any(name.endswith('.npy') for name in members) else 'a zip file'
            raise CheckpointError(f'is {what}, not a checkpoint of PyTorch')
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise CheckpointError('is a compressed zip file: write it with torch.save')
        if members.get(order := f'{folders[0]}/byteorder') and archive.read(order) != b'little':
            raise CheckpointError('was written on a big-endian machine: save it again on a little-endian one')
        return ArchiveUnpickler(archive, folders[0]).load()


def read_legacy(path: Path) -> object:
    """What torch.save wrote before torch 1.6.

    Raises:
        CheckpointError: For the format before that one.
        Forbidden: For content that is no data.
    """
    if tarfile.is_tarfile(path):
        raise CheckpointError('is a tar file, of torch before 0.1.10: save it again with a newer one')
    try:
        return torch.load(path, map_location='cpu', pickle_module=DataPickle, weights_only=False)  # ours allows less
    except RuntimeError as error:
        if 'magic number' in str(error):
            raise CheckpointError('is a pickle that torch.save did not write: save a state_dict with it') from None
        raise
