"""mmengine's Runner that looks at the whole configuration before the first iteration.

`runner_type = 'mmtok.Runner'` makes the upstream `tools/train.py` and `tools/test.py` use it. What cannot work ends
in one sentence, without a traceback and before any data is read.
"""

import os
import sys
from collections.abc import Iterator

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner

from .backbones.base import TokenBackbone
from .errors import ConfigError
from .registry import RUNNERS
from .tokenprop.hook import TokenPropHook, find_token_props
from .tokenprop.token_prop import NOT_COLLECTED


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's Runner with checks of data roots, image sizes and TokenProp before training or testing."""

    @classmethod
    def from_cfg(cls, cfg):
        return one_sentence(super().from_cfg, cfg)

    def train(self):
        return one_sentence(self.checked_train)

    def test(self):
        return one_sentence(self.checked_test)

    def checked_train(self):
        check_data(self.cfg, 'train_dataloader', 'val_dataloader')
        model = self.model.module if is_model_wrapper(self.model) else self.model
        for backbone in (m for m in model.modules() if isinstance(m, TokenBackbone)):
            check_image_size(self.cfg, backbone.patch_size)
        has_hook = any(isinstance(hook, TokenPropHook) for hook in self.hooks)
        if find_token_props(model) and not has_hook:
            raise ConfigError(NOT_COLLECTED)
        return super().train()

    def checked_test(self):
        check_data(self.cfg, 'test_dataloader')
        return super().test()


def one_sentence(function, *args):
    """Call it; end the program with the message of a ConfigError instead of a traceback."""
    try:
        return function(*args)
    except ConfigError as error:
        sys.exit(f'mmtok: {error}')


def check_data(cfg, *loaders: str) -> None:
    """Every data_root below these dataloaders is a folder."""
    for loader in loaders:
        for path, dataset in dicts_with(cfg.get(loader) or {}, 'data_root', loader):
            root = dataset['data_root']
            if root and '://' not in root and not os.path.isdir(root):
                raise ConfigError(f'the data root {root!r} ({path}.data_root) is not there: put the data set in this '
                                  f'folder, or name yours with --cfg-options {path}.data_root=/path/to/it')


def check_image_size(cfg, patch_size: int) -> None:
    """No crop of the training pipeline or of the preprocessor is smaller than a token."""
    sizes = [(f'{path}.{name}', found[name])
             for section in ('train_dataloader', 'model') for name in ('crop_size', 'size')
             for path, found in dicts_with(cfg.get(section) or {}, name, section)
             if name == 'crop_size' or path.endswith('data_preprocessor')]
    for path, size in sizes:
        sides = [size] if isinstance(size, int) else list(size or [])
        if sides and min(sides) < patch_size:
            raise ConfigError(f'{path}={tuple(sides)} is smaller than one token of {patch_size}x{patch_size} pixels: '
                              'use a larger crop or a smaller patch_size')


def dicts_with(node, name: str, path: str) -> Iterator[tuple[str, dict]]:
    """(path, dict) of every dict below `node` that has the key `name`."""
    if isinstance(node, dict):
        if name in node:
            yield path, node
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from dicts_with(child, name, f'{path}.{key}')
