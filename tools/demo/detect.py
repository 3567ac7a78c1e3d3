"""`make demo-det`: draw objects, train and test a Mask R-CNN on them with mmdet's own tools, show what it found."""

import contextlib
import io
import json
import sys
import time
import warnings

import mmdet
from mmengine.config import Config

from detections import draw_detections
from objects import draw_coco_folder
from running import ROOT, UpstreamDemo, measured_on, short

CONFIG = ROOT / 'configs/demo/mask-rcnn_swin-nano_moto-tokenprop_1xb4-8e_drawn-coco.py'
REAL = 'configs/mask_rcnn/mask-rcnn_swin-t_moto-tokenprop_fpn_ms-crop-1x_coco.py'


def main() -> None:
    start, demo = time.time(), UpstreamDemo('demo-det', mmdet, CONFIG)
    cfg = Config.fromfile(CONFIG)
    data, out = ROOT / cfg.data_root, demo.out
    print(f'[1/4] Drawing 400 training and 60 validation images to {short(data)}/', flush=True)
    draw_coco_folder(data)
    print(f"[2/4] Training Mask R-CNN with MoTo and TokenProp by mmdet's tools/train.py, {cfg.train_cfg.max_epochs} "
          'epochs', flush=True)
    checkpoint = demo.train(lines=r'Epoch\(train\)',
                            show=r'\[\d+\](?=\[)|(?:eta|loss|loss_tokenprop|loss_mask): \S+')
    print("[3/4] Testing on the 60 images by mmdet's tools/test.py", flush=True)
    scores = demo.test(checkpoint, lines=r'Epoch\(test\).*mAP', show=r'coco/\w+_mAP(?:_50)?: \S+')
    print('[4/4] Drawing pictures', flush=True)
    warnings.simplefilter('ignore')  # mmdet warns of its own defaults
    with contextlib.redirect_stdout(io.StringIO()):  # and says what it loads
        pictures = draw_detections(CONFIG, checkpoint, data, out)
    results = dict(box_AP=scores['coco/bbox_mAP'], mask_AP=scores['coco/segm_mAP'], seconds=round(time.time() - start),
                   mmdet=mmdet.__version__, seed=cfg.randomness.seed, epochs=cfg.train_cfg.max_epochs, **measured_on())
    (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    print(f'\nDone in {results["seconds"] / 60:.1f} minutes. On 60 images that were not trained on: box AP '
          f'{results["box_AP"]:.3f}, mask AP {results["mask_AP"]:.3f}\n'
          f'Pictures     {short(pictures)} (ground truth, prediction, learned layout)\n'
          f'Checkpoint   {short(checkpoint)}\n'
          f'Logs, scores {short(out)}/train.log, test.log, results.json\n'
          f'Real COCO    COCO_ROOT=/path/to/coco {short(sys.executable)} \\\n'
          f'                 {short(demo.tools)}/train.py {REAL} \\\n'
          '                 --cfg-options model.backbone.init_cfg=None')


if __name__ == '__main__':
    main()
