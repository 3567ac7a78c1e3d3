"""Checks of what backbones are built with, each of which says in one sentence what to change."""

from collections.abc import Sequence
from functools import partial
from os import PathLike

from mmengine.registry import WEIGHT_INITIALIZERS

from ..checkpoint import load_pretrained
from ..errors import ConfigError, check_options, check_positive_int


def as_configs(init_cfg: dict | Sequence[dict] | None) -> list[dict]:
    return [cfg for cfg in (init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]) if cfg is not None]


def is_pretrained(cfg: dict) -> bool:
    """Whether this is mmengine's Pretrained, by whichever of its names."""
    kind = cfg['type'] if isinstance(cfg['type'], str) else cfg['type'].__name__
    return kind.rpartition('.')[2] in ('Pretrained', 'PretrainedInit')


def check_init_cfg(init_cfg: dict | Sequence[dict] | None) -> None:
    """Refuse what is no initialisation, before anything is built."""
    where = 'model.backbone.init_cfg'
    for cfg in as_configs(init_cfg):
        if not isinstance(cfg, dict) or not isinstance(cfg.get('type'), (str, type)):
            raise ConfigError(f"{where}={cfg!r} must be None, or a dict such as dict(type='Pretrained', "
                              "checkpoint='FILE')")
        if not is_pretrained(cfg):
            if isinstance(cfg['type'], str) and WEIGHT_INITIALIZERS.get(cfg['type']) is None:
                raise ConfigError(f"{where} has type={cfg['type']!r}, which mmengine does not have; to load a "
                                  "checkpoint it is 'Pretrained'")
            continue
        check_options(f'{where} of type Pretrained', cfg, partial(load_pretrained, None))
        if not isinstance(cfg.get('checkpoint'), (str, PathLike)) or not str(cfg['checkpoint']):
            raise ConfigError(f'{where} has checkpoint={cfg.get("checkpoint")!r}: name a file, a URL or timm://MODEL, '
                              'or set init_cfg=None')
        for key, kinds in (('strict', bool), ('weights_only', bool), ('prefix', (str, type(None)))):
            if key in cfg and not isinstance(cfg[key], kinds):
                what = 'True or False' if kinds is bool else 'a name or None'
                raise ConfigError(f'{where}.{key}={cfg[key]!r} must be {what}')
        if cfg.get('img_size') is not None:
            check_image_size(cfg['img_size'], 1)


def find_arch(arch: str | dict, archs: dict[str, dict], stages: int | None = None) -> dict:
    """The sizes that a name stands for, or a dict of sizes with the keys of the table.

    Args:
        stages: How many numbers each list must have; None for as many as the first one has.

    Raises:
        ConfigError: For an unknown name, another type, wrong keys, or values of another kind than the table's.
    """
    if not isinstance(arch, dict):
        keys = ', '.join(next(iter(archs.values())))
        if str(arch) not in archs:  # --cfg-options makes a number of '14'
            raise ConfigError(f'arch={arch!r} is unknown; choose from {", ".join(map(repr, archs))}, or give a dict '
                              f'with {keys}')
        return archs[str(arch)]
    example = next(iter(archs.values()))
    if arch.keys() != example.keys():
        raise ConfigError(f'arch={dict(arch)} must have exactly the keys {", ".join(example)}')
    for key, value in example.items():
        if not isinstance(value, tuple):
            check_positive_int(f'arch.{key}', arch[key])
            continue
        given = arch[key] if isinstance(arch[key], (list, tuple)) else ()
        stages = stages or len(given)
        if not given or len(given) != stages:
            raise ConfigError(f'arch.{key}={arch[key]!r} must be a list of {stages or "whole"} numbers, one for each '
                              'stage')
        for i, number in enumerate(given):
            check_positive_int(f'arch.{key}[{i}]', number)
    return arch


def name_arch(archs: dict[str, dict], **sizes) -> str | dict:
    """The name of the arch with these sizes, or the sizes."""
    return next((name for name, arch in archs.items() if all(arch[key] == sizes[key] for key in sizes)), sizes)


def usual_heads(width: int) -> int:
    """Heads of 64 channels, or as near as the width divides."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that does not divide among attention heads."""
    if width % heads:
        raise ConfigError(f'embed_dims={width} of the arch is no multiple of num_heads={heads}')


def check_image_size(img_size: int | Sequence[int], least: int) -> tuple[int, int]:
    """(height, width) of a side or a pair of sides, each at least `least` pixels."""
    sides = tuple(img_size) if isinstance(img_size, (list, tuple)) else (img_size, img_size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < least for side in sides):
        raise ConfigError(f'img_size={img_size!r} must be a side or a pair (height, width) of whole pixels, at least '
                          f'{least}')
    return sides


def find_indices(out_indices: int | Sequence[int], count: int, what: str) -> list[int]:
    """Positions from 0 of `out_indices`, which must be there, each once and in rising order."""
    given = list(out_indices) if isinstance(out_indices, (list, tuple)) else [out_indices]
    found = [i % count for i in given if isinstance(i, int) and -count <= i < count]
    if not found or len(found) < len(given) or found != sorted(set(found)):
        raise ConfigError(f'out_indices={given} must name {what} of a trunk with {count} {what}, each once and in '
                          'rising order')
    return found
