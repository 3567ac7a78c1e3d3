"""Slow: detectors with MoTo and TokenProp memorise 8 real images under mmdet's own tools."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT
from test_detection_tools import plot_curve

sys.path.insert(0, str(ROOT / 'tools' / 'demo'))
from running import measured_on

CONFIGS = ROOT / 'tests' / 'configs'
CASES = {'mask-rcnn_swin-nano': {'bbox': 0.5, 'segm': 0.4}, 'retinanet_pvtv2-nano': {'bbox': 0.5}}


@pytest.fixture
def eight(coco, tmp_path):
    """The first 8 images with objects, in COCO's layout."""
    root, all_of_it = tmp_path / 'eight', json.loads((coco / 'annotations' / 'instances_train2017.json').read_text())
    (root / 'annotations').mkdir(parents=True)
    (root / 'val2017').symlink_to(coco / 'train2017')
    shown = {found['image_id'] for found in all_of_it['annotations']}
    images = [image for image in all_of_it['images'] if image['id'] in shown][:8]
    taken = {image['id'] for image in images}
    objects = [found for found in all_of_it['annotations'] if found['image_id'] in taken]
    (root / 'annotations' / 'instances_val2017.json').write_text(
        json.dumps(dict(all_of_it, images=images, annotations=objects)))
    return root


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_memorises_eight_real_images(name, eight, run_tool, tmp_path):
    """Its curve is drawn by mmdet's tool, into CURVES or beside the work directory, and its scores lie beside that."""
    config, wanted = CONFIGS / f'overfit_{name}_moto-tokenprop_coco.py', CASES[name]
    kinds, begun = list(wanted), time.monotonic()
    run = run_tool('mmdet/train', config, '--work-dir', tmp_path / 'work', '--cfg-options',
                   f'val_evaluator.metric=[{",".join(kinds)}]', cwd=tmp_path, env={'COCO_ROOT': str(eight)},
                   timeout=3600)
    assert run.returncode == 0, run.stdout[-3000:]
    log, = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    scores = [{kind: line[f'coco/{kind}_mAP'] for kind in kinds} for line in lines if 'coco/bbox_mAP' in line]
    print(f'\n{name}: AP by epoch {scores}')
    out = Path(os.environ.get('CURVES', tmp_path)) / f'overfit_{name}.png'
    measured = dict(config=config.stem, images=8, epochs=scores, seconds=round(time.monotonic() - begun),
                    **measured_on())
    out.with_suffix('.json').write_text(json.dumps(measured, indent=1) + '\n')
    plot_curve(run_tool, log, [f'{kind}_mAP' for kind in kinds], out, '--legend', *kinds, '--title',
               f'{name}: AP on 8 images')
    losses = [line['loss_tokenprop'] for line in lines if 'loss_tokenprop' in line]
    assert losses[-1] < 0.5 * losses[0]
    assert all(scores[-1][kind] >= score for kind, score in wanted.items()), scores
