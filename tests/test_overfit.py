"""Slow: a segmentor with MoTo and TokenProp memorises 8 real images under mmseg's own tools."""

import re

import pytest

from conftest import ROOT


@pytest.mark.slow
def test_memorises_eight_real_images(ade_layout, run_tool, tmp_path):
    run = run_tool('train', ROOT / 'tests' / 'configs' / 'overfit_ade-192x192.py', '--work-dir', tmp_path,
                    cwd=tmp_path, env={'ADE20K_ROOT': str(ade_layout)}, timeout=1800)
    assert run.returncode == 0, run.stdout[-3000:]
    scores = [float(score) for score in re.findall(r'mIoU: ([\d.]+)', run.stdout)]
    print(f'mIoU on the 8 images: {scores}')
    assert scores[-1] >= 85
    losses = [float(loss) for loss in re.findall(r'loss_tokenprop: ([\d.]+)', run.stdout)]
    assert losses[-1] < 0.5 * losses[0]
