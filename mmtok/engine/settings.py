"""A config as flat settings: those that make a training, and which of two differ."""

from collections.abc import Iterator
from fnmatch import fnmatch

from mmengine.config import Config

# Where and how fast a config trains, and what it writes, but not what it trains: patterns of paths in the config
NO_PART_OF_TRAINING = (
    'work_dir', 'resume', 'launcher', 'randomness.seed', 'epochs', 'vis_backends*', 'visualizer*', 'log_level',
    'log_processor*', 'default_hooks.logger*', 'default_hooks.checkpoint*', 'default_hooks.timer*', 'data_root',
    '*.data_root', '*_dataloader.num_workers', '*_dataloader.persistent_workers', '*_dataloader.pin_memory',
    '*_dataloader.prefetch_factor')


def settings(node, path: str = '') -> Iterator[tuple[str, object]]:
    """(path, value) of each value in nested dicts and lists, such as ('model.backbone.arch', 'small')."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    if not children or not node:
        yield path, node
    for key, child in children:
        yield from settings(child, f'{path}.{key}' if path else str(key))


def subtrees(node, path: str = '') -> Iterator[tuple[str, object]]:
    """(path, node) of each dict, list and value in nested dicts and lists."""
    yield path, node
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(
            node, (list, tuple)) else ():
        yield from subtrees(child, f'{path}.{key}' if path else str(key))


def training_settings(cfg: Config) -> dict[str, object]:
    """All that a config says but the seed, where it reads and writes, and how many data workers it has."""
    said = dict(settings(cfg.to_dict()))
    if said.get('load_from') is None:
        said.pop('load_from', None)
    return {path: value for path, value in said.items()
            if not any(fnmatch(path, pattern) for pattern in NO_PART_OF_TRAINING)}


def parse(text: str) -> Config | None:
    """The config in `meta['cfg']` of a checkpoint; None where there is none that can be read."""
    try:
        return Config.fromstring(text, '.py') if text else None
    except Exception:  # it is executed, and what it names need not be there
        return None


def changed_settings(before: Config | None, cfg: Config) -> dict[str, tuple]:
    """path -> (before, now) of what a training's config says otherwise than that of a checkpoint."""
    now = parse(cfg.pretty_text)  # by the way that the other one went, which makes lists of tuples
    if before is None or now is None:
        return {}
    before, now = training_settings(before), training_settings(now)
    return {path: (before.get(path), now.get(path)) for path in {**before, **now} if before.get(path) != now.get(path)}


def describe(changes: dict[str, tuple], limit: int = 20) -> str:
    """Changed settings in a sentence."""
    parts = [f'{path} was {before!r} and is {now!r}' for path, (before, now) in list(changes.items())[:limit]]
    return ', '.join(parts) + (f', and {len(changes) - limit} more' if len(changes) > limit else '')
