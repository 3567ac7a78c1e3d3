"""A checkpoint's place (path, URL, timm's name) -> what it holds, or one sentence that says what is wrong with it."""

import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError

import timm
import torch
from mmengine.dist import barrier, is_main_process
from safetensors import SafetensorError, safe_open
from timm.models._hub import download_cached_file  # into torch.hub's cache, where mmengine looks too

from ..errors import CheckpointError
from .unpickling import DataPickle, Forbidden

ZIP, PICKLE = b'PK\x03\x04', b'\x80'
TIMM, WEB = 'timm://', ('http://', 'https://')
# What is often found where a checkpoint was expected, by its first bytes.
OTHERS = {b'version https://git-lfs': 'is a pointer of Git LFS: fetch the file itself with git lfs pull',
          b'\x1f\x8b': 'is compressed with gzip: unpack it', b'BZh': 'is compressed with bzip2: unpack it',
          b'\xfd7zXZ': 'is compressed with xz: unpack it', b'\x89HDF': 'is an HDF5 file of another framework',
          b'\x93NUMPY': 'is a NumPy array: take the PyTorch file'}


def read_checkpoint(location: str, weights_only: bool = True) -> dict:
    """Read a checkpoint onto the CPU.

    Args:
        location: Path of a .pth or .safetensors file, `http(s)://`, or `timm://name` for a model of timm's with its
            pretrained weights.
        weights_only: Build data alone (tensors, arrays, numbers, settings). False unpickles whatever the file says,
            which can run any code.

    Raises:
        CheckpointError: When there is no such file, it is damaged, is no checkpoint, or would run code.
    """
    if location.startswith(TIMM):
        return read_timm(location)
    path = local_file(location)
    name = location
    if location.startswith(WEB):
        name += f' (kept as {path}: delete that to download it again)'
    kind = sniff(path, name)
    if kind == 'safetensors':
        return read_safetensors(path, name)
    try:
        options = dict(pickle_module=DataPickle) if weights_only else {}
        content = torch.load(path, map_location='cpu', weights_only=False, **options)  # torch's is another allowlist
    except Forbidden as error:
        raise CheckpointError(f'checkpoint {name!r} holds {error}, which is no data and could run code: it was not '
                              'loaded; if you trust where it comes from, set weights_only=False beside its '
                              'name') from None
    except MemoryError:
        raise
    except Exception as error:  # torch raises all kinds for a damaged file
        raise CheckpointError(f'checkpoint {name!r} is damaged or cut short ({first_line(error)}): copy or download '
                              'it again') from error
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict):
        raise CheckpointError(f'checkpoint {name!r} holds a {type(content).__name__} where a dict of tensors was '
                              'expected: save model.state_dict()')
    return content


@contextmanager
def main_process_first() -> Iterator[None]:
    """Other processes wait until the main one has been through the block, and find in the cache what it downloaded."""
    main = is_main_process()
    if not main:
        barrier()
    try:
        yield
    finally:
        if main:
            barrier()


def download(url: str) -> Path:
    """The file of a URL, downloaded once."""
    try:
        with main_process_first():
            return Path(download_cached_file(url, progress=is_main_process()))
    except HTTPError as error:
        raise CheckpointError(f'checkpoint {url!r} cannot be downloaded: the server answers {error.code} '
                              f'({error.reason})') from error
    except (URLError, TimeoutError, ConnectionError) as error:
        raise CheckpointError(f'checkpoint {url!r} cannot be downloaded ({getattr(error, "reason", error)}): fetch it '
                              'where there is a network and name the file') from error
    except (OSError, RuntimeError, ValueError) as error:  # a full disk, another hash than in the name, no URL
        raise CheckpointError(f'checkpoint {url!r} cannot be downloaded ({error})') from error


def local_file(location: str) -> Path:
    """The file of a path or URL."""
    if location.startswith(WEB):
        return download(location)
    location = location.removeprefix('file://')
    if '://' in location:
        raise CheckpointError(f'checkpoint {location!r} is no place that mmtok knows: name a file, http(s)://..., or '
                              f'{TIMM}MODEL')
    path = Path(location).expanduser()
    if path.is_dir():
        inside = sorted(str(file) for file in path.iterdir() if file.suffix in ('.pth', '.pt', '.safetensors'))
        raise CheckpointError(f'checkpoint {location!r} is a directory: name a file'
                              + (f' in it, such as {inside[-1]!r}' if inside else ''))
    if not path.is_file():
        raise CheckpointError(f'checkpoint {location!r} does not exist: put it there or name another one')
    return path


def sniff(path: Path, name: str) -> str:
    """'safetensors' or 'pickle', by the first bytes.

    Raises:
        CheckpointError: For anything else.
    """
    try:
        with path.open('rb') as file:
            start = file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f'checkpoint {name!r} cannot be read ({error.strerror or error})') from error
    if not start:
        raise CheckpointError(f'checkpoint {name!r} is empty: copy or download it again')
    if start[:4] == ZIP:
        return sniff_zip(path, name)
    if start[5:9] == b'\0\0\0{':  # after the length of a header in JSON
        if struct.unpack('<Q', start[:8])[0] + 8 > size:
            raise CheckpointError(f'checkpoint {name!r} is cut short: copy or download it again')
        return 'safetensors'
    if start[:1] == PICKLE:
        return 'pickle'
    other = next((fault for sign, fault in OTHERS.items() if start.startswith(sign)), None)
    if other is None and start.lstrip()[:1] == b'<':
        other = 'is a web page, not a checkpoint: the link that it came from leads to a page; download the file itself'
    if other is None:
        text = all(byte in b'\t\n\r' or 32 <= byte < 127 for byte in start)
        other = f'is {"a text file" if text else "of an unknown kind"}, not a checkpoint: give a .pth or .safetensors'
    raise CheckpointError(f'checkpoint {name!r} {other}')


def sniff_zip(path: Path, name: str) -> str:
    """torch writes zip files; so do others."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.split('/', 1)[-1] for member in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f'checkpoint {name!r} is cut short or damaged ({error}): copy or download it '
                              'again') from error
    if 'constants.pkl' in members:
        raise CheckpointError(f'checkpoint {name!r} is a TorchScript program, which would be run: save '
                              'torch.jit.load(FILE).state_dict() with torch.save and name that')
    if 'data.pkl' not in members:
        what = 'a NumPy archive' if any(member.endswith('.npy') for member in members) else 'a zip file'
        raise CheckpointError(f'checkpoint {name!r} is {what}, not a checkpoint of PyTorch')
    return 'pickle'


def read_safetensors(path: Path, name: str) -> dict:
    """Its tensors; with metadata, {'state_dict': tensors, 'meta': metadata}."""
    try:
        with safe_open(path, framework='pt') as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            meta = file.metadata() or {}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f'checkpoint {name!r} is damaged or cut short ({error}): copy or download it '
                              'again') from error
    return {'state_dict': state, 'meta': meta}


def read_timm(location: str) -> dict[str, torch.Tensor]:
    """timm's pretrained model of a name, downloaded, cached and renamed by timm's own code."""
    name = location.removeprefix(TIMM)
    if not name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')) and not timm.is_model_pretrained(name):
        like = timm.list_pretrained(f'{name.split(".")[0]}*')[:3]
        raise CheckpointError(f'timm has no pretrained model {name!r}'
                              + (f': do you mean {", ".join(like)}' if like else ' (see timm.list_pretrained())'))
    try:
        with main_process_first():
            return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the many libraries between timm and the network
        raise CheckpointError(f'{location!r} cannot be had through timm ({first_line(error)}): where there is no '
                              'network, name a file') from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
