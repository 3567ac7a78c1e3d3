"""`make demo`: draw a data set, train and test a segmentor on it with mmseg's own tools, show what it learned."""

import contextlib
import io
import json
import sys
import time
import warnings

import mmseg
import numpy as np
from mmengine.config import Config
from PIL import Image

from baselines import majority_miou, rgb_miou
from pictures import draw_overview
from running import ROOT, UpstreamDemo, measured_on, short
from scenes import draw_ade_folder

CONFIG = ROOT / 'configs/demo/upernet_deit-nano_moto-tokenprop_1xb8-1.2k_drawn-128x128.py'
REAL = 'configs/upernet/upernet_deit-s_moto-tokenprop_8xb2-160k_ade20k-512x512.py'


def main() -> None:
    start, demo = time.time(), UpstreamDemo('demo', mmseg, CONFIG)
    cfg = Config.fromfile(CONFIG)
    data, out = ROOT / cfg.data_root, demo.out
    print(f'[1/5] Drawing 400 training and 60 validation images to {data.relative_to(ROOT)}/', flush=True)
    draw_ade_folder(data)

    print(f"[2/5] Training UperNet with MoTo and TokenProp by mmseg's tools/train.py, {cfg.train_cfg.max_iters} steps",
          flush=True)
    checkpoint = demo.train(lines=r'Iter\(train\)',
                            show=r'\[ *\d+/\d+\]|(?:eta|loss|loss_tokenprop|decode.acc_seg): \S+')

    print("[3/5] Testing on the 60 images by mmseg's tools/test.py", flush=True)
    tested = demo.test(checkpoint, '--out', out / 'predictions', lines=r'Iter\(test\).*mIoU',
                       show=r'(?:aAcc|mIoU|mAcc): \S+')

    print('[4/5] Scoring what needs no network', flush=True)
    classes = len(cfg.metainfo.classes)
    scores = {'ours': tested['mIoU'] / 100, 'per-pixel RGB classifier': rgb_miou(data, classes),
              'majority class': majority_miou(data, classes)}

    print('[5/5] Drawing pictures', flush=True)
    warnings.simplefilter('ignore')  # mmseg warns of its own defaults
    with contextlib.redirect_stdout(io.StringIO()):  # and says what it loads
        pictures = draw_overview(CONFIG, checkpoint, data, out)

    results = dict(mIoU=scores, seconds=round(time.time() - start), numpy=np.__version__, mmseg=mmseg.__version__,
                   seed=cfg.randomness.seed, iterations=cfg.train_cfg.max_iters,
                   image=Image.open(next((data / 'images' / 'validation').iterdir())).size, **measured_on())
    (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    print(f'\nDone in {results["seconds"] / 60:.1f} minutes. mIoU on 60 images that were not trained on:')
    for name, score in scores.items():
        print(f'    {name:26} {score:.3f}')
    print(f'Pictures     {short(pictures)} (input, ground truth, prediction, learned layout)\n'
          f'Checkpoint   {short(checkpoint)}\n'
          f'Logs, scores {out.relative_to(ROOT)}/train.log, test.log, results.json\n'
          f'Real ADE20K  ADE20K_ROOT=/path/to/ADEChallengeData2016 {short(sys.executable)} \\\n'
          f'                 {short(demo.tools)}/train.py {REAL} \\\n'
          '                 --cfg-options model.backbone.init_cfg=None')


if __name__ == '__main__':
    main()
