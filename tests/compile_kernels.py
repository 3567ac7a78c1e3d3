"""Compile the Triton kernels for a GPU that need not be here, and say what each costs.

    python tests/compile_kernels.py --capability 90    # registers, spilled bytes, shared memory of each kernel, as CSV

Triton's interpreter accepts what its compiler refuses, such as a variable whose type changes in a loop. Here the
backend's own calls are compiled, and only the launches are replaced.
"""

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ.pop('TRITON_INTERPRET', None)  # read on the import of triton

import torch
import triton
import triton.compiler.compiler as compiler
from triton.runtime.jit import JITFunction

from mmtok.ops import triton_backend

OLD = triton_backend.VERSION < (3, 0)
TYPES = {torch.float32: '*fp32', torch.float64: '*fp64', torch.float16: '*fp16', torch.bfloat16: '*bf16',
         torch.uint8: '*u8'}
F16, BF16 = torch.float16, torch.bfloat16
# (B, C, H, W, n) and options
CASES = {
    'NCHW': ((1, 16, 1024, 1024, 8), {}),
    'NCHW, bfloat16, hard, mask': ((8, 64, 64, 64, 8), dict(dtype=BF16, hard=True, masked=True)),
    'NCHW, wide': ((64, 384, 14, 14, 8), {}),
    'NCHW, layout given, mask': ((1, 16, 512, 512, 8), dict(given=True, masked=True)),
    'NCHW, 20 entities': ((1, 16, 64, 64, 20), {}),
    'NCHW, 64 entities': ((1, 16, 64, 64, 64), {}),
    'channels_last': ((1, 16, 1024, 1024, 8), dict(last=True)),
    'channels_last, float16': ((1, 16, 1024, 1024, 8), dict(dtype=F16, last=True)),
}


class Driver:
    """What Triton 3 asks of a GPU in order to compile for it."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget
        self.target = GPUTarget('cuda', capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0


def compile_old(function, values: dict, capability: int):
    """Triton 2 takes types and constants by the position of an argument."""
    signature, constants, divisible, ones = {}, {}, [], []
    for i, name in enumerate(function.arg_names):
        value = values[name]
        if i in function.constexprs:
            constants[i] = value
        elif isinstance(value, torch.Tensor):
            signature[i] = TYPES[value.dtype]
            divisible += [i] if value.data_ptr() % 16 == 0 else []
        elif isinstance(value, float):
            signature[i] = 'fp32'
        else:
            signature[i] = 'i32' if value < 2**31 else 'i64'
            ones += [i] if value == 1 else []
            divisible += [i] if value % 16 == 0 else []
    compiler.make_stub = lambda *a, **k: None  # a launcher, which is linked with the driver
    compiler.CompiledKernel = lambda fn, stub, metadata, asm: SimpleNamespace(**metadata, asm=asm)
    config = compiler.instance_descriptor(divisible_by_16=set(divisible), equal_to_1=set(ones))
    kernel = compiler.compile(function, signature=signature, constants=constants | dict.fromkeys(ones, 1),
                              configs=[config], num_warps=values.get('num_warps', 4), num_stages=3, cc=capability)
    return kernel.asm['ptx'], kernel.num_warps, kernel.shared


def replace_launches(capability: int, launch: Callable) -> None:
    """From now on a launch compiles for this capability and calls launch(name, ptx, warps, shared)."""
    original = None if OLD else JITFunction.run

    def run(self, *arguments, grid, warmup=False, **options):
        values = dict(zip(self.arg_names, arguments, strict=False)) | options
        if OLD:
            compiled = compile_old(self, values, capability)
        else:
            kernel = original(self, *arguments, grid=grid, warmup=True, **options)
            compiled = kernel.asm['ptx'], kernel.metadata.num_warps, kernel.metadata.shared
        launch(self.fn.__name__, *compiled)

    if OLD:
        JITFunction.__getitem__ = lambda self, grid: lambda *a, **k: run(self, *a, grid=grid, **k)
    else:
        triton.runtime.driver.set_active(Driver(capability))
        compiler.CompiledKernel._init_handles = lambda self: None
        JITFunction.run = run


def assemble(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills, by the ptxas that comes with Triton."""
    ptxas = next(Path(triton.__file__).parent.glob('**/bin/ptxas'))
    architecture = re.search(r'^\.target (sm_\w+)', ptx, re.M)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / 'kernel.ptx'
        source.write_text(ptx)
        run = subprocess.run([ptxas, '-v', f'--gpu-name={architecture}', source, '-o', f'{folder}/kernel.cubin'],
                             text=True, capture_output=True, check=True)
    spilled = max(map(int, re.search(r'(\d+) bytes spill stores, (\d+) bytes spill loads', run.stderr).groups()))
    return int(re.search(r'Used (\d+) registers', run.stderr)[1]), spilled


def call(shape, dtype=torch.float32, last=False, given=False, hard=False, masked=False) -> None:
    """Forward and backward of the backend; nothing is computed."""
    batch, channels, height, width, n = shape
    x = torch.empty(batch, channels, height, width, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    layout = torch.empty(batch, n, height, width, dtype=dtype) if given else None
    weight, bias = (None, None) if given else (torch.empty(n, channels), torch.empty(n))
    mask = torch.empty(batch, 1, height, width, dtype=torch.bool) if masked else None
    inputs = x, layout, weight, bias, torch.empty(n, channels), torch.empty(n, channels)
    options = mask, 0.5, hard, 1e-5
    _, *state = triton_backend.run_forward(*inputs, *options)
    triton_backend.run_backward(torch.empty_like(x), state, *inputs, *options, True, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--capability', type=int, default=90, help='80 for A100, 90 for H100')
    parser.add_argument('--case', nargs='+', choices=CASES, default=list(CASES), help='which calls; all by default')
    args = parser.parse_args()
    print('triton;capability;case;kernel;warps;registers;spilled_bytes;shared_bytes')
    replace_launches(args.capability, lambda name, ptx, warps, shared: print(
        triton.__version__, args.capability, case, name, warps, *assemble(ptx), shared, sep=';', flush=True))
    for case in args.case:
        shape, options = CASES[case]
        call(shape, **options)


if __name__ == '__main__':
    main()
