"""What `benchmark.py moto` calls: MoTo, the formula that it stands for, and what the paper compares it with."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from mmtok.ops import moto, moto_from_logits

EPS, TAU = 1e-5, 0.1
DIRECTIONS = ('forward', 'forward + backward')


class Case:
    """One map and the parameters of every method, in turns with and without gradients."""

    def __init__(self, shape: tuple[int, ...], entities: int, dtype: torch.dtype, device: str, seed: int):
        torch.manual_seed(seed)
        channels, of = shape[1], dict(device=device)
        self.x = torch.randn(shape, dtype=dtype, **of)
        self.weight, self.bias = torch.randn(entities, channels, **of), torch.zeros(entities, **of)
        self.layout = self.compute_layout().to(dtype)
        self.beta, self.alpha = torch.ones(entities, channels, **of), torch.zeros(entities, channels, **of)
        self.qkv = torch.randn(3 * channels, channels, dtype=dtype, **of) / channels**0.5
        self.upstream = torch.randn_like(self.x)

    def compute_layout(self):
        return (TAU * torch.einsum('nc,bchw->bnhw', self.weight, self.x.float())).softmax(1)


def formula_loop(x, layout, beta, alpha):
    """The formula as one would type it, one entity after the other."""
    result = 0
    for i in range(layout.shape[1]):
        share = layout[:, i:i + 1]
        mass = share.sum((2, 3), keepdim=True)
        mean = (share * x).sum((2, 3), keepdim=True) / mass
        deviation = ((share * (x - mean) ** 2).sum((2, 3), keepdim=True) / mass).sqrt()
        result = result + ((x - mean) / (deviation + EPS) * beta[i, :, None, None] + alpha[i, :, None, None]) * share
    return result


def formula_broadcast(x, layout, beta, alpha):
    """The formula on (B,n,C,H,W) at once."""
    x, share = x[:, None], layout[:, :, None]
    mass = share.sum((3, 4), keepdim=True)
    mean = (share * x).sum((3, 4), keepdim=True) / mass
    deviation = ((share * (x - mean) ** 2).sum((3, 4), keepdim=True) / mass).sqrt()
    return (((x - mean) / (deviation + EPS) * beta[..., None, None] + alpha[..., None, None]) * share).sum(1)


def attention(x, qkv, fused: bool):
    """Self-attention between the pixels, one head: what the paper's table compares MoTo with."""
    q, k, v = (x.flatten(2).transpose(1, 2) @ qkv.T).chunk(3, -1)  # each (B,H*W,C)
    if fused:
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    else:
        y = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return y.transpose(1, 2).reshape(x.shape)


@dataclass
class Method:
    """A function of the map and of other tensors of a case, which get gradients."""

    function: Callable
    names: tuple[str, ...]
    options: dict = field(default_factory=dict)
    late: bool = False  # after the others: a system that was given back gigabytes is busy with them for a while

    def bind(self, case: Case) -> tuple[Callable, list]:
        """The function without arguments left to give, and its tensors."""
        inputs = [getattr(case, name) for name in ('x', *self.names)]
        return lambda: self.function(*inputs, **self.options), inputs


def instance_norm(x, beta, alpha):
    return F.instance_norm(x, weight=beta[0].to(x.dtype), bias=alpha[0].to(x.dtype))


LAYOUT, LOGITS = ('layout', 'beta', 'alpha'), ('weight', 'bias', 'beta', 'alpha')
# Those of a given layout compute the same, and so do those that compute it from the map
METHODS = {
    'mmtok': Method(moto, LAYOUT, dict(backend='torch')),
    'mmtok, from logits': Method(moto_from_logits, LOGITS, dict(backend='torch')),
    'mmtok triton': Method(moto, LAYOUT, dict(backend='triton')),
    'mmtok triton, from logits': Method(moto_from_logits, LOGITS, dict(backend='triton')),
    'formula, loop': Method(formula_loop, LAYOUT),
    'formula, broadcast': Method(formula_broadcast, LAYOUT),
    'formula, compiled': Method(formula_broadcast, LAYOUT),
    'instance norm': Method(instance_norm, ('beta', 'alpha')),
    'self-attention': Method(attention, ('qkv',), dict(fused=False), late=True),
    'self-attention, fused': Method(attention, ('qkv',), dict(fused=True), late=True),
}
FORMULAS = ('formula, loop', 'formula, broadcast')


def make_call(method: str, direction: str, case: Case) -> Callable[[], None]:
    """One call of a method, with nothing left behind."""
    function, inputs = METHODS[method].bind(case)
    if method.endswith('compiled'):
        function = torch.compile(function, dynamic=False)

    def forward():
        with torch.no_grad():
            function()

    def both():
        for tensor in inputs:
            tensor.requires_grad_()
        torch.autograd.grad(function(), inputs, case.upstream)
        for tensor in inputs:
            tensor.requires_grad_(False)
    return forward if direction == 'forward' else both
