"""Detection data that a user has: empty images, thin boxes, grey, narrow and damaged images, files of others."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
from mmengine.registry import DefaultScope

from conftest import ROOT, logged_steps
from mmtok.engine.preflight import check_image_size, check_padding
from mmtok.errors import ConfigError
from test_detection_configs import CASCADE, DRAWN, MASK_RCNN, RETINANET, SMALL_TRAIN

DEMO, = (ROOT / 'configs' / 'demo').glob('mask-rcnn*.py')
LOADERS = ('train', 'val', 'test')
QUICK = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=9', 'default_hooks.logger.interval=1',
         'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
         'train_dataloader.batch_sampler=None', 'train_dataloader.batch_size=4']


def options(root) -> list[str]:
    return [*QUICK, *(f'{loader}_dataloader.dataset.data_root={root}' for loader in LOADERS),
            *(f'{loader}_evaluator.ann_file={root}/annotations/instances_val2017.json' for loader in LOADERS[1:])]


EVERYTHING = ['model.backbone.init_cfg=None', 'train_dataloader.dataset.filter_cfg.filter_empty_gt=False',
              'train_dataloader.dataset.filter_cfg.min_size=0']
SCALED_AND_CROPPED = [*DRAWN['cascade'], *SMALL_TRAIN[True]]
BORDER = 'model.train_cfg.rpn.allowed_border=-1'


@pytest.mark.parametrize('config, more', [
    (DEMO, []), (RETINANET, [*DRAWN['retinanet'], *SMALL_TRAIN[False]]),
    pytest.param(MASK_RCNN, [*DRAWN['mask'], *SMALL_TRAIN[True], BORDER], marks=pytest.mark.slow),
    pytest.param(CASCADE, [*SCALED_AND_CROPPED, BORDER], marks=pytest.mark.slow)],
    ids=['demo', 'retinanet', 'mask-rcnn, scaled and cropped', 'cascade, scaled and cropped'])
def test_a_batch_of_odd_images(config, more, odd_coco, fork_tool, tmp_path):
    run = fork_tool('mmdet/train', config, '--work-dir', tmp_path / 'work', '--cfg-options', *options(odd_coco), *more,
                    *EVERYTHING, 'train_cfg.max_epochs=2', cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    steps = logged_steps(tmp_path / 'work')
    assert len(steps) == 2 and all(math.isfinite(value) for step in steps.values() for value in step.values())
    assert all('loss_tokenprop' in step for step in steps.values())


def test_an_image_too_narrow_for_anchors_is_named(odd_coco, fork_tool, tmp_path):
    """Cascade's recipe has mmdet's allowed_border=0."""
    run = fork_tool('mmdet/train', CASCADE, '--work-dir', tmp_path / 'work', '--cfg-options', *options(odd_coco),
                    *SCALED_AND_CROPPED, *EVERYTHING, cwd=tmp_path)
    assert run.returncode == 1 and 'Traceback' not in run.stdout
    assert re.match(r'mmtok: .*train2017/4.jpg, scaled to \(height, width\) \(\d+, \d+\), is so narrow that no anchor',
                    run.stdout.strip().splitlines()[-1]), run.stdout[-500:]


def spoil_image(root):
    (root / 'train2017' / '3.jpg').unlink()


def spoil_list(root):
    (root / 'annotations' / 'instances_train2017.json').unlink()


def spoil_metric(root, change) -> list[str]:
    """An annotation file of the metric alone."""
    found = json.loads((root / 'annotations' / 'instances_val2017.json').read_text())
    change(found)
    (root / 'other.json').write_text(json.dumps(found))
    return [f'val_evaluator.ann_file={root}/other.json']


def other_images(found):
    for item in found['images']:
        item['id'] += 100
    found['annotations'] = []


def from_zero(found):
    for item in found['annotations']:
        item['category_id'] -= 1


def fewer_classes(found):
    found['categories'] = [item for item in found['categories'] if item['name'] != 'ring']
    found['annotations'] = []


def turn_categories(found):
    found['categories'] = found['categories'][::-1]


def test_padding_is_found_inside_preprocessors():
    from mmdet.models import BatchFixedSizePad, DetDataPreprocessor, MultiBranchDataPreprocessor
    backbone = SimpleNamespace(tokenizer=SimpleNamespace(in_channels=3), mask_padding=True, tokenizer_uses_mask=True,
                               token_prop=None)
    normal = dict(mean=[123.675, 116.28, 103.53], std=[58.4, 57.1, 57.4])
    check_padding(backbone, DetDataPreprocessor(**normal), {})
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_padding(backbone, MultiBranchDataPreprocessor(dict(type='DetDataPreprocessor', **normal)), {})
        augments = [dict(type='BatchFixedSizePad', size=(64, 64), img_pad_value=114)]
        grey = DetDataPreprocessor(**normal, batch_augments=augments)
    assert isinstance(grey.batch_augments[0], BatchFixedSizePad)
    with pytest.raises(ConfigError, match='pad value 114'):
        check_padding(backbone, grey, {})


def test_a_relative_crop_is_a_part_of_the_image():
    crop = dict(type='RandomCrop', crop_type='relative', crop_size=(1, 1))
    check_image_size(dict(train_dataloader=dict(dataset=dict(pipeline=[crop]))), 16)
    with pytest.raises(ConfigError, match='smaller than one token'):
        check_image_size(dict(train_dataloader=dict(dataset=dict(pipeline=[dict(crop, crop_type='absolute')]))), 16)


WRONG = {
    'a metric': (['val_evaluator.metric=mAP'], r"the evaluator cannot be built: metric should be one of 'bbox', "),
    'batch': (['train_dataloader.batch_size=0'], 'train_dataloader.batch_size=0 must be a whole number of at least 1'),
    'channels of the neck': (['model.neck.out_channels=48'],
                             r'model.rpn_head.in_channels=\d+, but model.neck.out_channels=48: make them equal'),
    'classes of the metric': (lambda root: spoil_metric(root, fewer_classes),
                              r"val_evaluator.ann_file='.*other.json' has no category 'ring' .*, or name the file of"),
    'order of the metric': (lambda root: spoil_metric(root, turn_categories),
                            r"the categories of .*train2017.json and val_evaluator.ann_file='.*other.json' are in "
                            r"different orders; the first that differs is 'disc' there and 'cross' here: mmdet"),
    'name of the metric': (['val_evaluator.type=mmtok.Acuracy'],
                           r"'mmtok.Acuracy' \(val_evaluator.type\) is the name of no class that is registered; is "
                           r"'mmtok.Accuracy' meant\? Else correct it, or have custom_imports"),
    'categories from 0': (lambda root: spoil_metric(root, from_zero),
                          r"\d+ of \d+ annotations in val_evaluator.ann_file='.*other.json' have a category_id, such "
                          r"as 0, that is none of the file's \(1, 2, 3, 4, 5\)"),
    'images of the metric': (lambda root: spoil_metric(root, other_images),
                             r"val_evaluator.ann_file='.*other.json' lacks 3 of the 3 images of .*val2017.json, "
                             'such as the id 1: name the same file'),
    'classes of the training alone': (
        ["train_dataloader.dataset.metainfo.classes=('disc','ring')", 'model.roi_head.bbox_head.num_classes=2',
         'model.roi_head.mask_head.num_classes=2'],
        r"train_dataloader.dataset has 2 classes and the data set of val_evaluator.ann_file='.*' 5; only the data"),
    'checkpoint': (['load_from=gone.pth'], "checkpoint 'gone.pth' does not exist: put it there or name another"),
    'image': (spoil_image, r'train2017/3.jpg is not there, but the data set lists it'),
    'list': (spoil_list, r'CocoDataset: .*instances_train2017.json is not there; name the right folder'),
    'padding before the preprocessor': (
        ['train_dataloader.dataset.pipeline.2.type=Pad'],
        r'train_dataloader.dataset.pipeline.2 \(Pad\) pads images before they are normalised'),
    'annotations of the metric': (['val_evaluator.ann_file=/no.json'],
                                  r"'/no.json' \(val_evaluator.ann_file\) is not there: name the file"),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_missing_is_said_in_one_sentence(case, odd_coco, fork_tool, tmp_path):
    spoil, sentence = WRONG[case]
    changed = spoil(odd_coco) or [] if callable(spoil) else spoil
    run = fork_tool('mmdet/train', DEMO, '--work-dir', tmp_path / 'work', '--cfg-options', *options(odd_coco),
                    *changed, cwd=tmp_path)
    assert run.returncode == 1 and 'Traceback' not in run.stdout and 'Epoch(train)' not in run.stdout
    assert re.search(f'^mmtok: .*{sentence}', run.stdout, re.M), run.stdout[-500:]


def test_a_damaged_image_is_skipped(drawn_coco, fork_tool, tmp_path):
    """And annotations need no `info` or `iscrowd`, which pycocotools ask for after the first epoch; the order of their
    categories is told."""
    root = shutil.copytree(drawn_coco, tmp_path / 'data')
    for path in (root / 'annotations').glob('instances_*.json'):
        found = json.loads(path.read_text())
        for item in found['annotations']:
            del item['iscrowd']
        path.write_text(json.dumps(dict(images=found['images'], annotations=found['annotations'],
                                        categories=found['categories'][::-1])))
    bad = next((root / 'train2017').iterdir())
    bad.write_bytes(b'no image')
    run = fork_tool('mmdet/train', DEMO, '--work-dir', tmp_path / 'work', '--cfg-options', *options(root),
                    'train_cfg.val_interval=1', 'model.test_cfg.rcnn.score_thr=0.0', cwd=tmp_path)
    assert run.returncode == 0 and 'coco/bbox_mAP' in run.stdout, run.stdout[-3000:]
    assert 'in the order of the annotation file, which is cross, triangle, ' in run.stdout
    assert f'{bad} cannot be decoded' in run.stdout and 'another image takes its place' in run.stdout
