"""An iteration of training of each framework: plain against MoTo, TokenProp and both, by our configs as they stand.

Forward, losses, backward and optimizer step of the model that the config describes, on a batch made up in memory; the
variants take turns. In a batch of a detector the images differ in size, so that it is padded. A detector's heads work
on what is proposed to them: so that it is as much in each variant and round, all get what the plain model proposed in
its first iteration, and each iteration starts with the same random numbers. (Cascade's later stages get what a model's
own heads make of it, which differs by a few regions.) Beside TokenProp's overhead stands the paper's, which is of
ImageNet classifiers.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmtok.engine.preflight import check_amp
from mmtok.errors import ConfigError
from mmtok.registry import MODELS
from mmtok.tokenprop.hook import attach

from . import memory, timing
from .timing import keep_pages, provenance, spread, time_interleaved, write_csv

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
VARIANTS = {'plain': '', 'MoTo': '_moto', 'TokenProp': '_tokenprop', 'both': '_moto-tokenprop'}
# framework -> its config, with the variant's name to be filled in
FRAMEWORKS = {
    'classifier-deit-s': 'imagenet/deit-s{}_8xb128-300e_in1k.py',
    'classifier-swin-t': 'imagenet/swin-t{}_8xb128-300e_in1k.py',
    'upernet-deit-s': 'upernet/upernet_deit-s{}_8xb2-160k_ade20k-512x512.py',
    'upernet-swin-t': 'upernet/upernet_swin-t{}_8xb2-160k_ade20k-512x512.py',
    'retinanet-pvtv2-b1': 'retinanet/retinanet_pvtv2-b1{}_fpn_1x_coco.py',
    'mask-rcnn-pvtv2-b1': 'mask_rcnn/mask-rcnn_pvtv2-b1{}_fpn_1x_coco.py',
    'mask-rcnn-swin-t': 'mask_rcnn/mask-rcnn_swin-t{}_fpn_ms-crop-1x_coco.py',
    'cascade-mask-rcnn-swin-t': 'cascade_rcnn/cascade-mask-rcnn_swin-t{}_giou-4conv1f_fpn_ms-crop-1x_coco.py',
}
PAPER = '3.5 to 6.7 %'  # TokenProp's overhead, DeiT-B to Swin-T


def add_arguments(parser) -> None:
    parser.add_argument('--framework', choices=FRAMEWORKS, nargs='+', default=list(FRAMEWORKS), help='which to measure')
    parser.add_argument('--variants', choices=list(VARIANTS)[1:], nargs='+', default=list(VARIANTS)[1:],
                        help='which to compare with plain')
    parser.add_argument('--size', type=timing.positive, nargs=2, default=[512, 512], metavar=('HEIGHT', 'WIDTH'),
                        help='of the images of segmentors and detectors; classifiers have 224x224')
    parser.add_argument('--batch', type=timing.positive, default=2, help='images; classifiers have 8 times as many')
    parser.add_argument('--device', type=timing.device, default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='where to train')
    parser.add_argument('--amp', action='store_true', help='in mixed precision, on a GPU')
    timing.add_arguments(parser, repeats=7, name='training')
    parser.set_defaults(run=run)


def make_batch(scope: str, model_cfg: dict, size: list[int], batch: int):
    """What a data loader would give the model: images, with labels, a semantic map or 8 objects each.

    Crops of a segmentor and a classifier's images have the whole size, of a detector's every other one is narrower.
    """
    rng = np.random.RandomState(0)
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs
        classes = 80
        shapes = [(3, size[0], size[1] * (4 - i % 2) // 4) for i in range(batch)]
        return demo_mm_inputs(batch, shapes, [8] * batch, classes, with_mask='roi_head' in model_cfg)
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample
        samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.from_numpy(rng.randint(0, 150, (1, *size)))))
                   for _ in range(batch)]
    else:
        size, batch = [224, 224], 8 * batch
        samples = torch.from_numpy(rng.randint(0, 1000, batch))
    images = torch.from_numpy(rng.randint(0, 256, (batch, 3, *size), dtype=np.uint8))
    return [images, samples] if scope == 'mmengine' else dict(inputs=list(images), data_samples=samples)


def share_proposals(model: torch.nn.Module, proposals: list) -> None:
    """The heads of this detector get what the first one proposed that ran; what it proposes itself is left aside."""
    predict = model.rpn_head.predict_by_feat

    def predict_and_exchange(*args, **kwargs) -> list:
        own = predict(*args, **kwargs)
        if not proposals:
            proposals.extend(own)
        return copy.deepcopy(proposals)
    model.rpn_head.predict_by_feat = predict_and_exchange


def make_step(framework: str, variant: str, args, proposals: list) -> Callable:
    """One iteration, as mmengine's loop calls it; all variants share a list of `proposals`."""
    cfg = Config.fromfile(CONFIGS / FRAMEWORKS[framework].format(VARIANTS[variant]))
    cfg.model.backbone.init_cfg = None
    preprocessor = cfg.model.get('data_preprocessor')
    if cfg.default_scope == 'mmseg':
        preprocessor.size = cfg.model.backbone.img_size = tuple(args.size)
        if cfg.model.backbone.type != 'mmtok.DeiT':
            del cfg.model.backbone.img_size
    torch.manual_seed(args.seed)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(args.device).train()
        model.init_weights()
        if args.amp:
            cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    attach(model)
    if hasattr(model, 'rpn_head'):
        share_proposals(model, proposals)
    data = make_batch(cfg.default_scope, cfg.model, args.size, args.batch)

    def step() -> None:
        model.train_step(copy.deepcopy(data), wrapper)  # preprocessors pad masks in place
    return step


def measure(framework: str, args) -> list[dict]:
    """One block of the report; rows for the CSV. Overheads are medians over rounds, of this / plain in the same."""
    proposals = []
    steps = {variant: make_step(framework, variant, args, proposals) for variant in ('plain', *args.variants)}
    same_numbers = partial(torch.manual_seed, args.seed)
    times = time_interleaved(steps, args.repeats, device=args.device, before=same_numbers)
    peaks = memory.peaks_interleaved(steps, min(3, args.repeats), args.device, before=same_numbers)
    print(f'\n{framework}\n  {"":10} {"ms":>9} {"20 %":>9} {"80 %":>9} {"MiB":>8} {"20 %":>6} {"80 %":>6}   '
          'over plain, 20 %, 80 %')
    is_classifier, rows = framework.startswith('classifier'), []
    size, batch = ([224, 224], 8 * args.batch) if is_classifier else (args.size, args.batch)
    where = {} if args.device == 'cpu' else dict(device=torch.cuda.get_device_name(args.device))
    for variant, values in times.items():
        median, low, high = spread(values)
        over = [100 * (ratio - 1) for ratio in spread(values / times['plain'])]
        peak = spread(peaks[variant])
        note = f'   (paper, classifiers: {PAPER})' if variant == 'TokenProp' else ''
        print(f'  {variant:10} {median:9.1f} {low:9.1f} {high:9.1f} {peak[0]:8.0f} {peak[1]:6.0f} {peak[2]:6.0f}   '
              f'{over[0]:8.1f} {over[1]:6.1f} {over[2]:6.1f} %{note}', flush=True)
        rows.append(dict(framework=framework, variant=variant, size='x'.join(map(str, size)), batch=batch,
                         amp=args.amp, ms_median=round(median, 2), ms_p20=round(low, 2), ms_p80=round(high, 2),
                         peak_mib=round(peak[0], 1), peak_p20=round(peak[1], 1), peak_p80=round(peak[2], 1),
                         over_plain_percent=round(over[0], 2), over_p20=round(over[1], 2),
                         over_p80=round(over[2], 2), repeats=args.repeats, **{**provenance(args.seed), **where}))
    return rows


def run(args) -> None:
    if args.amp:
        check_amp(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    if args.batch == 1 and any(framework.startswith('upernet') for framework in args.framework):
        raise ConfigError('--batch 1 leaves a segmentor one value for each channel of its pyramid pooling, which batch '
                          'normalisation refuses: measure 2 images or more, or other frameworks')
    keep_pages()
    logging.disable(logging.INFO)  # mmengine names the options of every parameter
    print(f'An iteration of training: batch {args.batch} of {"x".join(map(str, args.size))}, classifiers '
          f'{8 * args.batch} of 224x224; {args.device}, {torch.get_num_threads()} thread(s), torch '
          f'{torch.__version__}. Medians of {args.repeats} interleaved rounds; MiB is what an iteration adds.')
    rows = []
    for framework in args.framework:
        rows += measure(framework, args)
        write_csv(args.out, rows)  # each time: all of them take an hour on a CPU
