"""Loads pretrained weights of official DeiT, timm and mmtok files into a backbone."""

import os
from urllib.error import URLError

import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from .errors import ConfigError

ENOUGH = 0.9  # share of the trunk's tensors that a checkpoint must hold
WRAPPERS = ('state_dict', 'model', 'state_dict_ema', 'model_ema')
PREFIXES = ('module.', 'backbone.')


def load_pretrained(backbone: nn.Module, filename: str, prefix: str | None = None) -> None:
    """Load `filename` (path or URL) into a backbone with a tokenizer and a trunk, and log what was found.

    A plain patch embedding goes to the tokenizer that has one (`plain_patch`); others keep their own start.

    Args:
        prefix: Take only the keys below this one, as mmengine's Pretrained does.

    Raises:
        ConfigError: When the file is missing or out of reach, or less than 90 % of the trunk matches; nothing is loaded
            then.
    """
    if '://' not in filename and not os.path.isfile(filename):
        raise ConfigError(f'checkpoint {filename!r} (model.backbone.init_cfg) does not exist: put it there, name '
                          'another one, or train from scratch with --cfg-options model.backbone.init_cfg=None')
    try:
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location='cpu')
    except URLError as error:
        raise ConfigError(f'checkpoint {filename!r} (model.backbone.init_cfg) cannot be downloaded ({error.reason}): '
                          'fetch it elsewhere and name the file with --cfg-options '
                          'model.backbone.init_cfg.checkpoint=FILE, or train from scratch with '
                          'model.backbone.init_cfg=None') from error
    state = unwrap(checkpoint, prefix)
    state = own_names(state, backbone)
    if 'trunk.dist_token' in state:
        raise ConfigError(f'checkpoint {filename!r} is a distilled DeiT, which has a second class token: '
                          'take the file without "distilled" in its name')
    target = backbone.state_dict()
    resized = backbone.fit_positions(state)
    good = {key: value for key, value in state.items() if key in target and value.shape == target[key].shape}

    trunk = [key for key in target if key.startswith('trunk.')]
    matched = [key for key in trunk if key in good]
    if len(matched) < ENOUGH * len(trunk):
        wrong = next((key for key in trunk if key not in good), '')
        raise ConfigError(f'checkpoint {filename!r} fits only {len(matched)} of the {len(trunk)} tensors of this '
                          f'{type(backbone).__name__} trunk ({wrong} is missing or has another shape): '
                          'it belongs to another architecture, or names its tensors as another package does')
    backbone.load_state_dict(good, strict=False)
    fresh = [key for key in target if key not in good and not key.startswith('token_prop.')]
    unused = [key for key in state if key not in good and not key.startswith(('token_prop.', 'trunk.head'))]
    logger = MMLogger.get_current_instance()
    if getattr(backbone.tokenizer, 'plain_patch', None) is not None and not any(
            key in good for key in backbone.state_dict() if key.startswith('tokenizer.') and 'proj.weight' in key):
        logger.warning(f'{filename} has no patch embedding of this shape under a known name: the tokenizer starts at '
                       'random')
    logger.info(
        f'Loaded {filename}: {len(matched)} of {len(trunk)} trunk tensors, {resized} resized; '
        f'left as initialised: {", ".join(fresh) or "none"}; not used: {", ".join(unused) or "none"}')


def unwrap(checkpoint: dict, prefix: str | None) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefixes of wrappers and of a whole segmentor."""
    for name in WRAPPERS:
        if isinstance(checkpoint.get(name), dict):
            checkpoint = checkpoint[name]
            break
    state = {key: value for key, value in checkpoint.items() if isinstance(value, torch.Tensor)}
    for start in PREFIXES if prefix is None else (f'{prefix.rstrip(".")}.', ):
        if any(key.startswith(start) for key in state):
            state = {key[len(start):]: value for key, value in state.items() if key.startswith(start)}
    return state


def own_names(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """timm's and the authors' names -> ours: the patch projection is the tokenizer's, the rest the trunk's."""
    if any(key.startswith('trunk.') for key in state):
        return state
    plain_patch = getattr(backbone.tokenizer, 'plain_patch', None)  # where one sits, None where there is none to load
    own = {}
    for key, value in backbone.rename_public(state).items():
        if key.startswith('patch_embed.proj.'):
            key = key if plain_patch is None else f'tokenizer.{plain_patch}{key[len("patch_embed."):]}'
        elif not key.startswith(('norms.', 'tokenizer.')):
            key = f'trunk.{key}'
        own[key] = value
    return own
