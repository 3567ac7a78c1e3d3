"""torch.load with an unpickler that makes data alone: tensors, arrays, and the bookkeeping of trainings as dicts.

torch's own `weights_only` refuses what the authors' and mm* files hold beside their tensors (Namespace, HistoryBuffer,
CfgNode), and torch 2.1 has no way to allow more. This allowlist is the same on every torch.
"""

import collections
import pickle
from argparse import Namespace

import numpy as np
import torch


class Record(dict):
    """Stands for an object of which only the attributes are of interest."""

    def __setstate__(self, state) -> None:
        self.update(state if isinstance(state, dict) else {'state': state})


class HistoryBuffer(Record):
    """mmengine's log of one value."""


class CfgNode(Record):
    """yacs' dict, in Swin's files."""


def encode(text: str, encoding: str) -> bytes:
    """What Python 2 and protocol 2 make bytes with."""
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'_codecs.encode with {encoding}')
    return text.encode('latin1')


def no_attribute(holder: object, name: str) -> None:
    """In place of `getattr`: mmengine's HistoryBuffer keeps its own methods, which nothing here calls."""


def harmless() -> dict[tuple[str, str], object]:
    """What a checkpoint may name: (module, name) -> what is built instead."""
    found = {('argparse', 'Namespace'): Namespace, ('yacs.config', 'CfgNode'): CfgNode,
             ('mmengine.logging.history_buffer', 'HistoryBuffer'): HistoryBuffer,
             ('collections', 'OrderedDict'): collections.OrderedDict,
             ('collections', 'defaultdict'): collections.defaultdict, ('_codecs', 'encode'): encode,
             ('torch', 'Size'): torch.Size, ('torch', 'device'): torch.device,
             ('builtins', 'getattr'): no_attribute}
    for kind in (bool, bytearray, complex, dict, float, frozenset, int, list, set, str, tuple):
        found['builtins', kind.__name__] = kind
    for name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'):
        found['torch._utils', name] = getattr(torch._utils, name)
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            found['torch', name] = value
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # numpy 1 and 2
        found[core, '_reconstruct'], found[core, 'scalar'] = reconstruct, scalar
    for kind in (np.ndarray, np.dtype, *{np.dtype(code).type for code in np.typecodes['All']}):
        found['numpy', kind.__name__] = kind
    return found


HARMLESS = harmless()
FILLED = (Record, Namespace, collections.OrderedDict, collections.defaultdict, torch.Tensor, np.ndarray, np.dtype)


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
        if not isinstance(self.stack[-2], FILLED):
            raise Forbidden(f'a state for {type(self.stack[-2]).__name__}')
        self.load_build()

    dispatch[pickle.BUILD[0]] = fill


class Forbidden(pickle.UnpicklingError):
    """A pickle names what is not on the list; the message is its name."""


class DataPickle:
    """The `pickle_module` for torch.load."""

    Unpickler = Unpickler

    @staticmethod
    def load(file, **options) -> object:
        return Unpickler(file, **options).load()
