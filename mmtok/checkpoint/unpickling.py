"""An unpickler that makes data alone: tensors, arrays, and the bookkeeping of trainings as dicts.

torch's own `weights_only` refuses what the authors' and mm* files hold beside their tensors (Namespace, HistoryBuffer,
CfgNode), and torch 2.1 has no way to allow more. This allowlist is the same on every torch.
"""

import collections
import pickle
import re
from argparse import Namespace

import numpy as np
import torch

DTYPE = re.compile('[biufcSU][0-9]+')  # no pointers: numpy takes the bytes of a pickled 'O' for addresses


class Forbidden(pickle.UnpicklingError):
    """A pickle asks for what is not on the list; the message names it."""


class Record(dict):
    """Stands for an object of which only the attributes are of interest."""

    def __setstate__(self, state) -> None:
        self.update(state if isinstance(state, dict) else {'state': state})


class HistoryBuffer(Record):
    """mmengine's log of one value."""


class CfgNode(Record):
    """yacs' dict, in Swin's files."""


class Array:
    """Stands for numpy's ndarray where a pickle names it."""


class PendingDtype:
    """numpy.dtype(spec, ...), until its state is there."""

    def __init__(self, spec: str, *_):
        if not isinstance(spec, str) or not DTYPE.fullmatch(spec):
            raise Forbidden(f'an array of {spec!r}')
        self.spec = spec

    def finish(self, state: tuple) -> np.dtype:
        order, fields = state[1], state[2:5]
        if order not in ('<', '>', '|', '=') or any(field is not None for field in fields):
            raise Forbidden(f'an array of {self.spec!r} with {state!r}')
        return np.dtype(self.spec).newbyteorder(order)  # its flags are numpy's own, not those of the pickle


class PendingArray:
    """What numpy's `_reconstruct` makes, until its state is there."""

    def __init__(self, *_):
        pass

    def finish(self, state: tuple) -> np.ndarray:
        _, shape, dtype, fortran, content = state
        content = content.encode('latin1') if isinstance(content, str) else content
        return np.frombuffer(content, checked(dtype)).reshape(shape, order='F' if fortran else 'C').copy()


def scalar(dtype: np.dtype, content: bytes | str) -> np.generic:
    content = content.encode('latin1') if isinstance(content, str) else content
    return np.frombuffer(content, checked(dtype))[0]


def checked(dtype: np.dtype) -> np.dtype:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise Forbidden(f'an array of {dtype!r}')
    return dtype


def encode(text: str, encoding: str) -> bytes:
    """What Python 2 and protocol 2 make bytes with."""
    if encoding not in ('latin1', 'latin-1'):
        raise Forbidden(f'_codecs.encode with {encoding!r}')
    return text.encode('latin1')


def no_attribute(holder: object, name: str) -> None:
    """In place of `getattr`: mmengine's HistoryBuffer keeps its own methods, which nothing here calls."""


def path(*parts: str) -> str:
    return '/'.join(parts).replace('//', '/')


def harmless() -> dict[tuple[str, str], object]:
    """What a checkpoint may name: (module, name) -> what is built for it."""
    found = {('argparse', 'Namespace'): Namespace, ('yacs.config', 'CfgNode'): CfgNode,
             ('mmengine.logging.history_buffer', 'HistoryBuffer'): HistoryBuffer, ('_codecs', 'encode'): encode,
             ('torch', 'Size'): torch.Size, ('torch', 'device'): torch.device, ('builtins', 'getattr'): no_attribute,
             ('numpy', 'ndarray'): Array, ('numpy', 'dtype'): PendingDtype}
    for name in ('OrderedDict', 'defaultdict', 'Counter', 'deque'):
        found['collections', name] = getattr(collections, name)
    for kind in (bool, bytearray, complex, dict, float, frozenset, int, list, set, str, tuple):
        found['builtins', kind.__name__] = kind
    for name in ('PosixPath', 'WindowsPath', 'PurePosixPath', 'PureWindowsPath'):
        found['pathlib', name] = path
    for name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'):
        found['torch._utils', name] = getattr(torch._utils, name)
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            found['torch', name] = value
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # numpy 1 and 2
        found[core, '_reconstruct'], found[core, 'scalar'] = PendingArray, scalar
    return found


HARMLESS = harmless()
FILLED = (Record, Namespace, collections.OrderedDict, collections.defaultdict, collections.Counter)


class Unpickler(pickle._Unpickler):  # in Python, so that what may be filled with a state can be chosen too
    """Builds what `HARMLESS` names, and nothing else."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> object:
        module = {'__builtin__': 'builtins'}.get(module, module)
        if (module, name) not in HARMLESS:
            raise Forbidden(f'{module}.{name}')
        return HARMLESS[module, name]

    def fill(self) -> None:
        """The BUILD operation, which could write attributes of classes and functions."""
        target, state = self.stack[-2:]
        if isinstance(target, (PendingDtype, PendingArray)):
            made = target.finish(state)
            self.stack.pop()
            self.stack[-1] = made
            self.memo.update({key: made for key, value in self.memo.items() if value is target})
        elif isinstance(target, FILLED) and isinstance(state, dict):
            self.load_build()
        else:
            raise Forbidden(f'a state for {getattr(target, "__name__", type(target).__name__)}')

    dispatch[pickle.BUILD[0]] = fill


class DataPickle:
    """The `pickle_module` for torch.load."""

    Unpickler = Unpickler

    @staticmethod
    def load(file, **options) -> object:
        return Unpickler(file, **options).load()
