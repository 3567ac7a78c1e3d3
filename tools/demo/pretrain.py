"""`make demo-pretrain`: draw an image folder, train four variants of a small DeiT on it, summarise them."""

import json
import sys
import time
from pathlib import Path

from running import ROOT, alone, run_tool, short
from scenes import draw_image_folder

sys.path.insert(0, str(ROOT / 'tools'))
from summarize import group, plot, read, summarise, table

VARIANTS = {'': 'patchify', '_moto-stem': 'MoTo', '_tokenprop': 'patchify + TokenProp',
            '_moto-stem-tokenprop': 'MoTo + TokenProp'}
EPOCHS = 30
OUT = ROOT / 'work_dirs' / f'demo-pretrain-{Path(sys.prefix).name}'
# The data set is another one, and smaller, than the recipe's
OPTIONS = ['model.num_classes=4', f'train_cfg.max_epochs={EPOCHS}', f'param_scheduler.epochs={EPOCHS}',
           'train_dataloader.batch_size=32', 'train_dataloader.num_workers=1', 'val_dataloader.batch_size=50',
           'default_hooks.checkpoint.interval=-1']


def main() -> None:
    start, data = time.time(), ROOT / 'data' / 'drawn-folder'
    lock = alone('demo-pretrain')  # noqa: F841 - until this process ends
    OUT.mkdir(parents=True, exist_ok=True)
    print(f'[1/3] Drawing 800 training and 200 validation images of 4 textures to {short(data)}/', flush=True)
    draw_image_folder(data)
    print(f'[2/3] Training four variants by tools/train_classifier.py, {EPOCHS} epochs each', flush=True)
    for variant, name in VARIANTS.items():
        config = ROOT / 'configs' / 'cifar10' / f'deit-nano{variant}_1xb64-32e_cifar10.py'
        print(f'    {name} ({short(config)})', flush=True)
        run_tool([sys.executable, '-u', ROOT / 'tools' / 'train_classifier.py', config, '--work-dir',
                  OUT / config.stem, '--cfg-options', *OPTIONS], OUT / f'{config.stem}.log', lines=r'Epoch\(val\)',
                 show=r'\[\d+\](?=\[)|accuracy/top1: \S+', env=dict(CIFAR10_ROOT=str(data)))
    print('[3/3] Summarising by tools/summarize.py', flush=True)
    groups = group([read(str(OUT / f'deit-nano{variant}_1xb64-32e_cifar10')) for variant in VARIANTS])
    rows = summarise(groups)
    plot(groups, str(OUT / 'curves.png'))
    (OUT / 'summary.json').write_text(json.dumps(rows, indent=1) + '\n')
    print(f'\nDone in {(time.time() - start) / 60:.1f} minutes. Chance is 25 %; one seed says little.\n\n'
          f'{table(rows)}\n\n'
          f'Curves       {short(OUT / "curves.png")}\n'
          f'Logs         {short(OUT)}/*.log, and a results.json for each training\n'
          f'Real images  IMAGENET_ROOT=/path/to/imagenet {short(sys.executable)} \\\n'
          '                 tools/train_classifier.py configs/imagenet/deit-s_moto-tokenprop_8xb128-300e_in1k.py')


if __name__ == '__main__':
    main()
