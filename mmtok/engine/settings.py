"""A config as flat settings: which of two differ, and which no class takes."""

import inspect
from collections.abc import Iterator
from fnmatch import fnmatch

from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    DefaultScope,
    Registry,
)

from ..errors import ConfigError

# Where and how fast a config trains, and what it writes, but not what it trains: patterns of paths in the config
NO_PART_OF_TRAINING = (
    'work_dir', 'resume', 'launcher', 'randomness.seed', 'vis_backends*', 'visualizer*', 'log_level', 'log_processor*',
    'default_hooks.logger*', 'default_hooks.checkpoint*', 'default_hooks.timer*', 'data_root', '*.data_root',
    '*_dataloader.num_workers', '*_dataloader.persistent_workers', '*_dataloader.pin_memory',
    '*_dataloader.prefetch_factor')
# Parts of a config that mmengine builds as they stand
BUILT: dict[str, Registry] = {
    'train_dataloader.dataset': DATASETS, 'val_dataloader.dataset': DATASETS, 'test_dataloader.dataset': DATASETS,
    'train_dataloader.sampler': DATA_SAMPLERS, 'val_dataloader.sampler': DATA_SAMPLERS,
    'test_dataloader.sampler': DATA_SAMPLERS, 'optim_wrapper.optimizer': OPTIMIZERS,
    'param_scheduler': PARAM_SCHEDULERS, 'default_hooks': HOOKS, 'custom_hooks': HOOKS}
# What mmengine takes out of them before
TAKEN_OUT = ('type', '_scope_', 'priority', 'convert_to_iter_based')


def settings(node, path: str = '') -> Iterator[tuple[str, object]]:
    """(path, value) of each value in nested dicts and lists, such as ('model.backbone.arch', 'small')."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    if not children or not node:
        yield path, node
    for key, child in children:
        yield from settings(child, f'{path}.{key}' if path else str(key))


def training_settings(cfg: Config) -> dict[str, object]:
    """All that a config says but the seed, where it reads and writes, and how many data workers it has."""
    said = dict(settings(cfg.to_dict()))
    if cfg.get('resume') or cfg.get('load_from') is None:  # then it is the training's own checkpoint, or none
        said.pop('load_from', None)
    return {path: value for path, value in said.items()
            if not any(fnmatch(path, pattern) for pattern in NO_PART_OF_TRAINING)}


def changed_settings(text: str, cfg: Config) -> dict[str, tuple]:
    """path -> (before, now) of what a training's config says otherwise than the one in a checkpoint.

    Args:
        text: `meta['cfg']` of a checkpoint. One that cannot be read any more has no changes.
    """
    try:
        before = Config.fromstring(text, '.py')
    except Exception:  # it is executed: whatever it names may be gone
        return {}
    now = Config.fromstring(cfg.pretty_text, '.py')  # the way there changes some values, tuples for one
    before, now = training_settings(before), training_settings(now)
    return {path: (before.get(path), now.get(path)) for path in {**before, **now} if before.get(path) != now.get(path)}


def describe(changes: dict[str, tuple], limit: int = 8) -> str:
    """Changed settings in a sentence."""
    parts = [f'{path} was {before!r} and is {now!r}' for path, (before, now) in list(changes.items())[:limit]]
    return ', '.join(parts) + (f', and {len(changes) - limit} more' if len(changes) > limit else '')


def check_settings(cfg: Config) -> None:
    """Data sets, samplers, optimizer, schedules and hooks get no argument that they do not have.

    Raises:
        ConfigError: Names the setting and what may stand there.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        for path, registry in BUILT.items():
            first, _, second = path.partition('.')
            node = cfg.get(first)
            if second:
                node = node.get(second) if isinstance(node, dict) else None
            check_arguments(path, node, registry)


def check_arguments(path: str, node, registry: Registry) -> None:
    """Looks at a dict with a type, at those inside it that the same registry builds, and at lists and dicts of them."""
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            check_arguments(f'{path}.{index}', child, registry)
    if not isinstance(node, dict):
        return
    if 'type' not in node:
        for key, child in node.items():
            check_arguments(f'{path}.{key}', child, registry)
        return
    for key in ('dataset', 'datasets'):  # of a wrapper
        check_arguments(f'{path}.{key}', node.get(key), registry)
    target = registry.get(node['type']) if isinstance(node['type'], str) else node['type']
    known = arguments_of(target)
    unknown = [key for key in node if known and key not in known and key not in TAKEN_OUT]
    if unknown:
        raise ConfigError(
            f'{path} builds {target.__name__}, which has no option {", ".join(unknown)}; it takes {", ".join(known)}'
            + ('; to replace the whole dict, add _delete_=True to it' if path == 'optim_wrapper.optimizer' else ''))


def arguments_of(target) -> list[str]:
    """Names of the arguments of a class, those that it hands on to its bases included; empty where it takes any."""
    names = []
    for base in inspect.getmro(target) if inspect.isclass(target) else ():
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
                  and p.name != 'self' and p.name not in names]
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return names
    return []
