"""The GPU kernels of MoTo: two passes over X forward, two over X and dY backward, and the merges between them.

    forward:   prepare_kernel -> moments_kernel -> merge_moments_kernel -> modulate_kernel
    backward:  grad_moments_kernel -> merge_grads_kernel -> grad_input_kernel -> merge_weights_kernel

A program owns a tile of T pixels of one image, its threads own whole pixels: tensors are (N,BC,T), N entities (padded
to a power of two) by BC channels by T pixels, and the shares of the tile's pixels stay in registers while blocks of BC
channels go by. Sums over entities and channels then stay inside a thread; only those over pixels cross threads. A
tile's second look at X finds it in the cache. Every program writes its sums to a place of its own, and the merges add
these in fixed order in float64: no atomics, the same bits in every run.

Written for Triton 2.1 to 3.6: no keep_dims, no tuples in loops, constants by argument.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(x, c, local, left, xc, xp, C: tl.constexpr):
    """(1,BC,T) of a map in float32, 0 outside. `x` points at the tile's first pixel; `left` pixels follow."""
    return tl.load(x + (c.to(tl.int64) * xc + local * xp), mask=(c < C) & (local < left), other=0.0).to(tl.float32)


@triton.jit
def load_rows(table, c, row, ids, ROWS: tl.constexpr, C: tl.constexpr, N: tl.constexpr):
    """(N,BC,1) from row `row` of a table (C,ROWS,N)."""
    return tl.load(table + ((c * ROWS + row) * N + ids), mask=c < C, other=0.0)


@triton.jit
def load_filters(weight, c, ids, C: tl.constexpr, ENTITIES: tl.constexpr):
    """(N,BC,1) of the layout filters (ENTITIES,C) in float32, 0 outside."""
    return tl.load(weight + (ids * C + c), mask=(c < C) & (ids < ENTITIES), other=0.0).to(tl.float32)


@triton.jit
def shares_of(x, xc, xp, weight, origin, offset, layout, ln, lp, mask, mp, left, TAU: tl.constexpr, C: tl.constexpr,
              ENTITIES: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BC: tl.constexpr,
              FROM_LOGITS: tl.constexpr, HARD: tl.constexpr, MASKED: tl.constexpr):
    """Layout of a tile (N,1,T): the softmax, and what it counts as, with 0 in padding and outside of the map.

    Logits are those of x - origin; `offset` brings what the origin adds, computed in float64, and the bias. It is -inf
    for the entities that only fill up the power of two.
    """
    local = tl.arange(0, T)[None, None, :]
    ids = tl.arange(0, N)[:, None, None]
    if FROM_LOGITS:
        z = tl.zeros([N, 1, T], dtype=tl.float32)
        for c0 in range(0, C, BC):
            c = c0 + tl.arange(0, BC)[None, :, None]
            block = load_tile(x, c, local, left, xc, xp, C)
            block = block - tl.load(origin + c, mask=c < C, other=0.0)
            z += tl.sum(load_filters(weight, c, ids, C, ENTITIES) * block, 1)[:, None, :]
        z = TAU * z + tl.load(offset + ids)
        highest = tl.max(z, 0)[None, :, :]
        e = tl.exp(z - highest)
        soft = e * (1.0 / tl.sum(e, 0))[None, :, :]
        share = soft
        if HARD:
            first = tl.min(tl.where(z == highest, ids, N), 0)[None, :, :]
            share = tl.where(ids == first, 1.0, 0.0)
    else:
        soft = tl.load(layout + (ids.to(tl.int64) * ln + local * lp), mask=(ids < ENTITIES) & (local < left),
                       other=0.0).to(tl.float32)
        share = soft
    share = tl.where(local < left, share, 0.0)
    if MASKED:
        share = share * tl.load(mask + local * mp, mask=local < left, other=0).to(tl.float32)
    return soft, share


@triton.jit
def heaviest_pixel(share, local, left, T: tl.constexpr):
    """(N,1,1): the pixel of the tile that belongs most to each entity; the first of equals."""
    most = tl.max(share, 2)[:, :, None]
    at = tl.min(tl.where((share == most) & (local < left), local, T), 2)[:, :, None]
    return tl.where(at < T, at, 0)  # nothing equals a NaN


@triton.jit
def prepare_kernel(x, xb, xc, xp, weight, bias, mask, mb, mp, origin, offset, pixels, TAU: tl.constexpr,
                   C: tl.constexpr, ENTITIES: tl.constexpr, N: tl.constexpr, SAMPLE: tl.constexpr, BC: tl.constexpr,
                   FROM_LOGITS: tl.constexpr, HAS_BIAS: tl.constexpr, MASKED: tl.constexpr):
    """Of one image: origin (C,), means over an even sample of real pixels, and offset (N,), its logits.

    Offsets count from the largest one, which no softmax sees and which keeps their differences exact in float32.
    """
    image = tl.program_id(0).to(tl.int64)
    at = (tl.arange(0, SAMPLE).to(tl.int64) * pixels // SAMPLE)[None, :]
    ids = tl.arange(0, N)
    real = tl.full([1, SAMPLE], 1.0, tl.float32)
    if MASKED:
        real = tl.load(mask + (image * mb + at * mp)).to(tl.float32)
    count = tl.sum(real, 1)
    z = tl.zeros([N], dtype=tl.float64)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        block = tl.load(x + (image * xb + c[:, None].to(tl.int64) * xc + at * xp), mask=c[:, None] < C, other=0.0)
        block = tl.where(real > 0, block.to(tl.float32), 0.0)
        mean = tl.sum(block * real, 1) / tl.where(count > 0, count, 1.0)
        tl.store(origin + (image * C + c), mean, mask=c < C)
        if FROM_LOGITS:
            filters = tl.load(weight + (ids[:, None] * C + c[None, :]),
                              mask=(ids[:, None] < ENTITIES) & (c[None, :] < C), other=0.0).to(tl.float64)
            z += tl.sum(filters * mean.to(tl.float64)[None, :], 1)
    if FROM_LOGITS:
        if HAS_BIAS:
            z += tl.load(bias + ids, mask=ids < ENTITIES, other=0.0).to(tl.float64)
        z = tl.where(ids < ENTITIES, z * tl.full([N], TAU, tl.float64), float('-inf'))
        tl.store(offset + (image * N + ids), (z - tl.max(z, 0)).to(tl.float32))


@triton.jit
def moments_kernel(x, xb, xc, xp, weight, origin, offset, layout, lb, ln, lp, mask, mb, mp, part, part_mass, pixels,
                   tiles, TAU: tl.constexpr, C: tl.constexpr, ENTITIES: tl.constexpr, N: tl.constexpr,
                   T: tl.constexpr, BC: tl.constexpr, FROM_LOGITS: tl.constexpr, HARD: tl.constexpr,
                   MASKED: tl.constexpr):
    """Of one tile: masses (N,) and (C,3,N), per channel and entity a pivot p, sum L (X - p) and sum L (X - p)^2.

    The pivot is X at the pixel that belongs most to the entity. Of a constant region both sums are then exactly 0; and
    since that pixel holds at least 1/T of the mass, (mean - p)^2 is at most T variances: what is lost when the second
    sum is moved to the mean is at most T roundings, however far apart regions lie.
    """
    row = tl.program_id(0).to(tl.int64)
    image = row // tiles
    start = (row % tiles) * T
    left = (pixels - start).to(tl.int32)
    x += image * xb + start * xp
    _, share = shares_of(x, xc, xp, weight, origin + image * C, offset + image * N, layout + image * lb + start * lp,
                         ln, lp, mask + image * mb + start * mp, mp, left, TAU, C, ENTITIES, N, T, BC, FROM_LOGITS,
                         HARD, MASKED)
    local = tl.arange(0, T)[None, None, :]
    ids = tl.arange(0, N)[:, None, None]
    tl.store(part_mass + (row * N + ids), tl.sum(share, 2)[:, :, None])
    at = heaviest_pixel(share, local, left, T)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)[None, :, None]
        pivot = tl.load(x + (c.to(tl.int64) * xc + at * xp), mask=c < C, other=0.0).to(tl.float32)
        d = load_tile(x, c, local, left, xc, xp, C) - pivot
        weighted = share * d
        to = part + ((row * C + c) * 3 * N + ids)
        tl.store(to, pivot, mask=c < C)
        tl.store(to + N, tl.sum(weighted, 2)[:, :, None], mask=c < C)
        tl.store(to + 2 * N, tl.sum(weighted * d, 2)[:, :, None], mask=c < C)


@triton.jit
def merge_moments_kernel(part, part_mass, beta, alpha, mass_out, lo_out, deviation_out, table, tiles, eps,
                         min_mass, rounding, C: tl.constexpr, ENTITIES: tl.constexpr, N: tl.constexpr,
                         ROWS: tl.constexpr):
    """Of one image and channel: its moments in float64, and table (3,N): mean, A = beta/(sigma+eps), alpha - lo * A.

    Each entity counts from the pivot of a tile that it owns much of, so that how far regions lie apart costs nothing.
    The mean in the table is rounded to float32, and `lo` is what that leaves out: kept by itself, since even float64
    would round it away beside a mean of millions of deviations.
    """
    image, c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = tl.arange(0, N)
    early = tl.arange(0, ROWS)[:, None]
    owned = tl.load(part_mass + ((image * tiles + early) * N + ids[None, :]), mask=early < tiles, other=-1.0)
    tile = tl.min(tl.where(owned == tl.max(owned, 0)[None, :], early, ROWS), 0)
    tile = tl.where(tile < tiles, tile, 0)  # nothing equals a NaN
    zero = tl.load(part + (((image * tiles + tile) * C + c) * 3 * N + ids)).to(tl.float64)
    mass = tl.zeros([ROWS, N], dtype=tl.float64)
    first = tl.zeros([ROWS, N], dtype=tl.float64)
    second = tl.zeros([ROWS, N], dtype=tl.float64)
    for r0 in range(0, tiles, ROWS):
        r = (r0 + tl.arange(0, ROWS))[:, None]
        row = image * tiles + r
        m = tl.load(part_mass + (row * N + ids[None, :]), mask=r < tiles, other=0.0).to(tl.float64)
        at = part + ((row * C + c) * 3 * N + ids[None, :])
        pivot = tl.load(at, mask=r < tiles, other=0.0).to(tl.float64) - zero[None, :]
        s1 = tl.load(at + N, mask=r < tiles, other=0.0).to(tl.float64)
        s2 = tl.load(at + 2 * N, mask=r < tiles, other=0.0).to(tl.float64)
        mass += m
        first += tl.where(r < tiles, s1 + m * pivot, 0.0)
        second += tl.where(r < tiles, s2 + pivot * (s1 + s1 + m * pivot), 0.0)
    mass_all = tl.sum(mass, 0)
    total = tl.where(mass_all > min_mass, mass_all, min_mass)
    delta = tl.sum(first, 0) / total
    square = tl.sum(second, 0) / total
    variance = square - delta * delta
    positive = variance > rounding * square
    deviation = tl.where(positive, tl.sqrt(tl.where(positive, variance, 1.0)), 0.0)
    rounded = (zero + delta).to(tl.float32)
    lo = (zero - rounded.to(tl.float64)) + delta
    real = ids < ENTITIES
    scale = tl.load(beta + (ids * C + c), mask=real, other=0.0).to(tl.float64) / (deviation + eps)
    scale = tl.where((mass_all > min_mass) & positive, scale, 0.0)  # what counts as flat adds its alpha
    shift = tl.load(alpha + (ids * C + c), mask=real, other=0.0).to(tl.float64)
    place = (image * C + c) * N + ids
    tl.store(mass_out + (image * N + ids), mass_all, mask=c == 0)
    tl.store(lo_out + place, lo)
    tl.store(deviation_out + place, deviation)
    to = table + ((image * C + c) * 3 * N + ids)
    tl.store(to, rounded)
    tl.store(to + N, scale.to(tl.float32))
    tl.store(to + 2 * N, (shift - lo * scale).to(tl.float32))


@triton.jit
def modulate_kernel(x, xb, xc, xp, weight, origin, offset, layout, lb, ln, lp, mask, mb, mp, table, out, ob, oc, op,
                    pixels, tiles, TAU: tl.constexpr, C: tl.constexpr, ENTITIES: tl.constexpr, N: tl.constexpr,
                    T: tl.constexpr, BC: tl.constexpr, FROM_LOGITS: tl.constexpr, HARD: tl.constexpr,
                    MASKED: tl.constexpr):
    """Y = sum_i L_i ((X - mu_i) A_i + alpha_i) of one tile, centred first: regions may lie far apart."""
    row = tl.program_id(0).to(tl.int64)
    image = row // tiles
    start = (row % tiles) * T
    left = (pixels - start).to(tl.int32)
    x += image * xb + start * xp
    out += image * ob + start * op
    table += image * C * 3 * N
    _, share = shares_of(x, xc, xp, weight, origin + image * C, offset + image * N, layout + image * lb + start * lp,
                         ln, lp, mask + image * mb + start * mp, mp, left, TAU, C, ENTITIES, N, T, BC, FROM_LOGITS,
                         HARD, MASKED)
    local = tl.arange(0, T)[None, None, :]
    ids = tl.arange(0, N)[:, None, None]
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)[None, :, None]
        d = load_tile(x, c, local, left, xc, xp, C) - load_rows(table, c, 0, ids, 3, C, N)
        y = tl.sum(share * (d * load_rows(table, c, 1, ids, 3, C, N) + load_rows(table, c, 2, ids, 3, C, N)), 0)
        tl.store(out + (c.to(tl.int64) * oc + local * op), y[None, :, :], mask=(c < C) & (local < left))


@triton.jit
def grad_moments_kernel(x, xb, xc, xp, weight, origin, offset, layout, lb, ln, lp, mask, mb, mp, table, grad, gb, gc,
                        gp, part, part_mass, pixels, tiles, TAU: tl.constexpr, C: tl.constexpr,
                        ENTITIES: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BC: tl.constexpr,
                        FROM_LOGITS: tl.constexpr, HARD: tl.constexpr, MASKED: tl.constexpr):
    """Of one tile: masses (N,) and (C,3,N), a pivot q of dY, sum L (dY - q) and sum L dY (X - mu).

    With the pivot a region of one pixel, whose gradient is 0 but a difference of numbers near 1/eps, gets it exactly.
    """
    row = tl.program_id(0).to(tl.int64)
    image = row // tiles
    start = (row % tiles) * T
    left = (pixels - start).to(tl.int32)
    x += image * xb + start * xp
    grad += image * gb + start * gp
    table += image * C * 3 * N
    _, share = shares_of(x, xc, xp, weight, origin + image * C, offset + image * N, layout + image * lb + start * lp,
                         ln, lp, mask + image * mb + start * mp, mp, left, TAU, C, ENTITIES, N, T, BC, FROM_LOGITS,
                         HARD, MASKED)
    local = tl.arange(0, T)[None, None, :]
    ids = tl.arange(0, N)[:, None, None]
    tl.store(part_mass + (row * N + ids), tl.sum(share, 2)[:, :, None])
    at = heaviest_pixel(share, local, left, T)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)[None, :, None]
        d = load_tile(x, c, local, left, xc, xp, C) - load_rows(table, c, 0, ids, 3, C, N)
        upstream = load_tile(grad, c, local, left, gc, gp, C)
        pivot = tl.load(grad + (c.to(tl.int64) * gc + at * gp), mask=c < C, other=0.0).to(tl.float32)
        to = part + ((row * C + c) * 3 * N + ids)
        tl.store(to, pivot, mask=c < C)
        tl.store(to + N, tl.sum(share * (upstream - pivot), 2)[:, :, None], mask=c < C)
        tl.store(to + 2 * N, tl.sum(share * d * upstream, 2)[:, :, None], mask=c < C)


@triton.jit
def merge_grads_kernel(part, part_mass, mass_in, lo_in, deviation_in, forward_table, beta, alpha, d_beta, d_alpha,
                       table, tiles, eps, min_mass, C: tl.constexpr, ENTITIES: tl.constexpr, N: tl.constexpr,
                       ROWS: tl.constexpr):
    """Of one image and channel: gradients of beta and alpha to be summed over images, and the table (8,N).

    `d_v` is the derivative of the loss with respect to v. What comes through mu and sigma acts on X and L as
    d_mu dmu + d_sigma dsigma = sum L (f + e (X - mu)) dX + sum (f (X - mu) + e/2 ((X - mu)^2 - sigma^2)) dL.
    In dX stands A dY + f = A (dY - g), g the mean of dY in the region; rounded to float32 it leaves h = f + A g.
    Rows: mean (that of forward's table, for one table to do), A, alpha - lo A, e, f - e lo, g, h - e lo, k = what of
    the last sum is constant; `lo` as in merge_moments_kernel.
    """
    image, c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = tl.arange(0, N)
    first = tl.zeros([ROWS, N], dtype=tl.float64)
    second = tl.zeros([ROWS, N], dtype=tl.float64)
    for r0 in range(0, tiles, ROWS):
        r = (r0 + tl.arange(0, ROWS))[:, None]
        row = image * tiles + r
        m = tl.load(part_mass + (row * N + ids[None, :]), mask=r < tiles, other=0.0).to(tl.float64)
        at = part + ((row * C + c) * 3 * N + ids[None, :])
        pivot = tl.load(at, mask=r < tiles, other=0.0).to(tl.float64)
        first += tl.load(at + N, mask=r < tiles, other=0.0).to(tl.float64) + m * pivot
        second += tl.load(at + 2 * N, mask=r < tiles, other=0.0).to(tl.float64)
    at = (image * C + c) * N + ids
    mass = tl.load(mass_in + (image * N + ids))
    lo = tl.load(lo_in + at)
    deviation = tl.load(deviation_in + at)
    real = ids < ENTITIES
    d_shift = tl.sum(first, 0)
    d_scale = tl.sum(second, 0) - lo * d_shift
    total = tl.where(mass > min_mass, mass, min_mass)
    inverse = tl.where(mass > min_mass, 1.0 / (deviation + eps), 0.0)
    scale = tl.load(beta + (ids * C + c), mask=real, other=0.0).to(tl.float64) * inverse
    shift = tl.load(alpha + (ids * C + c), mask=real, other=0.0).to(tl.float64)
    positive = deviation > 0
    e = -d_scale * scale * inverse / (total * tl.where(positive, deviation, 1.0))
    e = tl.where(positive, e, 0.0)
    g = d_shift / total
    f = -scale * g
    h = f + scale * g.to(tl.float32).to(tl.float64)
    at = (image * N + ids) * C + c
    tl.store(d_beta + at, (d_scale * inverse).to(tl.float32))
    tl.store(d_alpha + at, d_shift.to(tl.float32))
    to = table + ((image * C + c) * 8 * N + ids)
    tl.store(to, tl.load(forward_table + ((image * C + c) * 3 * N + ids)))
    tl.store(to + N, scale.to(tl.float32))
    tl.store(to + 2 * N, (shift - lo * scale).to(tl.float32))
    tl.store(to + 3 * N, e.to(tl.float32))
    tl.store(to + 4 * N, (f - e * lo).to(tl.float32))
    tl.store(to + 5 * N, g.to(tl.float32))
    tl.store(to + 6 * N, (h - e * lo).to(tl.float32))
    tl.store(to + 7 * N, (-f * lo + e / 2 * (lo * lo - deviation * deviation)).to(tl.float32))


@triton.jit
def grad_input_kernel(x, xb, xc, xp, weight, origin, offset, layout, lb, ln, lp, mask, mb, mp, table, grad, gb, gc, gp,
                      dx, db, dc, dp, d_layout, eb, en, ep, part_weight, part_bias, pixels, tiles, TAU: tl.constexpr,
                      C: tl.constexpr, ENTITIES: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BC: tl.constexpr,
                      FROM_LOGITS: tl.constexpr, HARD: tl.constexpr, MASKED: tl.constexpr,
                      LAYOUT_GRAD: tl.constexpr):
    """Of one tile: dX, and dL or its part of the gradients of the filters (C,N), on X - origin, and bias."""
    row = tl.program_id(0).to(tl.int64)
    image = row // tiles
    start = (row % tiles) * T
    left = (pixels - start).to(tl.int32)
    x += image * xb + start * xp
    grad += image * gb + start * gp
    dx += image * db + start * dp
    mask += image * mb + start * mp
    origin += image * C
    table += image * C * 8 * N
    soft, share = shares_of(x, xc, xp, weight, origin, offset + image * N, layout + image * lb + start * lp, ln, lp,
                            mask, mp, left, TAU, C, ENTITIES, N, T, BC, FROM_LOGITS, HARD, MASKED)
    local = tl.arange(0, T)[None, None, :]
    ids = tl.arange(0, N)[:, None, None]
    if FROM_LOGITS or LAYOUT_GRAD:
        d_share = tl.zeros([N, 1, T], dtype=tl.float32)
        for c0 in range(0, C, BC):
            c = c0 + tl.arange(0, BC)[None, :, None]
            d = load_tile(x, c, local, left, xc, xp, C) - load_rows(table, c, 0, ids, 8, C, N)
            upstream = load_tile(grad, c, local, left, gc, gp, C)
            value = upstream * (d * load_rows(table, c, 1, ids, 8, C, N) + load_rows(table, c, 2, ids, 8, C, N))
            value += d * (0.5 * load_rows(table, c, 3, ids, 8, C, N) * d + load_rows(table, c, 4, ids, 8, C, N))
            d_share += tl.sum(value + load_rows(table, c, 7, ids, 8, C, N), 1)[:, None, :]
        d_share = tl.where(local < left, d_share, 0.0)
        if MASKED:
            d_share = d_share * tl.load(mask + local * mp, mask=local < left, other=0).to(tl.float32)
        if LAYOUT_GRAD:
            d_layout += image * eb + start * ep
            tl.store(d_layout + (ids.to(tl.int64) * en + local * ep), d_share, mask=(ids < ENTITIES) & (local < left))
        if FROM_LOGITS:
            # Counted from that of the leading entity: where its softmax is near 1, its own gradient is the small sum of
            # the others', not what rounding leaves of a difference
            leader = tl.min(tl.where(soft == tl.max(soft, 0)[None, :, :], ids, N), 0)[None, :, :]
            d_share = d_share - tl.sum(tl.where(ids == leader, d_share, 0.0), 0)[None, :, :]
            d_logits = TAU * soft * (d_share - tl.sum(soft * d_share, 0)[None, :, :])
            tl.store(part_bias + (row * N + ids), tl.sum(d_logits, 2)[:, :, None])
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)[None, :, None]
        block = load_tile(x, c, local, left, xc, xp, C)
        d = block - load_rows(table, c, 0, ids, 8, C, N)
        upstream = load_tile(grad, c, local, left, gc, gp, C) - load_rows(table, c, 5, ids, 8, C, N)
        field = load_rows(table, c, 1, ids, 8, C, N) * upstream + load_rows(table, c, 6, ids, 8, C, N)
        field = share * (field + load_rows(table, c, 3, ids, 8, C, N) * d)
        if FROM_LOGITS:
            field += load_filters(weight, c, ids, C, ENTITIES) * d_logits
            block = block - tl.load(origin + c, mask=c < C, other=0.0)
            tl.store(part_weight + ((row * C + c) * N + ids), tl.sum(d_logits * block, 2)[:, :, None], mask=c < C)
        tl.store(dx + (c.to(tl.int64) * dc + local * dp), tl.sum(field, 0)[None, :, :],
                 mask=(c < C) & (local < left))


@triton.jit
def merge_weights_kernel(part_weight, part_bias, origin, d_weight, d_bias, rows, tiles, C: tl.constexpr,
                         ENTITIES: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr):
    """Of one channel: gradients of the filters (n,C) and of the bias (n,)."""
    c = tl.program_id(0)
    ids = tl.arange(0, N)
    weight = tl.zeros([ROWS, N], dtype=tl.float64)
    bias = tl.zeros([ROWS, N], dtype=tl.float64)
    for r0 in range(0, rows, ROWS):
        r = (r0 + tl.arange(0, ROWS))[:, None]
        inside = r < rows
        row = r.to(tl.int64)
        shift = tl.load(part_bias + (row * N + ids[None, :]), mask=inside, other=0.0).to(tl.float64)
        zero = tl.load(origin + (row // tiles * C + c), mask=inside, other=0.0).to(tl.float64)
        w = tl.load(part_weight + ((row * C + c) * N + ids[None, :]), mask=inside, other=0.0).to(tl.float64)
        weight += w + shift * zero
        bias += shift
    tl.store(d_weight + (ids * C + c), tl.sum(weight, 0).to(tl.float32), mask=ids < ENTITIES)
    tl.store(d_bias + ids, tl.sum(bias, 0).to(tl.float32), mask=(ids < ENTITIES) & (c == 0))
