"""Parameters and multiply-adds of the paper's classifiers at 224x224, plain and with MoTo, beside the paper's."""

from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers import set_fused_attn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmtok.errors import ConfigError
from mmtok.registry import MODELS

from .timing import write_csv

CLASSES, SIDE = 1000, 224


@dataclass(frozen=True)
class Row:
    """A classifier of the paper's table: how we build it, and (parameters in M, GFLOPs) there, plain and with MoTo."""

    backbone: dict
    plain: tuple[float, float]
    moto: tuple[float, float]


ROWS = {
    'DeiT-S': Row(dict(type='mmtok.DeiT', arch='small'), (22.1, 4.6), (22.5, 4.8)),
    'DeiT-B': Row(dict(type='mmtok.DeiT', arch='base'), (86.6, 17.6), (86.9, 17.9)),
    'T2T-ViT-14': Row(dict(type='mmtok.T2TViT', arch='14'), (21.5, 5.2), (21.8, 5.4)),
    'PVT-S': Row(dict(type='mmtok.PVT', arch='small'), (24.5, 3.8), (24.7, 4.0)),
    'PVT-M': Row(dict(type='mmtok.PVT', arch='medium'), (44.2, 6.7), (44.5, 6.9)),
    'PVTv2-B2': Row(dict(type='mmtok.PVTv2', arch='b2'), (25.4, 4.0), (25.6, 4.2)),
    'Swin-T': Row(dict(type='mmtok.Swin', arch='tiny', window_rule='classification'), (28.3, 4.5), (28.6, 4.7)),
    'Swin-S': Row(dict(type='mmtok.Swin', arch='small', window_rule='classification'), (49.6, 8.7), (49.9, 8.9)),
}


def add_arguments(parser) -> None:
    parser.add_argument('--model', choices=ROWS, nargs='+', default=list(ROWS), help='which rows')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark/size.csv'), help='CSV, overwritten')
    parser.set_defaults(run=run)


def with_moto(backbone: dict) -> dict:
    """The row's MoTo variant, with the reference backend: counters miss in-place products of the fast one.

    Of the reference they see the layout's logits; moments and modulation, elementwise there, are 4 times as much again,
    0.01 G at most.
    """
    if backbone['type'] == 'mmtok.T2TViT':
        return {**backbone, 'tokenizer': dict(type='mmtok.T2TTokenizer', moto=dict(backend='reference'))}
    return {**backbone, 'tokenizer': dict(type='mmtok.MoToTokenizer', backend='reference')}


def measure(backbone: dict) -> tuple[float, float]:
    """Parameters in millions and multiply-adds in billions of a classifier with 1000 classes, for one image.

    Matrix products and convolutions count, as in the counters of the field; attention is spelt out for them.
    """
    set_fused_attn(False)
    try:
        body = MODELS.build({**backbone, 'classifier': True}).eval()
    finally:
        set_fused_attn(True)
    model = nn.Sequential(body, Last(), nn.Linear(body.out_channels[0], CLASSES))
    counter = FlopCounterMode(display=False)
    with counter:  # with gradients: without, torch's own attention would take a fused path in eval mode
        model(torch.randn(1, 3, SIDE, SIDE))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e9


class Last(nn.Module):
    """The last of a backbone's outputs."""

    def forward(self, outs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return outs[-1]


def run(args) -> None:
    print(f'Classifiers of {CLASSES} classes at {SIDE}x{SIDE}, ours (paper): parameters in M, multiply-adds in G\n')
    print(f'{"":12} {"plain":>26} {"with MoTo":>26} {"MoTo adds":>28}')
    rows = []
    for name in args.model:
        row = ROWS[name]
        try:
            plain, moto = measure(row.backbone), measure(with_moto(row.backbone))
        except ConfigError as error:  # PVT without mmdet
            print(f'{name:12} left out: {error}')
            continue
        added, paper_added = (tuple(m - p for m, p in zip(*pair, strict=True))
                              for pair in ((moto, plain), (row.moto, row.plain)))
        cells = (f'{ours[0]:{form}} ({paper[0]:.1f})  {ours[1]:{form}} ({paper[1]:.1f})' for ours, paper, form in
                 ((plain, row.plain, '.1f'), (moto, row.moto, '.1f'), (added, paper_added, '.3f')))
        print(f'{name:12} {next(cells):>26} {next(cells):>26} {next(cells):>28}')
        rows.append(dict(model=name, params_plain=round(plain[0], 6), params_moto=round(moto[0], 6),
                         gmacs_plain=round(plain[1], 6), gmacs_moto=round(moto[1], 6),
                         paper_params_plain=row.plain[0], paper_params_moto=row.moto[0],
                         paper_gmacs_plain=row.plain[1], paper_gmacs_moto=row.moto[1], torch=torch.__version__))
    write_csv(args.out, rows)
