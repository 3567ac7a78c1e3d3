"""A checkpoint's place (path, URL, timm's name) -> what it holds, or one sentence that says what is wrong with it."""

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from inspect import signature
from pathlib import Path
from urllib.error import HTTPError, URLError
from zipfile import is_zipfile

import timm
import torch
from mmengine.dist import barrier, is_main_process
from safetensors import SafetensorError, safe_open
from timm.models import _hub as hub
from timm.models._hub import download_cached_file, get_cache_dir  # into torch.hub's cache, where mmengine looks too
from timm.utils.misc import natural_key

from ..errors import CheckpointError
from .archive import read_archive, read_legacy
from .unpickling import Forbidden
from .writing import META, SUFFIXES

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
        if not weights_only:
            content = torch.load(path, map_location='cpu', weights_only=False)
        elif kind == 'zip':
            content = read_archive(path)
        else:
            content = read_legacy(path)
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {name!r} {error}') from None
    except Forbidden as error:
        raise CheckpointError(f'checkpoint {name!r} holds {error}, which is not among the data that mmtok reads, and '
                              'could run code: it was not loaded; if you trust where it comes from, set '
                              'weights_only=False beside its name, or --trust of convert_checkpoint.py') from None
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f'checkpoint {name!r} needs code that is not installed here ({first_line(error)}): '
                              'install what it was saved with, or save its state_dict there') from error
    except Exception as error:  # torch and zipfile raise all kinds for a damaged file
        raise CheckpointError(f'checkpoint {name!r} is damaged or cut short ({first_line(error)}): copy or download '
                              'it again') from error
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict):
        raise CheckpointError(f'checkpoint {name!r} holds a {type(content).__name__} where a dict of tensors was '
                              'expected: save model.state_dict()')
    return content


def check_readable(location: str | None) -> None:
    """The .pth file that mmengine is to load, if any, is there and whole, as far as its end tells; no URL is looked at.

    Raises:
        CheckpointError: There is no such file, it is cut short, or of a kind that mmengine does not load.
    """
    if not location or '://' in location:
        return
    path = local_file(location)
    kind = sniff(path, location)
    if kind == 'safetensors':
        raise CheckpointError(f'checkpoint {location!r} is a .safetensors file, which mmengine does not load: write it '
                              'as .pth with tools/convert_checkpoint.py publish, or name it in '
                              'model.backbone.init_cfg')
    if kind == 'legacy':  # no table of contents at its end
        read_checkpoint(location, weights_only=False)
    elif not is_zipfile(path):
        raise CheckpointError(f'checkpoint {location!r} is damaged or cut short (its table of contents is missing): '
                              'copy or download it again')


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


def cache_of(url: str) -> str | None:
    """torch.hub's folder for a name with a hash, as mmengine and timm share it; else one for this URL alone.

    Many hosts call all of their files model.safetensors.
    """
    if re.search(r'-[0-9a-f]{8,}\.', url.rpartition('/')[2]):
        return None
    return str(Path(get_cache_dir()) / f'mmtok-{hashlib.sha256(url.encode()).hexdigest()[:12]}')


def download(url: str) -> Path:
    """The file of a URL, downloaded once."""
    try:
        with main_process_first():
            return Path(download_cached_file(url, progress=is_main_process(), cache_dir=cache_of(url)))
    except HTTPError as error:
        raise CheckpointError(f'checkpoint {url!r} cannot be downloaded: the server answers {error.code} '
                              f'({error.reason})') from error
    except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise CheckpointError(f'checkpoint {url!r} cannot be downloaded ({getattr(error, "reason", error)}): fetch it '
                              'where there is a network and name the file') from error
    except (OSError, RuntimeError, ValueError) as error:  # a full disk, another hash than in the name, no URL
        raise CheckpointError(f'checkpoint {url!r} cannot be downloaded ({error})') from error


def local_file(location: str) -> Path:
    """The file of a path or URL."""
    if location.startswith(WEB):
        return download(location)
    if not location:
        raise CheckpointError("checkpoint '' names no file")
    location = location.removeprefix('file://')
    if '://' in location:
        raise CheckpointError(f'checkpoint {location!r} is no place that mmtok knows: name a file, http(s)://..., or '
                              f'{TIMM}MODEL')
    try:
        path = Path(location).expanduser()
        inside = [str(file) for file in path.iterdir() if file.suffix in SUFFIXES] if path.is_dir() else None
        there = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that is not there
        raise CheckpointError(f'checkpoint {location!r} cannot be read ({error})') from error
    if inside is not None:
        raise CheckpointError(f'checkpoint {location!r} is a directory: name a file'
                              + (f' in it, such as {max(inside, key=natural_key)!r}' if inside else ''))
    if not there:
        ours = re.search(r'([^/]+_in1k)/epoch_\d+\.pth$', location)
        remedy = f'train it with python tools/train_classifier.py configs/imagenet/{ours[1]}.py, ' if ours else ''
        raise CheckpointError(f'checkpoint {location!r} does not exist: {remedy}put it there or name another one')
    return path


def sniff(path: Path, name: str) -> str:
    """'safetensors', 'zip' or 'legacy' (torch's format before 1.6), by the first bytes.

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
        return 'zip'
    if start[5:9] == b'\0\0\0{':  # after the length of a header in JSON
        if struct.unpack('<Q', start[:8])[0] + 8 > size:
            raise CheckpointError(f'checkpoint {name!r} is cut short: copy or download it again')
        return 'safetensors'
    if start[:1] == PICKLE:
        return 'legacy'
    other = next((fault for sign, fault in OTHERS.items() if start.startswith(sign)), None)
    if other is None and start.lstrip()[:1] == b'<':
        other = 'is a web page, not a checkpoint: the link that it came from leads to a page; download the file itself'
    if other is None:
        text = all(byte in b'\t\n\r' or 32 <= byte < 127 for byte in start)
        other = f'is {"a text file" if text else "of an unknown kind"}, not a checkpoint: name another'
    raise CheckpointError(f'checkpoint {name!r} {other}')


def read_safetensors(path: Path, name: str) -> dict:
    """Its tensors; with metadata, {'state_dict': tensors, 'meta': metadata}."""
    try:
        with safe_open(path, framework='pt') as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            meta = file.metadata() or {}
        return {'state_dict': state, 'meta': json.loads(meta[META]) if META in meta else meta}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f'checkpoint {name!r} is damaged or cut short ({error}): copy or download it '
                              'again') from error


def read_timm(location: str) -> dict[str, torch.Tensor]:
    """timm's pretrained model of a name, downloaded, cached and renamed by timm's own code."""
    name = location.removeprefix(TIMM)
    if name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')):  # a place of anyone's
        if signature(hub.load_state_dict_from_path).parameters['weights_only'].default is not True:
            raise CheckpointError(f'{location!r} could run code with timm {timm.__version__}: install a newer timm, or '
                                  'download the file and name it')
    elif not timm.is_model_pretrained(name):
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
