"""MoTo on one feature map: the operator against the formula in plain PyTorch, a loop over entities or broadcast."""


import torch

from mmtok.ops import moto

from . import memory, timing
from .timing import provenance, spread, time_interleaved, write_csv

EPS = 1e-5


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


METHODS = {'mmtok': moto, 'formula, loop': formula_loop, 'formula, broadcast': formula_broadcast}
DIRECTIONS = ('forward', 'forward + backward')


def add_arguments(parser) -> None:
    parser.add_argument('--size', type=int, default=1024, help='height and width')
    parser.add_argument('--channels', type=int, default=16, help='of the map')
    parser.add_argument('--entities', type=int, default=8, help='semantic entities')
    timing.add_arguments(parser, repeats=7, name='moto')
    memory.add_argument(parser)
    parser.set_defaults(run=run)


def make_inputs(args):
    torch.manual_seed(args.seed)
    x = torch.randn(1, args.channels, args.size, args.size, requires_grad=True)
    layout = torch.randn(1, args.entities, args.size, args.size).softmax(1).requires_grad_()
    beta = torch.ones(args.entities, args.channels, requires_grad=True)
    alpha = torch.zeros(args.entities, args.channels, requires_grad=True)
    return (x, layout, beta, alpha), torch.randn_like(x)


def make_call(method: str, direction: str, inputs, upstream):
    function = METHODS[method]
    if direction == 'forward':
        def call():
            with torch.no_grad():
                function(*inputs)
    else:
        def call():
            torch.autograd.grad(function(*inputs), inputs, upstream)
    return call


def ratio(a: float, b: float) -> str:
    return f'{a / b:6.1f} x' if b else '     - '  # a map too small to show in the resident set


def run(args) -> None:
    if args.memory_of:
        small = make_inputs(type(args)(**{**vars(args), 'size': 16}))
        memory.print_added_peak(make_call(*args.memory_of, *small), make_call(*args.memory_of, *make_inputs(args)))
        return
    inputs, upstream = make_inputs(args)
    shape = f'{args.channels}x{args.size}x{args.size}, n = {args.entities}'
    megabytes = inputs[0].numel() * 4 / 2**20
    print(f'MoTo on {shape}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}; '
          f'the map alone is {megabytes:.0f} MiB. Medians of {args.repeats} interleaved rounds.')
    rows = []
    for direction in DIRECTIONS:
        times = time_interleaved({name: make_call(name, direction, inputs, upstream) for name in METHODS},
                                 args.repeats)
        best = min(spread(values)[0] for name, values in times.items() if name != 'mmtok')
        ours = spread(times['mmtok'])[0]
        print(f'\n{direction:20} {"ms":>8} {"20 %":>8} {"80 %":>8} {"MiB":>8}   against mmtok: time, memory')
        options = {name: getattr(args, name) for name in ('size', 'channels', 'entities', 'seed')}
        peak = {name: memory.measure_added_peak('moto', options, name, direction) for name in METHODS}
        for name, values in times.items():
            median, low, high = spread(values)
            print(f'  {name:18} {median:8.1f} {low:8.1f} {high:8.1f} {peak[name]:8.0f}   '
                  f'{ratio(median, ours)} {ratio(peak[name], peak["mmtok"])}')
            rows.append(dict(method=name, direction=direction, shape=shape, ms_median=round(median, 2),
                             ms_p20=round(low, 2), ms_p80=round(high, 2), peak_mib=round(peak[name], 1),
                             repeats=args.repeats, **provenance(args.seed)))
        print(f'  faster than the faster formula: {ratio(best, ours)}; '
              f'less memory than the broadcast form: {ratio(peak["formula, broadcast"], peak["mmtok"])}')
    write_csv(args.out, rows)
