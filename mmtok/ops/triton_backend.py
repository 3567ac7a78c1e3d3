"""MoTo for CUDA: autograd and torch.compile around the kernels of triton_kernels.py.

Forward reads X twice and writes Y, backward reads X and dY twice and writes dX: 3 and 5 times the bytes of X, plus the
layout where it is given; one from 1x1 logits is computed anew in each pass and never stored. Strides are passed on, so
that NCHW and channels_last both go without copies. Nothing waits for the device and no shape depends on data: CUDA
graphs can capture a call (once the kernels are compiled, so after a warm-up).
"""

import contextlib
import functools
import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import MIN_MASS
from .torch_backend import SUM_ROUNDING, is_dense

try:
    import triton

    from . import triton_kernels as kernels
    VERSION = tuple(int(part) for part in triton.__version__.split('.')[:2])
    PROBLEM = '' if VERSION >= (2, 1) else f'Triton {triton.__version__}, which is older than 2.1'
except Exception as error:  # whatever a missing or broken Triton raises, the other backends work without it
    VERSION, PROBLEM = (0, 0), f'this environment: Triton cannot be imported ({type(error).__name__}: {error})'

# Triton's interpreter runs the kernels on any device; that of Triton 2 wanted a GPU all the same.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1' and VERSION >= (3, 0)
CUSTOM_OPS = hasattr(torch.library, 'custom_op')  # torch 2.4
MAX_ENTITIES = 64
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS_AT_ONCE = 1  # of NCHW: more would only need more registers
SAMPLE = 256  # pixels whose mean is the origin of the logits, which need not be exact
MERGED = 2048  # partial sums that a merging program adds at a time


def why_not(x: Tensor, others: tuple[Tensor | None, ...], entities: int, statistics: str) -> str:
    """What of a call this backend does not cover, the tensors beside x being `others`; '' where it covers all."""
    if PROBLEM:
        return PROBLEM
    if statistics != 'region':
        return f'statistics={statistics!r}'
    if not all(t is None or t.dtype in DTYPES for t in (x, *others)):
        return 'other dtypes than float32, float16 and bfloat16'
    if entities > MAX_ENTITIES:
        return f'more than {MAX_ENTITIES} entities'
    if INTERPRETED:
        return ''
    if not x.is_cuda:
        return f'tensors on the {x.device.type}'
    return '' if CUSTOM_OPS and torch.compiler.is_compiling() else device_problem(x.device, x.dtype)


@functools.cache
def device_problem(device: torch.device, dtype: torch.dtype) -> str:
    if torch.version.hip:
        return 'AMD GPUs'
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 0) or (dtype == torch.bfloat16 and capability < (8, 0)):
        return f'{dtype} on a GPU of compute capability {capability[0]}.{capability[1]}'
    return ''


def padded(entities: int) -> int:
    """What the kernels take for n."""
    return max(2, 1 << (entities - 1).bit_length())


def empty_state(x: Tensor, entities: int) -> list[Tensor]:
    """What forward leaves for backward: origin, offset, mass, lo, deviation, table; see the kernels."""
    batch, channels, n = x.shape[0], x.shape[1], padded(entities)
    single = dict(dtype=torch.float32, device=x.device)
    double = dict(dtype=torch.float64, device=x.device)
    return [torch.empty(batch, channels, **single), torch.empty(batch, n, **single), torch.empty(batch, n, **double),
            torch.empty(batch, channels, n, **double), torch.empty(batch, channels, n, **double),
            torch.empty(batch, channels, 3, n, **single)]


@dataclass
class Launcher:
    """One call: its inputs flattened to (B,*,P) views, and how the kernels walk over them."""

    x: Tensor
    layout: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    entities: int
    tau: float
    hard: bool

    def __post_init__(self):
        self.batch, self.channels, self.pixels = self.x.shape
        self.padded = padded(self.entities)
        self.merged_rows = max(1, MERGED // self.padded)
        # 16 bytes of neighbouring channels at a time where they lie side by side; not with Triton 2, whose compiler
        # mixes up such tensors
        self.block = CHANNELS_AT_ONCE
        if self.x.stride(1) == 1 != self.x.stride(2) and VERSION >= (3, 0):
            self.block = min(16 // self.x.element_size(), triton.next_power_of_2(self.channels), 64 // self.padded)
        # Triton lets each thread read a whole block of a table only if that has fewer elements than there are threads;
        # it would spread a larger one over the threads, and all that is computed from it, sums across them included.
        self.warps = 1 if self.padded * self.block < 32 else 4
        self.flags = dict(TAU=self.tau, C=self.channels, ENTITIES=self.entities, N=self.padded,
                          FROM_LOGITS=self.layout is None, HARD=self.hard, MASKED=self.mask is not None)

    def tiles(self, shares: int) -> tuple[int, int]:
        """Pixels of a tile, and tiles of an image, where a thread keeps so many shares (entities x pixels).

        A block of channels needs registers, too: the numbers are those with which the compiler spills none.
        """
        size = 32 * self.warps * max(1, shares // (max(1, self.block // 2) * self.padded))
        return size, triton.cdiv(self.pixels, size)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def map_arguments(self, t: Tensor) -> tuple:
        """A tensor (B,*,P) and its strides."""
        return t, *t.stride()

    def mask_arguments(self) -> tuple:
        """The mask and its strides. A kernel wants a tensor also for what it will not look at: X stands in."""
        if self.mask is None:
            return self.x, 0, 0
        return self.mask, self.mask.stride(0), self.mask.stride(2)

    def layout_arguments(self, origin: Tensor, offset: Tensor) -> tuple:
        """What `shares_of` needs, with the strides between images."""
        layout = self.x if self.layout is None else self.layout
        weight = self.x if self.weight is None else self.weight
        return (*self.map_arguments(self.x), weight, origin, offset, *self.map_arguments(layout),
                *self.mask_arguments())

    def prepare(self, origin: Tensor, offset: Tensor) -> None:
        weight = self.x if self.weight is None else self.weight
        kernels.prepare_kernel[self.batch,](
            *self.map_arguments(self.x), weight, weight if self.bias is None else self.bias, *self.mask_arguments(),
            origin, offset, self.pixels, SAMPLE=SAMPLE, BC=min(16, triton.next_power_of_2(self.channels)),
            HAS_BIAS=self.bias is not None, **{k: v for k, v in self.flags.items() if k != 'HARD'})

    def forward(self, beta: Tensor, alpha: Tensor, eps: float, out: Tensor) -> list[Tensor]:
        """Fill `out (B,C,P)`. Returns the state that backward needs."""
        state = origin, offset, mass, lo, deviation, table = empty_state(self.x, self.entities)
        self.prepare(origin, offset)
        size, tiles = self.tiles(shares=64)
        shared = self.layout_arguments(origin, offset)
        part = self.empty(self.batch * tiles, self.channels, 3, self.padded)
        part_mass = self.empty(self.batch * tiles, self.padded)
        options = dict(T=size, BC=self.block, num_warps=self.warps, **self.flags)
        kernels.moments_kernel[self.batch * tiles,](*shared, part, part_mass, self.pixels, tiles, **options)

        kernels.merge_moments_kernel[self.batch, self.channels](
            part, part_mass, beta, alpha, mass, lo, deviation, table, tiles, eps, MIN_MASS, SUM_ROUNDING,
            C=self.channels, ENTITIES=self.entities, N=self.padded, ROWS=self.merged_rows, num_warps=8)

        kernels.modulate_kernel[self.batch * tiles,](*shared, table, *self.map_arguments(out), self.pixels, tiles,
                                                     **options)
        return state

    def backward(self, grad: Tensor, state: list[Tensor], beta: Tensor, alpha: Tensor, eps: float,
                 grad_x: Tensor | None, grad_layout: Tensor | None) -> list[Tensor | None]:
        """Fill `grad_x` and `grad_layout` if given; returns the gradients of weight, bias, beta and alpha."""
        origin, offset, mass, lo, deviation, forward_table = state
        size, tiles = self.tiles(shares=64)
        shared = self.layout_arguments(origin, offset)
        part = self.empty(self.batch * tiles, self.channels, 3, self.padded)
        part_mass = self.empty(self.batch * tiles, self.padded)
        kernels.grad_moments_kernel[self.batch * tiles,](
            *shared, forward_table, *self.map_arguments(grad), part, part_mass, self.pixels, tiles, T=size,
            BC=self.block, num_warps=self.warps, **self.flags)

        sums = self.empty(2, self.batch, self.padded, self.channels)
        table = self.empty(self.batch, self.channels, 8, self.padded)
        kernels.merge_grads_kernel[self.batch, self.channels](
            part, part_mass, mass, lo, deviation, forward_table, beta, alpha, sums[0], sums[1], table, tiles, eps,
            MIN_MASS, C=self.channels, ENTITIES=self.entities, N=self.padded, ROWS=self.merged_rows, num_warps=8)
        grad_beta, grad_alpha = sums.sum(1)[:, :self.entities]  # each (n,C)
        if grad_x is None:
            return [None, None, grad_beta, grad_alpha]

        size, tiles = self.tiles(shares=32)
        from_logits = self.layout is None
        rows = self.batch * tiles
        part_weight = self.empty(rows, self.channels, self.padded) if from_logits else part
        part_bias = self.empty(rows, self.padded) if from_logits else part
        d_layout = grad_x if grad_layout is None else grad_layout
        kernels.grad_input_kernel[rows,](
            *shared, table, *self.map_arguments(grad), *self.map_arguments(grad_x), *self.map_arguments(d_layout),
            part_weight, part_bias, self.pixels, tiles, T=size, BC=self.block, num_warps=self.warps,
            LAYOUT_GRAD=grad_layout is not None, **self.flags)
        if not from_logits:
            return [None, None, grad_beta, grad_alpha]
        grad_weight, grad_bias = self.empty(self.entities, self.channels), self.empty(self.entities)
        kernels.merge_weights_kernel[self.channels,](
            part_weight, part_bias, origin, grad_weight, grad_bias, rows, tiles, C=self.channels,
            ENTITIES=self.entities, N=self.padded, ROWS=self.merged_rows, num_warps=8)
        return [grad_weight, grad_bias if self.bias is not None else None, grad_beta, grad_alpha]


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def launcher(x, layout, weight, bias, mask, entities, tau, hard) -> Launcher:
    if mask is not None:
        mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask.float()
    return Launcher(x.flatten(2), None if layout is None else layout.flatten(2),
                    None if weight is None else weight.contiguous(), None if bias is None else bias.contiguous(),
                    None if mask is None else mask.flatten(2), entities, tau, hard)


def run_forward(x, layout, weight, bias, beta, alpha, mask, tau, hard, eps) -> list[Tensor]:
    """The output, then what `run_backward` needs of it."""
    out = torch.empty_like(x)
    with on_device(x):
        call = launcher(x, layout, weight, bias, mask, len(beta), tau, hard)
        return [out, *call.forward(beta.contiguous(), alpha.contiguous(), eps, out.flatten(2))]


def run_backward(grad, state, x, layout, weight, bias, beta, alpha, mask, tau, hard, eps, need_x,
                 need_layout) -> list[Tensor | None]:
    """Gradients of x, layout, weight, bias, beta and alpha."""
    grad_x = torch.empty_like(x) if need_x else None
    grad_layout = layout.new_empty(layout.shape) if need_layout else None
    with on_device(x):
        call = launcher(x, layout, weight, bias, mask, len(beta), tau, hard)
        rest = call.backward(grad.flatten(2), state, beta.contiguous(), alpha.contiguous(), eps,
                             None if grad_x is None else grad_x.flatten(2),
                             None if grad_layout is None else grad_layout.flatten(2))
    return [grad_x, grad_layout, *(None if g is None else g.to(p.dtype)
                                   for g, p in zip(rest, (weight, bias, beta, alpha), strict=True))]


class MoToFunction(torch.autograd.Function):
    """Keeps the inputs and statistics of (B,n,C), nothing else."""

    @staticmethod
    def forward(ctx, *arguments):
        *tensors, tau, hard, eps = arguments
        ctx.options = tau, hard, eps
        out, *state = run_forward(*arguments)
        ctx.save_for_backward(*tensors, *state)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors  # once: activation checkpointing computes them anew
        tensors, state = saved[:7], saved[7:]
        need = any(ctx.needs_input_grad[:4]), ctx.needs_input_grad[1]
        return *run_backward(grad, state, *tensors, *ctx.options, *need), None, None, None, None


if CUSTOM_OPS:
    # The same for torch.compile: operators of which it knows the shapes and does not look inside.

    @torch.library.custom_op('mmtok::moto', mutates_args=())
    def moto_op(x: Tensor, layout: Tensor | None, weight: Tensor | None, bias: Tensor | None, beta: Tensor,
                alpha: Tensor, mask: Tensor | None, tau: float, hard: bool, eps: float) -> list[Tensor]:
        return run_forward(x, layout, weight, bias, beta, alpha, mask, tau, hard, eps)

    @moto_op.register_fake
    def _(x, layout, weight, bias, beta, *rest):
        return [torch.empty_like(x), *empty_state(x, len(beta))]

    @torch.library.custom_op('mmtok::moto_backward', mutates_args=())
    def moto_backward_op(grad: Tensor, state: list[Tensor], x: Tensor, layout: Tensor | None, weight: Tensor | None,
                         bias: Tensor | None, beta: Tensor, alpha: Tensor, mask: Tensor | None, tau: float, hard: bool,
                         eps: float, need_x: bool, need_layout: bool) -> list[Tensor]:
        grads = run_backward(grad, state, x, layout, weight, bias, beta, alpha, mask, tau, hard, eps, need_x,
                             need_layout)
        # An operator cannot return None, nor two views of one tensor, as the gradients of beta and alpha are.
        return [x.new_empty(0) if g is None else g.clone() if i > 3 else g for i, g in enumerate(grads)]

    @moto_backward_op.register_fake
    def _(grad, state, x, layout, weight, bias, beta, alpha, mask, tau, hard, eps, need_x, need_layout):
        like = [torch.empty_like(x) if need_x else None, layout.new_empty(layout.shape) if need_layout else None,
                *(p.new_empty(p.shape) if p is not None and need_x else None for p in (weight, bias)),
                *(p.new_empty(p.shape) for p in (beta, alpha))]
        return [x.new_empty(0) if g is None else g for g in like]

    def keep(ctx, inputs, output):
        ctx.options = inputs[7:]
        ctx.save_for_backward(*inputs[:7], *output[1:])

    def moto_op_backward(ctx, grads):
        saved = ctx.saved_tensors  # once: activation checkpointing computes them anew
        tensors, state = saved[:7], saved[7:]
        need = any(ctx.needs_input_grad[:4]), ctx.needs_input_grad[1]
        grads = moto_backward_op(grads[0], state, *tensors, *ctx.options, *need)
        return *(g if wanted else None for g, wanted in zip(grads, ctx.needs_input_grad[:6], strict=True)), *[None] * 4

    moto_op.register_autograd(moto_op_backward, setup_context=keep)


def moto_triton(x: Tensor, layout: Tensor | None, weight: Tensor | None, bias: Tensor | None, beta: Tensor,
                alpha: Tensor, mask: Tensor | None, tau: float, partition: str, eps: float) -> Tensor:
    """See `mmtok.ops.moto` (layout given) and `mmtok.ops.moto_from_logits` (weight given)."""
    if not is_dense(x):
        x = x.contiguous()
    arguments = x, layout, weight, bias, beta, alpha, mask, tau, partition == 'hard', eps
    if not CUSTOM_OPS:
        return call_function(*arguments)
    return moto_op(*arguments)[0] if torch.compiler.is_compiling() else MoToFunction.apply(*arguments)


@torch.compiler.disable  # for a torch without custom operators: a compiled model calls it as it stands
def call_function(*arguments) -> Tensor:
    return MoToFunction.apply(*arguments)
