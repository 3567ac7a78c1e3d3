"""Backbones that give feature maps for a head: ours, plain and with MoTo, against timm's and mm*'s."""

import csv
from collections.abc import Callable
from importlib.util import find_spec

import timm
import torch
from torch import Tensor, nn

from mmtok.backbones import PVT, DeiT, PVTv2, Swin, T2TViT

from . import memory, timing
from .timing import keep_pages, provenance, spread, time_interleaved, write_csv

BLOCKS = (2, 5, 8, 11)  # the outputs of mmseg's DeiT recipe; pyramids give their four stages
MOTO = dict(type='mmtok.MoToTokenizer')
STAGES = (0, 1, 2, 3)
OPTIONAL = 'mmdet', 'mmseg', 'mmpretrain'
DIRECTIONS = ('forward', 'forward + backward')


class TimmFeatures(nn.Module):
    """A timm model as a user takes it for feature maps; no gradients reach what the maps do not need."""

    def __init__(self, name: str, indices: tuple[int, ...], **options):
        super().__init__()
        self.body, self.indices = timm.create_model(name, num_classes=0, **options), list(indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.body.forward_intermediates(x, indices=self.indices, intermediates_only=True))


def mmseg_vit(size: int) -> nn.Module:
    from mmseg.models.backbones import VisionTransformer
    return VisionTransformer(img_size=size, patch_size=16, embed_dims=384, num_layers=12, num_heads=6,
                             out_indices=BLOCKS)


def t2t_vit(attention: str, **moto) -> nn.Module:
    return T2TViT('14', out_indices=(13, ), final_norm=True,
                  tokenizer=dict(type='mmtok.T2TTokenizer', attention=attention, **moto))


def mmpretrain_t2t_vit() -> nn.Module:
    from mmpretrain.models.backbones import T2T_ViT
    return T2T_ViT(out_type='featmap', layer_cfgs=dict(num_heads=6, feedforward_channels=3 * 384))


def mmdet_pvt(kind: str, **options) -> nn.Module:
    from mmdet.models.backbones import pvt
    return getattr(pvt, kind)(drop_path_rate=0.0, num_layers=[3, 4, 6, 3], **options)


def peer_swin(package: str) -> nn.Module:
    module = __import__(f'{package}.models.backbones.swin', fromlist=['SwinTransformer'])
    return module.SwinTransformer(drop_path_rate=0.0)


# trunk -> method -> image size -> backbone; what is not installed is left out
TRUNKS: dict[str, dict[str, Callable[[int], nn.Module]]] = {
    'DeiT-S': {
        'mmtok': lambda size: DeiT('small', img_size=size, out_indices=BLOCKS),
        'mmtok + MoTo': lambda size: DeiT('small', img_size=size, out_indices=BLOCKS, tokenizer=MOTO),
        'timm': lambda size: TimmFeatures('deit_small_patch16_224', BLOCKS, img_size=size),
        'mmseg': mmseg_vit,
    },
    'Swin-T': {
        'mmtok': lambda size: Swin('tiny', drop_path_rate=0.0),
        'mmtok + MoTo': lambda size: Swin('tiny', drop_path_rate=0.0, tokenizer=MOTO),
        'timm': lambda size: TimmFeatures('swin_tiny_patch4_window7_224', STAGES, img_size=size, drop_path_rate=0.0),
        'mmdet': lambda size: peer_swin('mmdet'),
        'mmseg': lambda size: peer_swin('mmseg'),
    },
    'PVTv2-B2': {
        'mmtok': lambda size: PVTv2('b2', drop_path_rate=0.0),
        'mmtok + MoTo': lambda size: PVTv2('b2', drop_path_rate=0.0, tokenizer=MOTO),
        'timm': lambda size: TimmFeatures('pvt_v2_b2', STAGES, drop_path_rate=0.0),
        'mmdet': lambda size: mmdet_pvt('PyramidVisionTransformerV2'),
    },
    'PVT-S': {
        'mmtok': lambda size: PVT('small', drop_path_rate=0.0),
        'mmtok + MoTo': lambda size: PVT('small', drop_path_rate=0.0, tokenizer=MOTO),
        'mmdet': lambda size: mmdet_pvt('PyramidVisionTransformer'),
    },
    'T2T-ViT-14': {
        'mmtok': lambda size: t2t_vit('performer'),
        'mmtok + MoTo': lambda size: t2t_vit('performer', moto=dict()),
    },
    'T2T-ViT_t-14': {
        'mmtok': lambda size: t2t_vit('transformer'),
        'mmtok + MoTo': lambda size: t2t_vit('transformer', moto=dict()),
        'mmpretrain': lambda size: mmpretrain_t2t_vit(),
    },
}


def add_arguments(parser) -> None:
    parser.add_argument('--trunk', choices=TRUNKS, nargs='+', default=list(TRUNKS), help='which to measure')
    parser.add_argument('--size', type=int, nargs='+', default=[224, 512],
                        help='sides of the square image; what is no multiple of 32 is padded by some and not by others')
    parser.add_argument('--batch', type=int, default=1, help='images')
    timing.add_arguments(parser, repeats=15, name='backbones')
    parser.add_argument('--append', action='store_true', help='keep the rows of other trunks and sizes in the CSV')
    parser.set_defaults(run=run)


def methods_of(trunk: str) -> dict[str, Callable[[int], nn.Module]]:
    return {name: make for name, make in TRUNKS[trunk].items()
            if name not in OPTIONAL or find_spec(name)}


def make_call(make: Callable[[int], nn.Module], direction: str, size: int, batch: int, seed: int) -> Callable:
    torch.manual_seed(seed)
    backbone, x = make(size), torch.randn(batch, 3, size, size)
    if direction == 'forward':
        backbone.eval()

        def call():
            with torch.no_grad():
                backbone(x)
    else:
        backbone.train()

        def call():
            sum(out.mean() for out in backbone(x)).backward()
            backbone.zero_grad()  # so that gradients count as memory of a call
    return call


def print_table(trunk: str, size: int, direction: str, args) -> list[dict]:
    """One block of the report; rows for the CSV. Ratios are medians over rounds of ours / theirs in the same round."""
    methods = methods_of(trunk)
    calls = {name: make_call(make, direction, size, args.batch, args.seed) for name, make in methods.items()}
    times = time_interleaved(calls, args.repeats)
    peak = {name: memory.added_peak(call, 'cpu') for name, call in calls.items()}
    print(f'\n{trunk} at {size}x{size}, {direction}\n  {"":14} {"ms":>8} {"20 %":>8} {"80 %":>8} {"MiB":>7}   '
          'time of mmtok / time of this, 20 %, 80 %')
    rows = []
    for name, values in times.items():
        median, low, high = spread(values)
        ratio = spread(times['mmtok'] / values)
        print(f'  {name:14} {median:8.1f} {low:8.1f} {high:8.1f} {peak[name]:7.0f}   {ratio[0]:9.3f} {ratio[1]:7.3f} '
              f'{ratio[2]:6.3f}')
        rows.append(dict(trunk=trunk, size=size, batch=args.batch, direction=direction, method=name,
                         ms_median=round(median, 2), ms_p20=round(low, 2), ms_p80=round(high, 2),
                         peak_mib=round(peak[name], 1), mmtok_over_it=round(ratio[0], 4),
                         repeats=args.repeats, **provenance(args.seed)))
    added = spread(times['mmtok + MoTo'] / times['mmtok'])[0] - 1
    print(f'  MoTo adds {added:.1%} to the plain backbone')
    return rows


def run(args) -> None:
    keep_pages()
    print(f'Feature maps from a batch of {args.batch}, float32, {torch.get_num_threads()} thread(s), torch '
          f'{torch.__version__}. Medians of {args.repeats} interleaved rounds; MiB is what a call adds.')
    rows = [row for trunk in args.trunk for size in args.size for direction in DIRECTIONS
            for row in print_table(trunk, size, direction, args)]
    if args.append and args.out.exists():
        measured = {(row['trunk'], str(row['size'])) for row in rows}
        with args.out.open() as file:
            rows = [row for row in csv.DictReader(file) if (row['trunk'], row['size']) not in measured] + rows
    write_csv(args.out, rows)
