"""`make demo`: draw a data set, train and test a segmentor on it with mmseg's own tools, show what it learned."""

import contextlib
import fcntl
import io
import json
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import mmseg
import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from baselines import majority_miou, rgb_miou
from pictures import draw_overview
from scenes import draw_ade_folder

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/demo/upernet_deit-nano_moto-tokenprop_1xb8-1.2k_drawn-128x128.py'
REAL = 'configs/upernet/upernet_deit-s_moto-tokenprop_8xb2-160k_ade20k-512x512.py'
TOOLS = Path(mmseg.__file__).parent / '.mim' / 'tools'
OUT = ROOT / 'work_dirs' / f'demo-{Path(sys.prefix).name}'  # .envs/<stack>: one does not overwrite the other's


def run_tool(name: str, *arguments, lines: str, show: str) -> None:
    """Run mmseg's `tools/<name>.py` from the project's root; of its lines with `lines`, print what matches `show`."""
    log = OUT / f'{name}.log'
    command = [sys.executable, '-u', TOOLS / f'{name}.py', CONFIG, *arguments]
    with log.open('w') as out:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        for line in process.stdout:
            out.write(line)
            if ' - INFO - Iter(' in line and lines in line:
                print('   ', '  '.join(re.findall(show, line)), flush=True)
    if process.wait():
        tail = '\n'.join(log.read_text().splitlines()[-5:])
        sys.exit(f"mmseg's {name}.py failed; the end of {log.relative_to(ROOT)}:\n{tail}")


def short(path) -> Path:
    """Relative to the project where it lies below."""
    path = Path(path)
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def read_test_score() -> float:
    """mIoU between 0 and 1 from the JSON that mmseg's test.py wrote last."""
    newest = max((OUT / 'test').glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text().splitlines()[-1])['mIoU'] / 100


def main() -> None:
    start = time.time()
    cfg = Config.fromfile(CONFIG)
    data = ROOT / cfg.data_root
    OUT.mkdir(parents=True, exist_ok=True)
    lock = (OUT.parent / 'demo.lock').open('w')  # held until this process ends: all draw to the same folder
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit('Another demo is running in this folder; wait for it, or stop it first.')
    print(f'[1/5] Drawing 400 training and 60 validation images to {data.relative_to(ROOT)}/', flush=True)
    draw_ade_folder(data)

    print(f"[2/5] Training UperNet with MoTo and TokenProp by mmseg's tools/train.py, {cfg.train_cfg.max_iters} steps",
          flush=True)
    run_tool('train', '--work-dir', OUT, lines='Iter(train)',
             show=r'\[ *\d+/\d+\]|(?:eta|loss|loss_tokenprop|decode.acc_seg): \S+')
    checkpoint = Path((OUT / 'last_checkpoint').read_text().strip())

    print("[3/5] Testing on the 60 images by mmseg's tools/test.py", flush=True)
    run_tool('test', checkpoint, '--work-dir', OUT / 'test', '--out', OUT / 'predictions', lines='mIoU',
             show=r'(?:aAcc|mIoU|mAcc): \S+')
    ours = read_test_score()

    print('[4/5] Scoring what needs no network', flush=True)
    classes = len(cfg.metainfo.classes)
    scores = {'ours': ours, 'per-pixel RGB classifier': rgb_miou(data, classes),
              'majority class': majority_miou(data, classes)}

    print('[5/5] Drawing pictures', flush=True)
    warnings.simplefilter('ignore')  # mmseg warns of its own defaults
    with contextlib.redirect_stdout(io.StringIO()):  # and says what it loads
        pictures = draw_overview(CONFIG, checkpoint, data, OUT)

    results = dict(mIoU=scores, seconds=round(time.time() - start), torch=torch.__version__, numpy=np.__version__,
                   mmseg=mmseg.__version__, seed=cfg.randomness.seed, iterations=cfg.train_cfg.max_iters,
                   image=Image.open(next((data / 'images' / 'validation').iterdir())).size)
    (OUT / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    print(f'\nDone in {results["seconds"] / 60:.1f} minutes. mIoU on 60 images that were not trained on:')
    for name, score in scores.items():
        print(f'    {name:26} {score:.3f}')
    print(f'Pictures     {short(pictures)} (input, ground truth, prediction, learned layout)\n'
          f'Checkpoint   {short(checkpoint)}\n'
          f'Logs, scores {OUT.relative_to(ROOT)}/train.log, test.log, results.json\n'
          f'Real ADE20K  ADE20K_ROOT=/path/to/ADEChallengeData2016 {short(sys.executable)} \\\n'
          f'                 {short(TOOLS)}/train.py {REAL} \\\n'
          '                 --cfg-options model.backbone.init_cfg=None')


if __name__ == '__main__':
    main()
