"""Loads pretrained weights of official DeiT, timm and mmtok files into a backbone."""

import os

import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import CheckpointLoader
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from .errors import ConfigError

ENOUGH = 0.9  # share of the trunk's tensors that a checkpoint must hold
WRAPPERS = ('state_dict', 'model', 'state_dict_ema', 'model_ema')
PREFIXES = ('module.', 'backbone.')


def load_pretrained(backbone: nn.Module, filename: str) -> None:
    """Load `filename` (path or URL) into a backbone with a tokenizer and a trunk, and log what was found.

    Raises:
        ConfigError: When the file is missing or less than 90 % of the trunk matches; nothing is loaded then.
    """
    if '://' not in filename and not os.path.isfile(filename):
        raise ConfigError(f'checkpoint {filename!r} (model.backbone.init_cfg) does not exist: put it there, name '
                          'another one, or train from scratch with --cfg-options model.backbone.init_cfg=None')
    state = own_names(unwrap(CheckpointLoader.load_checkpoint(filename, map_location='cpu')))
    target = backbone.state_dict()
    resized = resize_position_embeddings(state, target, backbone)
    good = {key: value for key, value in state.items() if key in target and value.shape == target[key].shape}

    trunk = [key for key in target if key.startswith('trunk.')]
    matched = [key for key in trunk if key in good]
    if len(matched) < ENOUGH * len(trunk):
        wrong = next((key for key in trunk if key not in good), '')
        raise ConfigError(f'checkpoint {filename!r} fits only {len(matched)} of the {len(trunk)} tensors of this '
                          f'{type(backbone).__name__} trunk ({wrong} is missing or has another shape): '
                          'it belongs to another architecture')
    backbone.load_state_dict(good, strict=False)
    fresh = [key for key in target if key not in good and not key.startswith('token_prop.')]
    unused = [key for key in state if key not in good and not key.startswith(('token_prop.', 'trunk.head'))]
    MMLogger.get_current_instance().info(
        f'Loaded {filename}: {len(matched)} of {len(trunk)} trunk tensors, {resized} resized; '
        f'left as initialised: {", ".join(fresh) or "none"}; not used: {", ".join(unused) or "none"}')


def unwrap(checkpoint: dict) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefixes of wrappers and of a whole segmentor."""
    for name in WRAPPERS:
        if isinstance(checkpoint.get(name), dict):
            checkpoint = checkpoint[name]
            break
    state = {key: value for key, value in checkpoint.items() if isinstance(value, torch.Tensor)}
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state = {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
    return state


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's and the authors' names -> ours: the patch embedding is the tokenizer, the rest the trunk."""
    if any(key.startswith('trunk.') for key in state):
        return state
    return {(f'tokenizer.{key[len("patch_embed."):]}' if key.startswith('patch_embed.') else f'trunk.{key}'): value
            for key, value in state.items()}


def resize_position_embeddings(state: dict, target: dict, backbone: nn.Module) -> int:
    """Interpolate position embeddings of another image size, as timm does; returns how many."""
    key = 'trunk.pos_embed'
    if key not in state or key not in target or state[key].shape == target[key].shape:
        return 0
    if state[key].shape[-1] != target[key].shape[-1]:
        return 0  # another width: reported as a shape that does not fit
    state[key] = resample_abs_pos_embed(state[key], new_size=backbone.trunk.patch_embed.grid_size,
                                        num_prefix_tokens=backbone.trunk.num_prefix_tokens)
    return 1
