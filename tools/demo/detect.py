"""`make demo-det`: draw objects, train and test a Mask R-CNN on them with mmdet's own tools, show what it found."""

import contextlib
import io
import json
import sys
import time
import warnings
from pathlib import Path

import mmdet
import torch
from mmengine.config import Config

from detections import draw_detections
from objects import draw_coco_folder
from running import ROOT, alone, run_tool, short

CONFIG = ROOT / 'configs/demo/mask-rcnn_swin-nano_moto-tokenprop_1xb4-16e_drawn-coco.py'
REAL = 'configs/mask_rcnn/mask-rcnn_swin-t_moto-tokenprop_fpn_ms-crop-1x_coco.py'
TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
OUT = ROOT / 'work_dirs' / f'demo-det-{Path(sys.prefix).name}'  # .envs/<stack>: one does not overwrite the other's


def run_mmdet(name: str, *arguments, lines: str, show: str) -> None:
    """Run mmdet's `tools/<name>.py` on our config."""
    run_tool([sys.executable, '-u', TOOLS / f'{name}.py', CONFIG, *arguments], OUT / f'{name}.log', lines, show)


def main() -> None:
    start = time.time()
    cfg = Config.fromfile(CONFIG)
    data = ROOT / cfg.data_root
    OUT.mkdir(parents=True, exist_ok=True)
    lock = alone('demo-det')  # noqa: F841 - until this process ends
    print(f'[1/4] Drawing 400 training and 60 validation images to {short(data)}/', flush=True)
    draw_coco_folder(data)
    print(f"[2/4] Training Mask R-CNN with MoTo and TokenProp by mmdet's tools/train.py, {cfg.train_cfg.max_epochs} "
          'epochs', flush=True)
    run_mmdet('train', '--work-dir', OUT, lines=r'Epoch\(train\)',
              show=r'\[\d+\](?=\[)|(?:eta|loss|loss_tokenprop|loss_mask): \S+')
    checkpoint = Path((OUT / 'last_checkpoint').read_text().strip())
    print("[3/4] Testing on the 60 images by mmdet's tools/test.py", flush=True)
    run_mmdet('test', checkpoint, '--work-dir', OUT / 'test', lines=r'Epoch\(test\).*mAP',
              show=r'coco/\w+_mAP(?:_50)?: \S+')
    newest = max((OUT / 'test').glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    scores = json.loads(newest.read_text().splitlines()[-1])
    print('[4/4] Drawing pictures', flush=True)
    warnings.simplefilter('ignore')  # mmdet warns of its own defaults
    with contextlib.redirect_stdout(io.StringIO()):  # and says what it loads
        pictures = draw_detections(CONFIG, checkpoint, data, OUT)
    results = dict(box_AP=scores['coco/bbox_mAP'], mask_AP=scores['coco/segm_mAP'], seconds=round(time.time() - start),
                   torch=torch.__version__, mmdet=mmdet.__version__, seed=cfg.randomness.seed,
                   epochs=cfg.train_cfg.max_epochs)
    (OUT / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    print(f'\nDone in {results["seconds"] / 60:.1f} minutes. On 60 images that were not trained on: box AP '
          f'{results["box_AP"]:.3f}, mask AP {results["mask_AP"]:.3f}\n'
          f'Pictures     {short(pictures)} (ground truth, prediction, learned layout)\n'
          f'Checkpoint   {short(checkpoint)}\n'
          f'Logs, scores {short(OUT)}/train.log, test.log, results.json\n'
          f'Real COCO    COCO_ROOT=/path/to/coco {short(sys.executable)} \\\n'
          f'                 {short(TOOLS)}/train.py {REAL} \\\n'
          '                 --cfg-options model.backbone.init_cfg=None')


if __name__ == '__main__':
    main()
