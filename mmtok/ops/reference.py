"""MoTo to the letter: the specification that every backend is tested against.

'What Makes for Good Tokenizers in Vision Transformer?' (Qian et al., TPAMI 2022), section 3:

    MoTo(X) = sum_i ( (X - mu_i) / (sigma_i + eps) * beta_i + alpha_i ) * L_i

A loop over entities in plain operators and autograd, at the precision of its input (float64 included).
FLOP counters see all of it.
"""

import torch
from torch import Tensor

# A region lighter than this many pixels has no statistics worth the name: it adds its alpha only. Without this
# rule an empty one would be normalised by eps alone, and its layout would get gradients of size 1/eps.
MIN_MASS = 1e-6


def deviation_of(variance: Tensor, floor: Tensor) -> Tensor:
    """Square root that is 0, with gradient 0, where the variance is not above its own rounding error.

    A constant region has a variance of exactly 0 or of a rounding error; the derivative of the plain square root
    would be infinite in one case and noise of size 1/eps in the other.
    """
    flat = ~(variance > floor)  # a variance that is no number counts as flat, too
    return variance.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0)


def entity_statistics(x: Tensor, share: Tensor, real: Tensor, statistics: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B,C,1,1) of one entity.

    x (B,C,H,W); share (B,1,H,W), the entity's layout with padding set to 0; real (B,1,H,W), 1 except in padding.
    """
    axes = (2, 3)
    if statistics == 'region':
        mass = share.sum(axes, keepdim=True).clamp(min=MIN_MASS)
        mean = (share * x).sum(axes, keepdim=True) / mass
        variance = (share * (x - mean) ** 2).sum(axes, keepdim=True) / mass
    else:
        pixels = real.sum(axes, keepdim=True).clamp(min=1)
        product = share * x
        mean = product.sum(axes, keepdim=True) / pixels
        # Padding is no part of the population: there the product is 0, its distance from the mean is not.
        variance = (real * (product - mean) ** 2).sum(axes, keepdim=True) / pixels
    rounding = 32 * torch.finfo(x.dtype).eps * mean.detach()
    return mean, deviation_of(variance, rounding**2)


def moto_reference(x: Tensor, layout: Tensor, beta: Tensor, alpha: Tensor, eps: float = 1e-5,
                   statistics: str = 'region', mask: Tensor | None = None) -> Tensor:
    """See `mmtok.ops.moto`."""
    real = torch.ones_like(x[:, :1]) if mask is None else mask.to(x.dtype)
    result = torch.zeros_like(x)
    for i in range(layout.shape[1]):
        share = layout[:, i:i + 1] * real
        mean, deviation = entity_statistics(x, share, real, statistics)
        owns_pixels = share.sum((2, 3), keepdim=True) > MIN_MASS
        normed = torch.where(owns_pixels, (x - mean) / (deviation + eps), 0.0)
        result = result + (normed * beta[i, :, None, None] + alpha[i, :, None, None]) * share
    return result


def layout_reference(x: Tensor, weight: Tensor, bias: Tensor | None, tau: float, partition: str) -> Tensor:
    """Layout (B,n,H,W) of a 1x1 convolution with filters `weight (n,C)`; see `mmtok.ops.moto_from_logits`."""
    logits = torch.einsum('nc,bchw->bnhw', weight, x)
    if bias is not None:
        logits = logits + bias[:, None, None]
    return partition_layout(logits, tau, partition)


def partition_layout(logits: Tensor, tau: float, partition: str) -> Tensor:
    """Softmax of `tau * logits` over dim 1; with 'hard' its argmax as one-hot, gradients straight through."""
    soft = (tau * logits).softmax(dim=1)
    if partition == 'soft':
        return soft
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())
