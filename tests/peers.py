"""Weights carried between our backbones and those of timm and mmdet, for comparisons."""

import re
from functools import partial

import torch


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


def randomise(model):
    """Draw what starts at 0 or 1 too, so that a mix-up of norms or biases shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            start = 1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0
            parameter.copy_(start + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def timm_names(model) -> dict[str, torch.Tensor]:
    """The state dict of one of our backbones as timm names it."""
    return {re.sub(r'^tokenizer\.', 'patch_embed.', key.removeprefix('trunk.')): value
            for key, value in model.state_dict().items()}


def mend_scale(peer):
    """mmpretrain 1.2.0 divides logits by `head_dims**-0.5` where `qk_scale` is given, and so drops its value too.

    Its docstring, its older releases and the authors multiply by `(input_dims // num_heads)**-0.5`.
    """
    from mmpretrain.models.utils.attention import MultiheadAttention, scaled_dot_product_attention_pyimpl
    for module in peer.modules():
        if isinstance(module, MultiheadAttention):
            divisor = (module.input_dims // module.num_heads)**0.5
            module.scaled_dot_product_attention = partial(scaled_dot_product_attention_pyimpl, scale=divisor)


def load(backbone, path, **options):
    """A backbone from a checkpoint, as a Runner does it."""
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), **options)
    backbone.init_weights()
    return backbone.eval()


def authors_swin(state):
    """The authors merge patches at the end of a stage, and store buffers."""
    state = {re.sub(r'layers\.(\d)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample', key): value
             for key, value in state.items()}
    return {**state, 'layers.0.blocks.1.attn_mask': torch.zeros(64, 49, 49),
            'layers.0.blocks.0.attn.relative_position_index': torch.zeros(49, 49)}


def authors_pvt_v2(state):
    """The authors number from 1 and keep patch embeddings and norms outside of the stages."""
    names = {}
    for key, value in state.items():
        key = key.replace('mlp.dwconv.', 'mlp.dwconv.dwconv.')
        key = re.sub(r'^patch_embed\.', 'patch_embed1.', key)
        for ours, theirs in (('downsample', 'patch_embed'), ('blocks', 'block'), ('norm', 'norm')):
            key = re.sub(rf'^stages\.(\d)\.{ours}\.', lambda m, t=theirs: f'{t}{int(m[1]) + 1}.', key)
        names[key] = value
    return names
