"""The one place where a backend of MoTo is chosen and its inputs are checked."""

import logging
import os

import torch
from torch import Tensor

from ..errors import check_choice, check_positive
from .reference import layout_reference, moto_reference
from .torch_backend import moto_torch
from .triton_backend import moto_triton, why_not

BACKENDS = ('auto', 'reference', 'torch', 'triton')
PARTITIONS = ('soft', 'hard')
STATISTICS = ('region', 'product')
FORCE = 'MMTOK_BACKEND'  # environment variable that stands in for backend='auto'
SAID = set()  # log lines so far


def moto(x: Tensor, layout: Tensor, beta: Tensor, alpha: Tensor, eps: float = 1e-5, statistics: str = 'region',
         mask: Tensor | None = None, backend: str = 'auto') -> Tensor:
    """Modulation across tokens: sum_i ((X - mu_i) / (sigma_i + eps) * beta_i + alpha_i) * L_i.

    'What Makes for Good Tokenizers in Vision Transformer?' (TPAMI 2022), equation of section 3.

    Args:
        x: Feature map (B,C,H,W).
        layout: Share of each of n semantic entities in each position (B,n,H,W), summing to 1 over n.
        beta: Scale of each entity and channel (n,C).
        alpha: Shift of each entity and channel (n,C).
        eps: Added to the standard deviations, not to the variances.
        statistics: 'region' weighs mean and (biased) deviation by the layout; 'product' takes those of X * L_i
            over all positions, the formula to the letter.
        mask: (B,1,H,W), true or 1 where the map is real. Padding, which must be finite, enters no statistics and
            comes out as 0.
        backend: 'reference', 'torch', 'triton' (CUDA; experimental: tested by Triton's interpreter, not yet on a GPU),
            or 'auto': what the environment variable MMTOK_BACKEND names, else 'torch'. What 'triton' does not cover
            goes to 'torch', with one log line. In TorchScript's tracing it is 'reference', whatever is asked for; only
            that one has second derivatives and takes the transforms of torch.func.

    Returns:
        (B,C,H,W) in the dtype of x. An entity that owns no pixel adds only its alpha, with finite gradients.

    Raises:
        ValueError: For an unknown option or shapes that do not fit.
    """
    check(x, beta, alpha, statistics, mask, eps)
    if layout.shape != (x.shape[0], beta.shape[0], *x.shape[2:]):
        raise ValueError(f'layout has shape {tuple(layout.shape)}; x {tuple(x.shape)} and beta {tuple(beta.shape)} '
                         f'ask for {(x.shape[0], beta.shape[0], *x.shape[2:])}')
    chosen = choose_backend(backend, x, (layout, beta, alpha), len(beta), statistics)
    if chosen == 'reference' or not x.numel():
        with torch.autocast(x.device.type, enabled=False):
            wide, layout, beta, alpha = at_least_float32(x, layout, beta, alpha)
            return moto_reference(wide, layout, beta, alpha, eps, statistics, mask).to(x.dtype)
    if chosen == 'triton':
        return moto_triton(x, layout, None, None, beta, alpha, mask, 1.0, 'soft', eps)
    return moto_torch(x, layout, None, None, beta, alpha, mask, 1.0, 'soft', statistics, eps)


def moto_from_logits(x: Tensor, weight: Tensor, bias: Tensor | None, beta: Tensor, alpha: Tensor, tau: float = 0.1,
                     eps: float = 1e-5, partition: str = 'soft', statistics: str = 'region',
                     mask: Tensor | None = None, backend: str = 'auto') -> Tensor:
    """`moto` with the layout softmax(tau * (weight X + bias)) of a 1x1 convolution, which is never stored.

    Args:
        weight: Layout filters (n,C), or (n,C,1,1) as a convolution keeps them.
        bias: (n,) or None.
        tau: Temperature; the paper's is 0.1.
        partition: 'soft', or 'hard' for the one-hot argmax with straight-through gradients.

    The other arguments, the result and the errors are those of `moto`.
    """
    check(x, beta, alpha, statistics, mask, eps)
    check_choice('partition', partition, PARTITIONS)
    weight = weight.flatten(1)
    if weight.shape != beta.shape:
        raise ValueError(f'the layout filters have shape {tuple(weight.shape)} and beta {tuple(beta.shape)}; '
                         'both must be (entities, channels)')
    if bias is not None and bias.shape != beta.shape[:1]:
        raise ValueError(f'bias has shape {tuple(bias.shape)}; beta {tuple(beta.shape)} asks for ({len(beta)},)')
    check_positive('tau', tau)
    chosen = choose_backend(backend, x, (weight, bias, beta, alpha), len(beta), statistics)
    if chosen == 'reference' or not x.numel():
        with torch.autocast(x.device.type, enabled=False):
            wide, weight, bias, beta, alpha = at_least_float32(x, weight, bias, beta, alpha)
            layout = layout_reference(wide, weight, bias, tau, partition)
            return moto_reference(wide, layout, beta, alpha, eps, statistics, mask).to(x.dtype)
    if chosen == 'triton':
        return moto_triton(x, None, weight, bias, beta, alpha, mask, tau, partition, eps)
    return moto_torch(x, None, weight, bias, beta, alpha, mask, tau, partition, statistics, eps)


def choose_backend(backend: str, x: Tensor, others: tuple[Tensor | None, ...], entities: int, statistics: str) -> str:
    """The backend that runs: what was asked for, else what MMTOK_BACKEND names, else 'torch'; traced, 'reference'.

    `others` are the tensors beside x whose dtypes matter.
    """
    asked = backend if backend != 'auto' else os.environ.get(FORCE, 'auto')
    check_choice('backend' if backend != 'auto' else FORCE, asked, BACKENDS)
    if torch.jit.is_tracing():  # TorchScript's, by which FLOP counters go: operators, and for maps of any size
        return 'reference'
    if asked == 'auto':
        asked = 'torch'  # also on a GPU, until 'triton' has been tested and measured on one
    if asked == 'triton':
        reason = why_not(x, others, entities, statistics)
        if reason:
            say_once(f"MoTo: backend 'triton' does not cover {reason}; 'torch' takes over")
            return 'torch'
    return asked


@torch.compiler.disable
def say_once(line: str) -> None:
    if line not in SAID:
        SAID.add(line)
        logging.getLogger('mmtok').warning(line)


def at_least_float32(*tensors: Tensor | None) -> list[Tensor | None]:
    """Half precision widened, the rest as it is."""
    return [None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def check(x: Tensor, beta: Tensor, alpha: Tensor, statistics: str, mask: Tensor | None, eps: float) -> None:
    """Refuse what no backend could work on."""
    if x.dim() != 4:
        raise ValueError(f'x must be (B,C,H,W), got {tuple(x.shape)}')
    if beta.dim() != 2 or beta.shape != alpha.shape or beta.shape[1] != x.shape[1]:
        raise ValueError(f'beta {tuple(beta.shape)} and alpha {tuple(alpha.shape)} must both be (entities, '
                         f'{x.shape[1]}), since x has {x.shape[1]} channels')
    check_choice('statistics', statistics, STATISTICS)
    if mask is not None and mask.shape != (x.shape[0], 1, *x.shape[2:]):
        raise ValueError(f'mask has shape {tuple(mask.shape)}; x {tuple(x.shape)} asks for '
                         f'{(x.shape[0], 1, *x.shape[2:])}')
    if not torch.is_floating_point(x):
        raise ValueError(f'x must be a floating-point tensor, got {x.dtype}')
    if not eps >= 0:
        raise ValueError(f'eps={eps} must be at least 0')
