"""MoTo as small matrix products over cache-sized blocks of pixels, with its own backward.

With `A = beta / (sigma + eps)` and `B = alpha - mu * A` (both (n,C)) the sum over entities becomes

    Y = X * (A^T L) + B^T L,

so nothing of size (B,n,C,H,W) exists. Each block is shifted by a channel mean and widened to float64 before it
is squared or summed: that keeps the variance of hard regions whose means lie thousands of deviations apart,
where a float32 sum with the same shift is off by 127 %.

Forward reads X twice and writes Y; backward reads X and dY twice and writes dX. Layouts from 1x1 logits are
recomputed per block and never stored.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import MIN_MASS, deviation_of

ORIGIN_PIXELS = 4096  # enough for a shift that need not be exact
# Relative error that a float64 sum of squares may have gathered. A region's deviation counts as 0 below 1e-7 of
# its distance from the origin, which is about the resolution of float32 input there.
SUM_ROUNDING = 1e-14
# Of a (2C, pixels) work buffer. CPU: 2 MB of float64, about a core's second-level cache; else few launches.
BLOCK_ELEMENTS = {'cpu': 1 << 18}
BLOCK_ELEMENTS_ELSEWHERE = 1 << 24
WHOLE_ELEMENTS = 1 << 18  # a map up to this size is one block, whose buffers the second pass finds still filled


@dataclass
class Inputs:
    """The inputs of one call, flattened to (B,*,P) views, and how to walk over them.

    The layout is either given, or the softmax of a 1x1 convolution of x with filters `weight (n,C)`. All
    statistics are those of `x - origin`, where `origin (B,C,1)` is a mean over some pixels of each channel.
    """

    x: Tensor
    layout: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    tau: float
    partition: str
    statistics: str
    eps: float

    def __post_init__(self):
        self.region = self.statistics == 'region'
        self.origin = self.x[:, :, :ORIGIN_PIXELS].mean(2, dtype=torch.float64, keepdim=True)
        if not self.region:  # the moments of X * L are not those of (X - origin) * L
            self.origin.zero_()
        self.whole = self.x.numel() <= WHOLE_ELEMENTS
        if self.weight is not None:
            self.slope = (self.tau * self.weight).expand(self.x.shape[0], -1, -1)  # (B,n,C)
            self.offset = self.slope @ self.origin  # (B,n,1)
            if self.bias is not None:
                self.offset += self.tau * self.bias[:, None]

    def widen(self, at, out: Tensor) -> Tensor:
        """A block of x - origin in float64."""
        return out.copy_(self.x[at[0], :, at[1]]).sub_(self.origin[at[0]])  # one call would make a wide temporary

    def blocks(self):
        """Slices (batch, pixels) whose work buffers stay in the cache."""
        batch, channels, pixels = self.x.shape
        if self.whole:
            yield slice(0, batch), slice(0, pixels)
            return
        elements = BLOCK_ELEMENTS.get(self.x.device.type, BLOCK_ELEMENTS_ELSEWHERE)
        count = max(1, -(-2 * channels * pixels // elements))
        step = -(-pixels // count)
        together = max(1, elements // (2 * channels * step))
        for b in range(0, batch, together):
            for p in range(0, pixels, step):
                yield slice(b, b + together), slice(p, p + step)

    def layout_block(self, at, wide_x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(n,P) layout of a block with padding set to 0, and the softmax behind it where there is one."""
        soft = None
        if self.layout is not None:
            share = self.layout[at[0], :, at[1]].double()
        else:
            share = soft = torch.baddbmm(self.offset[at[0]], self.slope[at[0]], wide_x).softmax(dim=1)
            if self.partition == 'hard':
                share = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        if self.mask is not None:
            share = share * self.mask[at[0], :, at[1]]
        return share, soft

    def population(self, mass: Tensor) -> Tensor | int:
        """What the moments are divided by: the mass (B,n,1), or with 'product' the number of real pixels."""
        if self.region:
            return mass.clamp(min=MIN_MASS)
        if self.mask is None:
            return self.x.shape[2]
        return self.mask.double().sum(2, keepdim=True).clamp(min=1)


class Buffers:
    """Work space that is handed out again and again: fresh pages would cost more than the arithmetic."""

    def __init__(self, device):
        self.device = device
        self.kept = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        buffer = self.kept.get(name)
        if buffer is None or buffer.shape != shape:
            buffer = self.kept[name] = torch.empty(shape, dtype=torch.float64, device=self.device)
        return buffer


def region_statistics(inputs: Inputs, n: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Mass (B,n,1), mean and standard deviation (B,n,C) of each entity, in float64; the last widened block and layout.
    """
    x = inputs.x
    batch, channels, _ = x.shape
    mass = x.new_zeros((batch, n, 1), dtype=torch.float64)
    moments = x.new_zeros((batch, n, 2 * channels), dtype=torch.float64)
    first, second = moments[..., :channels], moments[..., channels:]
    buffers = Buffers(x.device)
    for at in inputs.blocks():
        block = x[at[0], :, at[1]]
        terms = buffers('terms', block.shape[0], 2 * channels, block.shape[2])  # rows: X, X^2
        wide = inputs.widen(at, terms[:, :channels])
        torch.mul(wide, wide, out=terms[:, channels:])
        share, _ = inputs.layout_block(at, wide)
        mass[at[0]] += share.sum(2, keepdim=True)
        if inputs.region:
            moments[at[0]] += share @ terms.transpose(1, 2)
        else:
            first[at[0]] += share @ wide.transpose(1, 2)
            second[at[0]] += (share * share) @ terms[:, channels:].transpose(1, 2)
    total = inputs.population(mass)
    mean, square = first / total, second / total
    return mass, mean, deviation_of(square - mean * mean, SUM_ROUNDING * square), (wide, share)


def coefficients(mass: Tensor, deviation: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """1/(sigma+eps), 0 for an entity that owns no pixel, and A = beta/(sigma+eps); both (B,n,C)."""
    inverse = torch.where(mass > MIN_MASS, 1.0 / (deviation + eps), 0.0)
    return inverse, beta.double() * inverse


def forward(inputs: Inputs, beta: Tensor, alpha: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fill `out (B,C,P)`; returns the statistics."""
    mass, mean, deviation, block = region_statistics(inputs, beta.shape[0])
    _, scale = coefficients(mass, deviation, beta, inputs.eps)
    if inputs.region:
        # What counts as flat adds its alpha: there X * A - mu * A would be a difference of numbers of size X / eps.
        scale = torch.where(deviation > 0, scale, 0.0)
    shift = (alpha.double() - mean * scale).transpose(1, 2)  # (B,C,n)
    scale = scale.transpose(1, 2)
    buffers = Buffers(out.device)
    for at in inputs.blocks():
        if inputs.whole:
            wide, share = block
        else:
            wide = inputs.widen(at, buffers('x', *inputs.x[at[0], :, at[1]].shape))
            share, _ = inputs.layout_block(at, wide)
        result = torch.bmm(scale[at[0]], share, out=buffers('result', *wide.shape))
        out[at[0], :, at[1]] = result.mul_(wide).baddbmm_(shift[at[0]], share)
    return mass, mean, deviation


def backward(inputs: Inputs, grad: Tensor, stats, beta: Tensor, alpha: Tensor, grad_x: Tensor | None,
             grad_layout: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Fill `grad_x` and `grad_layout` if given; returns the gradients of beta, alpha, weight and bias.

    Names: `d_v` is the derivative of the loss with respect to v. The derivatives through mu and sigma act on X
    and L as two more tables: d_mu * dmu + d_sigma * dsigma = L * (E * X + F) per entity and channel.
    """
    mass, mean, deviation = stats
    x, region = inputs.x, inputs.region
    channels = x.shape[1]
    buffers = Buffers(x.device)

    def widened(at):
        block, upstream = x[at[0], :, at[1]], grad[at[0], :, at[1]]
        shape = block.shape[0], 4 * channels, block.shape[2]
        terms = buffers('terms', *shape)  # rows: dY*X, dY, X^2 (filled later), X
        wide = inputs.widen(at, terms[:, 3 * channels:])
        wide_grad = terms[:, channels:2 * channels].copy_(upstream)
        torch.mul(wide, wide_grad, out=terms[:, :channels])
        return terms, wide, wide_grad

    d_table = x.new_zeros((*mean.shape[:2], 2 * channels), dtype=torch.float64)
    for at in inputs.blocks():
        terms, wide, wide_grad = widened(at)
        share, soft = inputs.layout_block(at, wide)
        d_table[at[0]] += share @ terms[:, :2 * channels].transpose(1, 2)

    inverse, scale = coefficients(mass, deviation, beta, inputs.eps)
    shift = alpha.double() - mean * scale
    d_scale, d_shift = d_table[..., :channels], d_table[..., channels:]
    d_scale = d_scale - mean * d_shift
    grad_beta, grad_alpha = (d_scale * inverse).sum(0), d_shift.sum(0)
    if grad_x is None:
        return grad_beta, grad_alpha, None, None
    d_mean, d_deviation = -scale * d_shift, -d_scale * scale * inverse
    total = inputs.population(mass)
    e = torch.where(deviation > 0, d_deviation / (total * deviation), 0.0)
    f = d_mean / total - e * mean

    if region:
        field_table = torch.cat([scale, e], 2).transpose(1, 2)
        layout_table = torch.cat([scale, shift, e / 2, f], 2)
        constant = -(f * mean + e / 2 * (mean**2 + deviation**2)).sum(2, keepdim=True)
    else:
        field_table = scale.transpose(1, 2)
        square_table = e.transpose(1, 2)
        layout_table = torch.cat([scale, shift, torch.zeros_like(e), f], 2)
        constant = torch.zeros_like(mass)

    from_logits = inputs.layout is None
    grad_weight = torch.zeros_like(inputs.weight) if from_logits else None
    grad_bias = torch.zeros_like(grad_weight[:, 0]) if from_logits and inputs.bias is not None else None
    f = f.transpose(1, 2)
    for at in inputs.blocks():
        if not inputs.whole:
            terms, wide, wide_grad = widened(at)
            share, soft = inputs.layout_block(at, wide)
        square = torch.mul(wide, wide, out=terms[:, 2 * channels:3 * channels])
        field = torch.bmm(field_table[at[0]], share)
        result = field[:, :channels].mul_(wide_grad)
        if region:
            result.addcmul_(field[:, channels:], wide)
        else:
            result.addcmul_(torch.bmm(square_table[at[0]], share * share), wide)
        result.baddbmm_(f[at[0]], share)

        d_share = torch.baddbmm(constant[at[0]], layout_table[at[0]], terms)
        if not region:
            d_share += share * (e[at[0]] @ square)
        if inputs.mask is not None:
            d_share *= inputs.mask[at[0], :, at[1]]
        if from_logits:
            d_share *= soft
            d_logits = d_share.addcmul_(soft, d_share.sum(1, keepdim=True), value=-1)  # of tau * Z
            result.baddbmm_(inputs.slope[at[0]].transpose(1, 2), d_logits)
            d_offset = inputs.tau * d_logits.sum(2, keepdim=True)
            grad_weight += torch.baddbmm(d_offset @ inputs.origin[at[0]].transpose(1, 2), d_logits,
                                         wide.transpose(1, 2), alpha=inputs.tau).sum(0)
            if grad_bias is not None:
                grad_bias += d_offset.sum((0, 2))
        elif grad_layout is not None:
            grad_layout[at[0], :, at[1]] = d_share
        grad_x[at[0], :, at[1]] = result
    return grad_beta, grad_alpha, grad_weight, grad_bias


class MoToFunction(torch.autograd.Function):
    """Autograd around `forward` and `backward`; keeps the inputs and (B,n,C) statistics, nothing else."""

    @staticmethod
    def forward(ctx, x, layout, weight, bias, beta, alpha, mask, tau, partition, statistics, eps):
        ctx.options = tau, partition, statistics, eps
        out = torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):
            inputs = flatten_inputs(x, layout, weight, bias, mask, ctx.options)
            stats = forward(inputs, beta, alpha, out.flatten(2))
        ctx.save_for_backward(x, layout, weight, bias, beta, alpha, mask, *stats)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, layout, weight, bias, beta, alpha, mask, *stats = ctx.saved_tensors
        # beta and alpha alone need the first of the two passes
        grad_x = torch.empty_like(x) if any(ctx.needs_input_grad[:4]) else None
        grad_layout = layout.new_empty(layout.shape) if layout is not None and ctx.needs_input_grad[1] else None
        with torch.autocast(x.device.type, enabled=False):
            inputs = flatten_inputs(x, layout, weight, bias, mask, ctx.options)
            grad_beta, grad_alpha, grad_weight, grad_bias = backward(
                inputs, grad.flatten(2), stats, beta, alpha,
                None if grad_x is None else grad_x.flatten(2),
                None if grad_layout is None else grad_layout.flatten(2))
        like = (None if g is None else g.to(p.dtype) for g, p in
                ((grad_weight, weight), (grad_bias, bias), (grad_beta, beta), (grad_alpha, alpha)))
        return grad_x, grad_layout, *like, None, None, None, None, None


def flatten_inputs(x, layout, weight, bias, mask, options) -> Inputs:
    tau, partition, statistics, eps = options
    return Inputs(x.flatten(2), None if layout is None else layout.flatten(2),
                   None if weight is None else weight.double(), None if bias is None else bias.double(),
                   None if mask is None else mask.flatten(2), tau, partition, statistics, eps)


@torch.compiler.disable  # a loop over blocks is nothing to trace: a compiled model calls it as it stands
def moto_torch(x: Tensor, layout: Tensor | None, weight: Tensor | None, bias: Tensor | None, beta: Tensor,
               alpha: Tensor, mask: Tensor | None, tau: float, partition: str, statistics: str, eps: float) -> Tensor:
    """See `mmtok.ops.moto` (layout given) and `mmtok.ops.moto_from_logits` (weight given)."""
    if not is_dense(x):
        x = x.contiguous()
    return MoToFunction.apply(x, layout, weight, bias, beta, alpha, mask, tau, partition, statistics, eps)


def is_dense(x: Tensor) -> bool:
    """Whether `empty_like(x)` has x's own strides, so that flatten(2) of either is a view."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
