"""`make demo`: what it draws, what a colour knows about it, and (slow) the whole run."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from conftest import ROOT

sys.path.insert(0, str(ROOT / 'tools' / 'demo'))
import baselines
import scenes

CONFIG = next((ROOT / 'configs' / 'demo').glob('upernet*.py'))


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('drawn') / 'data'
    scenes.draw_ade_folder(root, train=40, val=20)
    return root


def test_same_seed_same_pictures(drawn, tmp_path):
    scenes.draw_ade_folder(tmp_path / 'again', train=2, val=2)
    for path in sorted((tmp_path / 'again').rglob('*.*')):
        assert path.read_bytes() == (drawn / path.relative_to(tmp_path / 'again')).read_bytes()


def test_every_class_is_drawn_and_named(drawn):
    labels = np.concatenate([np.asarray(Image.open(p)).ravel() for p in drawn.glob('annotations/*/*.png')])
    share = np.bincount(labels, minlength=7)[1:] / labels.size
    assert labels.min() == 1 and labels.max() == 6 and share.min() > 0.02
    cfg = Config.fromfile(CONFIG)
    assert tuple(cfg.metainfo.classes) == scenes.CLASSES
    assert [tuple(color) for color in cfg.metainfo.palette] == list(scenes.PALETTE)
    assert cfg.model.decode_head.num_classes == len(scenes.CLASSES)


def test_a_disc_is_known_by_what_it_lies_on():
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(40):
        _, labels = scenes.draw_scene(rng)
        for disc, grounds in ((scenes.ON_LINES, {0, 1}), (scenes.ON_SPOTS, {2, 3})):
            inside = labels == disc
            ring = np.zeros_like(inside)
            for shift in (-3, 3):
                ring |= np.roll(inside, shift, 0) | np.roll(inside, shift, 1)
            ring &= labels < 4
            ring[:3], ring[-3:], ring[:, :3], ring[:, -3:] = False, False, False, False
            assert set(np.unique(labels[ring])) <= grounds
            seen |= {disc} if inside.any() else set()
    assert seen == {scenes.ON_LINES, scenes.ON_SPOTS}


def test_colour_alone_knows_little(drawn):
    majority, rgb = baselines.majority_miou(drawn, 6), baselines.rgb_miou(drawn, 6)
    assert 0.01 < majority < 0.1 and 0.02 < rgb < 0.2, (majority, rgb)


def test_miou_of_a_known_case():
    labels = np.array([[0, 0, 1, 1]])
    assert baselines.miou(np.array([[0, 0, 0, 1]]), labels, 3) == pytest.approx((2 / 3 + 1 / 2) / 2)


def run_demo(script) -> str:
    run = subprocess.run([sys.executable, f'tools/demo/{script}'], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout[-3000:]
    return run.stdout


@pytest.mark.slow
def test_whole_pretraining_demo():
    output = run_demo('pretrain.py')
    out = ROOT / re.search(r'(\S+)/curves.png', output).group(1)
    rows = json.loads((out / 'summary.json').read_text())
    assert len(rows) == 4 and all(row['accuracy/top1']['mean'] >= 60 for row in rows)  # chance is 25
    assert Image.open(out / 'curves.png').size == (800, 500)
    assert output.splitlines()[-2].startswith('Real images  IMAGENET_ROOT=')


@pytest.mark.slow
def test_whole_detection_demo():
    output = run_demo('detect.py')
    out = ROOT / re.search(r'(\S+)/train.log', output).group(1)
    scores = json.loads((out / 'results.json').read_text())
    assert scores['box_AP'] >= 0.2 and scores['mask_AP'] >= 0.2
    assert Image.open(out / 'overview.png').size[0] > 500
    assert output.splitlines()[-3].startswith('Real COCO')


@pytest.mark.slow
def test_whole_demo():
    output = run_demo('run.py')
    out = ROOT / re.search(r'(\S+)/train.log', output).group(1)
    scores = json.loads((out / 'results.json').read_text())['mIoU']
    assert scores['ours'] >= 0.60
    assert scores['ours'] >= 3 * scores['majority class']
    assert scores['per-pixel RGB classifier'] <= scores['ours'] / 2
    assert Image.open(out / 'overview.png').size[0] > 500
    assert output.splitlines()[-3].startswith('Real ADE20K')
