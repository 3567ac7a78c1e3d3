"""mmtok: MoTo tokenizers and the TokenProp loss for vision transformers, as an OpenMMLab plugin.

Nothing heavy is imported here: `python -m mmtok.check_env` must run in a broken environment too.
"""

from importlib import import_module

from .version import __version__

_HOMES = {'MoTo': 'mmtok.layers', 'ops': 'mmtok.ops'}

__all__ = ['MoTo', '__version__', 'ops']


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    home = import_module(_HOMES[name])
    return home if home.__name__ == f'{__name__}.{name}' else getattr(home, name)
