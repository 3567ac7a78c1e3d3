"""MoTo as small matrix products over cache-sized blocks of pixels, with its own backward.

With `A = beta / (sigma + eps)` and `B = alpha - mu * A` (both (n,C)) the sum over entities becomes

    Y = X * (A^T L) + B^T L,

so nothing of size (B,n,C,H,W) exists. With statistics of regions each block is shifted by a channel mean before it is
squared or summed, unless the map lies around zero; the sums of blocks are added in float64. Inside blocks a CPU works
in float32, twice as fast, as long as no region lies more than a few of its deviations from the channel mean;
`why_too_coarse` looks afterwards, and where they were, everything is done again: with a shift if there was none and
one can help, else, as with hard regions whose means lie thousands of deviations apart, in float64. Elsewhere, where
looking would stop the device, it is float64 from the start.

Forward reads X twice (once more each time it starts again) and writes Y; backward reads X and dY twice and writes dX.
Layouts from 1x1 logits are recomputed per block and never stored.
"""

from itertools import repeat

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import Buffers, Inputs, Sums
from .pages import in_huge_pages
from .reference import MIN_MASS, deviation_of

# Relative error that a float64 sum of squares may have gathered. A region's deviation counts as 0 below 1e-7 of
# its distance from the origin, which is about the resolution of float32 input there.
SUM_ROUNDING = 1e-14
# Limits of float32 blocks
FLOAT32_SPREAD = 16  # mean square from the origin, in variances: so many roundings does a variance lose
FLOAT32_LOGITS = 100  # sum of |tau * filter| times a channel's size: up to there a softmax keeps five digits
FLOAT32_ORIGIN = 64  # distance of the origin from 0, in deviations of a channel
FLOAT32_SQUARE = 1e12  # mean square up to which dY / sigma^2 is far from the smallest numbers


def region_statistics(inputs: Inputs, n: int, buffers: Buffers) -> tuple[
        tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor], str]:
    """What the second pass needs, and whether the precision of the blocks was enough.

    Returns mass (B,n,1), mean and standard deviation (B,n,C) of each entity, in float64; the last block, centred, and
    its layout, which lie in `buffers`; and why the precision was not enough, if it was not.
    """
    channels = inputs.x.shape[1]
    masses, sums, squares = (Sums(inputs, n, columns) for columns in (1, channels, channels))
    for block, to_mass, to_sum, to_square in zip(inputs.blocks, masses, sums, squares, strict=True):
        centred = block.centred(buffers)
        # Where the second pass will have its field
        square = torch.mul(centred, centred, out=buffers('field', block)[:, :channels])
        share, _ = block.layout(centred, buffers)
        torch.sum(share, 2, keepdim=True, out=to_mass)
        torch.bmm(share, centred.mT, out=to_sum)
        torch.bmm(share if inputs.region else share * share, square.mT, out=to_square)
    mass, of_squares = masses.total(), squares.total()
    total = inputs.population(mass)
    mean, square = sums.total() / total, of_squares / total
    variance = square - mean * mean
    reason = why_too_coarse(inputs, mass, of_squares, square, variance) if inputs.work == torch.float32 else ''
    return (mass, mean, deviation_of(variance, SUM_ROUNDING * square)), (centred, share), reason


def why_too_coarse(inputs: Inputs, mass: Tensor, squares: Tensor, mean_square: Tensor, variance: Tensor) -> str:
    """Where float32 blocks cost more than a few roundings: 'range' of squares or logits, or 'spread' of the regions.

    `squares` are sums over pixels, `mean_square` is of one.
    """
    empty = mass <= MIN_MASS
    fits = (mean_square <= FLOAT32_SQUARE) | empty
    if inputs.weight is not None:
        # Mean square of each channel; of a product, at least the part that the layouts leave of it
        of_channel = squares.sum(1, keepdim=True) / mass.sum(1, keepdim=True).clamp(min=MIN_MASS)
        if not inputs.region:
            of_channel = of_channel * squares.shape[1]
        spread = of_channel.sqrt()
        logits = (inputs.slope.abs() * spread).sum(2, keepdim=True)
        # The gradient of a filter is a sum over X, not over X - origin
        fits = fits & (logits <= FLOAT32_LOGITS)
        if inputs.origin is not None:
            fits = fits & (inputs.origin.mT.abs() <= FLOAT32_ORIGIN * spread)
    close = (mean_square < FLOAT32_SPREAD * variance) | empty
    if (fits & close).all():
        return ''
    return 'spread' if fits.all() else 'range'


def coefficients(mass: Tensor, deviation: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """1/(sigma+eps), 0 for an entity that owns no pixel, and A = beta/(sigma+eps); both (B,n,C)."""
    # Of a mass that is no number everything becomes NaN, this or that way
    inverse = (deviation + eps).reciprocal_().masked_fill_(mass <= MIN_MASS, 0.0)
    return inverse, beta.double() * inverse


def forward(inputs: Inputs, beta: Tensor, alpha: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fill `out (B,C,P)`; returns the statistics. Refines `inputs` where float32 does not do."""
    channels = out.shape[1]
    while True:
        buffers = Buffers(inputs, inputs.tiling, x=inputs.copied, field=2 * channels, **inputs.shares)
        stats, last, reason = region_statistics(inputs, beta.shape[0], buffers)
        if not reason:
            break
        buffers.give_back()
        del last  # or its memory would still be there when the next try asks for more
        inputs.refine(reason)
    mass, mean, deviation = stats
    _, scale = coefficients(mass, deviation, beta, inputs.eps)
    if inputs.region:
        # What counts as flat adds its alpha: there X * A - mu * A would be a difference of numbers of size X / eps.
        scale.masked_fill_(deviation == 0, 0.0)
    groups, tiling, blocks = 1, inputs.tiling, inputs.blocks
    if tiling.chunked and inputs.layout is not None and out.device.type == 'cpu' and out.stride(2) == 1:
        groups = groups_of(channels)
        tiling, blocks = inputs.cut(by_channels=True)

    def grouped(t):  # (T,k,p) -> (T,k,p), or (1,k,p) -> (groups,k/groups,p): a view
        return t if groups == 1 else t.view(groups, -1, t.shape[2])

    tables = [t.mT.view(len(t), groups, -1, t.shape[1])  # (B,groups,C/groups,n)
              for t in (scale, alpha.double() - mean * scale)]
    table = torch.cat(tables, 2).flatten(1, 2).to(inputs.work)  # (B,2C,n)
    for block, rows, place in zip(blocks, tiling.tables(table), tiling.maps(out), strict=True):
        if inputs.whole:
            centred, share = last
        else:
            centred = block.centred(buffers)
            share, _ = block.layout(centred, buffers)
        field = torch.bmm(grouped(rows), share if groups == 1 else share.expand(groups, -1, -1),
                          out=grouped(buffers('field', block)))
        scales, shifts = field.chunk(2, 1)
        direct = place.dtype == inputs.work
        torch.addcmul(shifts, scales, grouped(centred), out=grouped(place if direct else centred))
        if not direct:
            place.copy_(centred)
    buffers.give_back()
    return stats


def groups_of(channels: int) -> int:
    """Into how many groups of channels a product is best cut where threads share channels."""
    enough = min(channels, 2 * torch.get_num_threads())
    return next(g for g in range(enough, channels + 1) if channels % g == 0)


def backward(inputs: Inputs, grad: Tensor, stats, beta: Tensor, alpha: Tensor, grad_x: Tensor | None,
             grad_layout: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Fill `grad_x` and `grad_layout` if given; returns the gradients of beta, alpha, weight and bias.

    Names: `d_v` is the derivative of the loss with respect to v. The derivatives through mu and sigma act on X
    and L as two more tables: d_mu * dmu + d_sigma * dsigma = L * (E * X + F) per entity and channel.
    """
    mass, mean, deviation = stats
    x, region, work = inputs.x, inputs.region, inputs.work
    channels = x.shape[1]
    second = grad_x is not None  # whether there is a second pass
    n, from_logits, tiling = beta.shape[0], inputs.layout is None, inputs.tiling
    d_shares = n if second and (from_logits or grad_layout is not None) else 0
    buffers = Buffers(inputs, tiling, terms=4 * channels, field=3 * channels * second, result=channels * second,
                      d_share=d_shares, **inputs.shares)
    upstreams = tiling.maps(grad)

    def terms_of(block, upstream):
        terms = buffers('terms', block)  # rows: dY*X, dY, X^2 (filled later), X
        centred = block.centre(terms[:, 3 * channels:])
        upstream = terms[:, channels:2 * channels].copy_(upstream)
        torch.mul(centred, upstream, out=terms[:, :channels])
        return terms, centred, upstream

    d_table = Sums(inputs, n, 2 * channels)
    for block, upstream, to_table in zip(inputs.blocks, upstreams, d_table, strict=True):
        terms, centred, upstream = terms_of(block, upstream)
        share, soft = block.layout(centred, buffers)
        torch.bmm(share, terms[:, :2 * channels].mT, out=to_table)

    inverse, scale = coefficients(mass, deviation, beta, inputs.eps)
    shift = alpha.double() - mean * scale
    d_scale, d_shift = d_table.total().chunk(2, 2)
    d_scale = d_scale - mean * d_shift
    grad_beta, grad_alpha = (d_scale * inverse).sum(0), d_shift.sum(0)
    if not second:
        buffers.give_back()
        return grad_beta, grad_alpha, None, None
    d_mean, d_deviation = -scale * d_shift, -d_scale * scale * inverse
    total = inputs.population(mass)
    e = (d_deviation / (total * deviation)).masked_fill_(deviation == 0, 0.0)
    f = d_mean / total - e * mean

    if region:
        field_table = torch.cat([scale, e, f], 2)
        layout_table = torch.cat([scale, shift, e / 2, f], 2)
        constant = -(f * mean + e / 2 * (mean**2 + deviation**2)).sum(2, keepdim=True)
    else:
        field_table = torch.cat([scale, torch.zeros_like(e), f], 2)
        layout_table = torch.cat([scale, shift, torch.zeros_like(e), f], 2)
        constant = torch.zeros_like(mass)
    if from_logits:  # a softmax does not see what its inputs share; without that, float32 keeps their differences
        weights = mass / mass.sum(1, keepdim=True).clamp(min=MIN_MASS)
        layout_table, constant = (t - (weights * t).sum(1, keepdim=True) for t in (layout_table, constant))
    field_table, layout_table, constant, e = (
        tiling.tables(t.to(work)) for t in (field_table.mT, layout_table, constant, e))

    d_slope, d_offset = (Sums(inputs, n, columns) for columns in (channels, 1)) if from_logits else (repeat(None),) * 2
    parts = zip(inputs.blocks, upstreams, field_table, layout_table, constant, e, d_slope, d_offset,
                tiling.maps(grad_x), tiling.maps(grad_layout), strict=False)
    for block, upstream, of_field, of_layout, of_share, of_square, to_slope, to_offset, to_x, to_layout in parts:
        if not inputs.whole:
            terms, centred, upstream = terms_of(block, upstream)
            share, soft = block.layout(centred, buffers)
        square = torch.mul(centred, centred, out=terms[:, 2 * channels:3 * channels])
        field = torch.bmm(of_field, share, out=buffers('field', block))
        by_grad, by_x, rest = field.chunk(3, 1)
        result = torch.addcmul(rest, by_grad, upstream, out=buffers('result', block))
        result.addcmul_(by_x if region else torch.bmm(of_square.mT, share * share), centred)

        if d_shares:
            d_share = torch.baddbmm(of_share, of_layout, terms, out=buffers('d_share', block))
            if not region:
                d_share += share * torch.bmm(of_square, square)
            if inputs.mask is not None:
                d_share *= block.mask
        if from_logits:
            d_share *= soft
            shared = torch.sum(d_share, 1, keepdim=True, out=buffers('row', block))
            d_logits = d_share.addcmul_(soft, shared, value=-1)  # of tau * Z
            result.baddbmm_(block.slope.mT, d_logits)
            torch.bmm(d_logits, centred.mT, out=to_slope)
            torch.sum(d_logits, 2, keepdim=True, out=to_offset)
        elif to_layout is not None:
            to_layout.copy_(d_share)
        to_x.copy_(result)
    buffers.give_back()
    if not from_logits:
        return grad_beta, grad_alpha, None, None
    d_slope, d_offset = d_slope.total(), d_offset.total()
    if inputs.origin is not None:
        d_slope += d_offset @ inputs.origin.double().mT
    grad_weight = inputs.tau * d_slope.sum(0)
    return grad_beta, grad_alpha, grad_weight, inputs.tau * d_offset.sum((0, 2))


class MoToFunction(torch.autograd.Function):
    """Autograd around `forward` and `backward`; keeps the inputs and (B,n,C) statistics, nothing else."""

    @staticmethod
    def forward(ctx, x, layout, weight, bias, beta, alpha, mask, tau, partition, statistics, eps):
        out = in_huge_pages(torch.empty_like(x))
        with torch.autocast(x.device.type, enabled=False):
            inputs = flatten_inputs(x, layout, weight, bias, mask, (tau, partition, statistics, eps))
            stats = forward(inputs, beta, alpha, out.flatten(2))
        ctx.options = tau, partition, statistics, eps, inputs.work, inputs.shifted
        ctx.save_for_backward(x, layout, weight, bias, beta, alpha, mask, *stats)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, layout, weight, bias, beta, alpha, mask, *stats = ctx.saved_tensors
        # beta and alpha alone need the first of the two passes
        grad_x = in_huge_pages(torch.empty_like(x)) if any(ctx.needs_input_grad[:4]) else None
        grad_layout = None
        if layout is not None and ctx.needs_input_grad[1]:
            grad_layout = in_huge_pages(layout.new_empty(layout.shape))
        with torch.autocast(x.device.type, enabled=False):
            inputs = flatten_inputs(x, layout, weight, bias, mask, ctx.options)
            grad_beta, grad_alpha, grad_weight, grad_bias = backward(
                inputs, grad.flatten(2), stats, beta, alpha,
                None if grad_x is None else grad_x.flatten(2),
                None if grad_layout is None else grad_layout.flatten(2))
        like = (None if g is None or p is None else g.to(p.dtype) for g, p in
                ((grad_weight, weight), (grad_bias, bias), (grad_beta, beta), (grad_alpha, alpha)))
        return grad_x, grad_layout, *like, None, None, None, None, None


def flatten_inputs(x, layout, weight, bias, mask, options) -> Inputs:
    return Inputs(x.flatten(2), None if layout is None else layout.flatten(2),
                  None if weight is None else weight.double(), None if bias is None else bias.double(),
                  None if mask is None else mask.flatten(2), *options)


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
