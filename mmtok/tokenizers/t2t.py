"""Tokens-to-token (Yuan et al., ICCV 2021): soft splits with attention between them, and MoTo inside."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_, use_fused_attn
from torch import Tensor, nn

from ..errors import ConfigError, check_choice, check_options, check_positive_int
from ..layers import MoTo
from ..registry import MODELS
from .moto import make_gate

# The authors'. It would be 0 in float16, but nothing is computed in less than float32; with 1e-6 attention to peaked
# keys, whose features are that small, would be off by percents.
PERFORMER_EPS = 1e-8


class TokenTransformer(nn.Module):
    """One head of attention from `in_dims` to `dims` channels, the values as its shortcut, and an MLP.

    As in the authors' code the logits are scaled by the root of `in_dims`, not of the head's width.
    """

    def __init__(self, in_dims: int, dims: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(in_dims), nn.LayerNorm(dims)
        self.attn = nn.Module()  # the authors' names
        self.attn.qkv, self.attn.proj = nn.Linear(in_dims, 3 * dims, bias=False), nn.Linear(dims, dims)
        self.mlp = Mlp(dims, dims)
        self.scale, self.fused_attn = in_dims**-0.5, use_fused_attn()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,N,in_dims) -> (B,N,dims); no token attends to one where the mask (B,N) is false."""
        q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)
        if self.fused_attn:
            q, k, heads = q[:, None], k[:, None], v[:, None]  # (B,1,N,dims)
            keys = None if mask is None else mask[:, None, None]
            x = F.scaled_dot_product_attention(q, k, heads, attn_mask=keys, scale=self.scale)[:, 0]
        else:
            logits = self.scale * q @ k.transpose(1, 2)
            if mask is not None:
                logits = logits.masked_fill(~mask[:, None], -math.inf)
            x = logits.softmax(-1) @ v
        x = v + self.attn.proj(x)
        return x + self.mlp(self.norm2(x))


class TokenPerformer(nn.Module):
    """The same with the Performer's linear attention (Choromanski et al., ICLR 2021), in float32 under autocast.

    Args:
        drop_rate: Dropout after attention and MLP, 0.1 in the authors' code.
    """

    def __init__(self, in_dims: int, dims: int, drop_rate: float = 0.1, kernel_ratio: float = 0.5):
        super().__init__()
        self.kqv, self.proj, self.dp = nn.Linear(in_dims, 3 * dims), nn.Linear(dims, dims), nn.Dropout(drop_rate)
        self.norm1, self.norm2 = nn.LayerNorm(in_dims), nn.LayerNorm(dims)
        self.mlp = nn.Sequential(nn.Linear(dims, dims), nn.GELU(), nn.Linear(dims, dims), nn.Dropout(drop_rate))
        features = int(dims * kernel_ratio)
        self.register_buffer('w', nn.init.orthogonal_(torch.empty(features, dims)) * math.sqrt(features))

    def features(self, x: Tensor) -> Tensor:
        """Positive random features exp(w x - |x|^2 / 2) / sqrt(m): (B,N,dims) -> (B,N,m)."""
        return (F.linear(x, self.w.to(x.dtype)) - x.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(len(self.w))

    def attend(self, k: Tensor, q: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B,N,dims) three times -> (B,N,dims)."""
        with torch.autocast(k.device.type, enabled=False):
            k, q, v = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (k, q, v))
            k, q = self.features(k), self.features(q)
            if mask is not None:
                k = k * mask[..., None]
            total = q @ k.sum(1)[..., None]  # (B,N,1)
            return q @ (k.transpose(1, 2) @ v) / (total + PERFORMER_EPS)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,N,in_dims) -> (B,N,dims); tokens where the mask (B,N) is false give nothing to others."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.dp(self.proj(self.attend(k, q, v, mask).to(v.dtype)))
        return x + self.mlp(self.norm2(x))


ATTENTIONS = {'performer': TokenPerformer, 'transformer': TokenTransformer}
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding


class GatedMoTo(nn.Module):
    """x + g * MoTo(x), or MoTo(x) without a gate."""

    def __init__(self, channels: int, num_entities: int = 8, tau: float = 0.1, partition: str = 'soft',
                 statistics: str = 'region', layout_kernel: int = 1, gate: float | str | None = 'auto',
                 backend: str = 'auto'):
        super().__init__()
        self.layer = MoTo(channels, num_entities, tau, partition, statistics, kernel_size=layout_kernel,
                          backend=backend)
        self.gate = make_gate(0.0 if gate == 'auto' else gate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        change = self.layer(x, mask)
        return change if self.gate is None else x + self.gate * change


@MODELS.register_module()
class T2TTokenizer(nn.Module):
    """Image -> tokens by three soft splits (overlapping patches) and attention among the tokens of the first two.

    The size of the map follows the splits, as in the authors' and mmpretrain's code: (H+1)//4 tokens, halved twice and
    rounded up; it is H/16 where 16 divides H.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels D of a token.
        patch_size: Stride of a token, 16.
        token_dims: Width of the attention.
        attention: 'performer' (T2T-ViT-14, the paper's row) or 'transformer' (T2T-ViT_t-14, mmpretrain's; that of
            mmpretrain 1.2.0 divides its logits by the scale where the authors multiply).
        moto: Options of MoTo as `MoToTokenizer` names them (num_entities, layout_kernel, tau, partition, statistics,
            gate, backend); `dict()` for their defaults, None for no MoTo. It works on the maps after both attentions,
            at 1/4 and 1/8 of the resolution, as x + g * MoTo(x); the gate g starts from 0, exactly as the plain
            tokenizer; `gate=None` makes it MoTo(x).

    A mask keeps the tokens of padding out of attention, also without MoTo.

    Raises:
        ConfigError: For a value that cannot work.
    """

    plain_patch = None
    pads = False

    def __init__(self, in_channels: int = 3, embed_dims: int = 384, patch_size: int = 16, token_dims: int = 64,
                 attention: str = 'performer', moto: dict | None = None):
        super().__init__()
        check_choice('attention', attention, ATTENTIONS)
        check_positive_int('token_dims', token_dims)
        if patch_size != 16:
            raise ConfigError('mmtok.T2TTokenizer gives tokens of stride 16, which DeiT and T2TViT take, not '
                              f'{patch_size}: choose mmtok.MoToTokenizer or mmtok.PatchTokenizer there')
        self.in_channels, self.embed_dims, self.stride = in_channels, embed_dims, patch_size
        kind = ATTENTIONS[attention]
        kernels = [kernel**2 for kernel, _, _ in SPLITS]
        self.attention1 = kind(in_channels * kernels[0], token_dims)
        self.attention2 = kind(token_dims * kernels[1], token_dims)
        self.project = nn.Linear(token_dims * kernels[2], embed_dims)
        self.apply(init_linear)
        self.moto = None
        if moto is not None:
            if not isinstance(moto, dict):
                raise ConfigError(f'moto={moto!r} must be a dict of options, dict() for the defaults, or None')
            if 'type' in moto:
                raise ConfigError('moto of mmtok.T2TTokenizer takes options alone, no type')
            check_options('moto of mmtok.T2TTokenizer', moto, partial(GatedMoTo, token_dims))
            self.moto = nn.ModuleList([GatedMoTo(token_dims, **moto) for _ in range(2)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,C,H,W) -> (B,D,h,w); mask (B,1,H,W), true where pixels are real, or None."""
        x, mask = pad_for_split(x), None if mask is None else pad_for_split(mask.bool())
        for step, attention in enumerate((self.attention1, self.attention2)):
            x, mask = self.split_and_attend(x, mask, step, attention)
            if self.moto is not None:
                x = self.moto[step](x, mask)
            if mask is not None:
                x = x * mask
        tokens, size = soft_split(x, 2)
        return self.project(tokens).transpose(1, 2).unflatten(2, size)

    @staticmethod
    def split_and_attend(x: Tensor, mask: Tensor | None, step: int,
                         attention: nn.Module) -> tuple[Tensor, Tensor | None]:
        """(B,C,H,W) -> the map (B,token_dims,h,w) after a split and its attention, and the mask at that size."""
        kernel, stride, padding = SPLITS[step]
        tokens, size = soft_split(x, step)
        if mask is not None:
            start = kernel - 1 - 2 * padding  # a token is there when this pixel is, as for an image alone
            mask = with_some(mask[:, :, start::stride, start::stride])
        tokens = attention(tokens, None if mask is None else mask.flatten(1))
        return tokens.transpose(1, 2).unflatten(2, size), mask

    @torch.no_grad()
    def layout(self, x: Tensor) -> Tensor:
        """Semantic layout of the first MoTo: (B,C,H,W) -> (B,n,(H+1)//4,(W+1)//4).

        Raises:
            ConfigError: Without `moto`.
        """
        if self.moto is None:
            raise ConfigError('this mmtok.T2TTokenizer has no MoTo and so no layout: give it moto=dict()')
        x, _ = self.split_and_attend(pad_for_split(x), None, 0, self.attention1)
        return self.moto[0].layer.layout(x)


def pad_for_split(x: Tensor) -> Tensor:
    """Zeros at the bottom and the right, up to the 3 pixels that the first split needs at least."""
    return F.pad(x, (0, max(0, 3 - x.shape[3]), 0, max(0, 3 - x.shape[2])))


def soft_split(x: Tensor, step: int) -> tuple[Tensor, tuple[int, int]]:
    """(B,C,H,W) -> overlapping patches (B,hw,C*kernel^2), and (h,w)."""
    kernel, stride, padding = SPLITS[step]
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
    return F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2), (height, width)


def with_some(mask: Tensor) -> Tensor:
    """The mask (B,1,H,W), all true for an image of which nothing is left: there must be something to attend to."""
    return mask | ~mask.flatten(1).any(1)[:, None, None, None]


def init_linear(module: nn.Module) -> None:
    """As the authors: deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
