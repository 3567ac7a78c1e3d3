"""Detection data that a user has: empty images, thin boxes, grey and narrow images, annotations without images."""

import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import ConcatDataset
from mmengine.registry import DefaultScope
from PIL import Image

from conftest import ROOT, logged_steps
from mmtok.engine import annotations
from mmtok.engine.annotations import check_categories
from mmtok.engine.loops import check_metrics, metric_configs
from mmtok.engine.preflight import check_image_size, check_padding
from mmtok.engine.runner import Runner
from mmtok.errors import ConfigError, DataError
from test_detection_configs import CASCADE, DRAWN, RETINANET, SMALL_TRAIN
from test_detection_configs import MASK_RCNN as LEAF

sys.path.insert(0, str(ROOT / 'tools' / 'demo'))
import objects

MASK_RCNN, = (ROOT / 'configs' / 'demo').glob('mask-rcnn*.py')
LOADERS = ('train', 'val', 'test')
QUICK = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=9', 'default_hooks.logger.interval=1',
         'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
         'train_dataloader.batch_sampler=None', 'train_dataloader.batch_size=4']


def options(root) -> list[str]:
    return [*QUICK, *(f'{loader}_dataloader.dataset.data_root={root}' for loader in LOADERS),
            *(f'{loader}_evaluator.ann_file={root}/annotations/instances_val2017.json' for loader in LOADERS[1:])]


def box(number: int, image: int, x: int, y: int, width: int, height: int) -> dict:
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return dict(id=number, image_id=image, category_id=number % 5 + 1, bbox=[x, y, width, height], iscrowd=0,
                area=width * height, segmentation=[polygon])


@pytest.fixture
def odd(drawn_coco, tmp_path):
    """An image without objects, one with a box of 1 pixel's width, a grey one, and one of 1000x20 pixels."""
    rng, root = np.random.default_rng(0), tmp_path / 'odd'
    for folder in ('train2017', 'annotations'):
        (root / folder).mkdir(parents=True)
    (root / 'val2017').symlink_to(drawn_coco / 'val2017')
    (root / 'annotations' / 'instances_val2017.json').symlink_to(
        drawn_coco / 'annotations' / 'instances_val2017.json')
    shapes = [(96, 128, 3), (96, 128, 3), (96, 128), (20, 1000, 3)]
    for number, shape in enumerate(shapes, 1):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / 'train2017' / f'{number}.jpg')
    boxes = [box(1, 2, 40, 20, 1, 50), box(2, 3, 10, 10, 60, 40), box(3, 4, 300, 2, 200, 15)]
    images = [dict(id=i, file_name=f'{i}.jpg', height=shape[0], width=shape[1]) for i, shape in enumerate(shapes, 1)]
    categories = [dict(id=i, name=name) for i, name in enumerate(objects.CLASSES, 1)]
    (root / 'annotations' / 'instances_train2017.json').write_text(
        json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root


EVERYTHING = ['model.backbone.init_cfg=None', 'train_dataloader.dataset.filter_cfg.filter_empty_gt=False',
              'train_dataloader.dataset.filter_cfg.min_size=0']
SCALED_AND_CROPPED = [*DRAWN['cascade'], *SMALL_TRAIN[True]]
BORDER = 'model.train_cfg.rpn.allowed_border=-1'


@pytest.mark.parametrize('config, more', [
    (MASK_RCNN, []), (RETINANET, [*DRAWN['retinanet'], *SMALL_TRAIN[False]]),
    pytest.param(LEAF, [*DRAWN['mask'], *SMALL_TRAIN[True], BORDER], marks=pytest.mark.slow),
    pytest.param(CASCADE, [*SCALED_AND_CROPPED, BORDER], marks=pytest.mark.slow)],
    ids=['mask-rcnn', 'retinanet', 'mask-rcnn, scaled and cropped', 'cascade, scaled and cropped'])
def test_a_batch_of_odd_images(config, more, odd, fork_tool, tmp_path):
    run = fork_tool('mmdet/train', config, '--work-dir', tmp_path / 'work', '--cfg-options', *options(odd), *more,
                    *EVERYTHING, 'train_cfg.max_epochs=2', cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    steps = logged_steps(tmp_path / 'work')
    assert len(steps) == 2 and all(math.isfinite(value) for step in steps.values() for value in step.values())
    assert all('loss_tokenprop' in step for step in steps.values())


def test_an_image_too_narrow_for_anchors_is_named(odd, fork_tool, tmp_path):
    """Cascade's recipe has mmdet's allowed_border=0."""
    run = fork_tool('mmdet/train', CASCADE, '--work-dir', tmp_path / 'work', '--cfg-options', *options(odd),
                    *SCALED_AND_CROPPED, *EVERYTHING, cwd=tmp_path)
    assert run.returncode == 1 and 'Traceback' not in run.stdout
    assert re.match(r'mmtok: .*train2017/4.jpg, scaled to \(height, width\) \(\d+, \d+\), is so narrow that no anchor',
                    run.stdout.strip().splitlines()[-1]), run.stdout[-500:]


def spoil_image(root):
    (root / 'train2017' / '2.jpg').unlink()


def spoil_list(root):
    (root / 'annotations' / 'instances_train2017.json').unlink()


def spoil_classes(root):
    path = root / 'annotations' / 'instances_train2017.json'
    path.write_text(path.read_text().replace('"disc"', '"car"').replace('"ring"', '"bus"').replace('"cross"', '"x"')
                    .replace('"square"', '"y"').replace('"triangle"', '"z"'))


def misspell_a_class(root):
    path = root / 'annotations' / 'instances_train2017.json'
    path.write_text(path.read_text().replace('"disc"', '"disk"'))


def change_file(change):
    """Of the training images."""
    def spoil(root):
        path = root / 'annotations' / 'instances_train2017.json'
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))
    return spoil


def change_object(**values):
    """The second of the training images' objects."""
    return change_file(lambda found: found['annotations'][1].update(values))


def without(part: str, key: str):
    """Annotations whose images or objects lack a key."""
    def spoil(root):
        path = root / 'annotations' / 'instances_train2017.json'
        found = json.loads(path.read_text())
        for item in found[part]:
            del item[key]
        path.write_text(json.dumps(found))
    return spoil


def spoil_format(root):
    (root / 'annotations' / 'instances_train2017.json').write_text('<html>')


def spoil_bytes(root):
    (root / 'annotations' / 'instances_train2017.json').write_bytes(b'\x89PNG\xff')


def repeat_annotation(root):
    path = root / 'annotations' / 'instances_train2017.json'
    found = json.loads(path.read_text())
    path.write_text(json.dumps(dict(found, annotations=found['annotations'] * 2)))


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


def repeat_category(found):
    found['categories'][1]['name'] = 'disc'


def turn_categories(found):
    found['categories'] = found['categories'][::-1]


def turn_photo(root):
    path = root / 'train2017' / '3.jpg'
    with Image.open(path) as photo:
        exif = photo.getexif()
        exif[0x0112] = 6  # orientation: a quarter to the right
        photo.save(path, exif=exif)


BAD_ANNOTATIONS = {
    'another size': (change_file(lambda found: found['images'][1].update(height=960, width=1280)),
                     'train2017/2.jpg is 128x96 pixels, but its annotations are for 1280x960'),
    'a turned photo': (turn_photo, 'train2017/3.jpg is 96x128 pixels, but its annotations are for 128x96 .*EXIF'),
    'an image': (change_file(lambda found: found['annotations'][1].update(image_id='3')),
                 "1 of 3 annotations in .*train2017.json have an image_id, such as '3', that is none of the file's"),
    'a class': (misspell_a_class, r"instances_train2017.json has no category 'disc' of the 5 in the data set's "
                                  r"metainfo.classes; it has 'disk', 'ring', .*: write the names alike"),
    'one class twice': (change_file(repeat_category), r"instances_train2017.json has the category 'disc' 2 times"),
    'a category': (change_file(lambda found: found['annotations'][1].update(category_id=0)),
                   '1 of 3 annotations in .*instances_train2017.json have a category_id, such as 0, that is none of'),
    'bytes': (spoil_bytes, r"CocoDataset: '.*json' \(ann_file\) is no JSON, or cut short \('utf-8' codec"),
    'classes': (spoil_classes, r'CocoDataset found no image with .*: see whether ann_file lists images there, and '
                               'whether metainfo.classes'),
    'segmentations': (without('annotations', 'segmentation'),
                      r'train2017/\d.jpg has an object without a segmentation, but this pipeline loads masks'),
    'a box that is none': (change_object(bbox=None), 'annotation with id 2 has a bbox of null, and not four numbers'),
    'a box of three numbers': (change_object(bbox=[1, 2, 3]), r'annotation with id 2 has a bbox of \[1, 2, 3\]'),
    'a box without end': (change_object(bbox=[1, 2, math.inf, 3]), r'annotation with id 2 has a bbox of \[1, 2, Infin'),
    'an area that is none': (change_object(area=None), 'annotation with id 2 has an area of null, which is no number'),
    'a flat polygon': (change_object(segmentation=[1, 1, 9, 1, 9, 9]),
                       'id 2 has a segmentation of .1, 1, 9, 1, 9, 9., and not a list of polygons'),
    'a polygon of words': (change_object(segmentation=[['1', '1', '9', '1', '9', '9']]), 'id 2 has a polygon with "1"'),
    'a code of another size': (change_object(segmentation=dict(size=[9, 9], counts=[80, 1])),
                               r'id 2 has a run-length code for \[9, 9\] .*, while the image has \[96, 128\]'),
    'a code that is too long': (change_object(segmentation=dict(size=[96, 128], counts=[96 * 128, 5])),
                                r'id 2 has a run-length code of 12293 pixels in all, while its size is \[96, 128\]'),
    'areas': (without('annotations', 'area'), r"instances_train2017.json' \(ann_file\) lacks 'area', in its images or"),
    'sizes': (without('images', 'height'), r"instances_train2017.json' \(ann_file\) lacks 'height'"),
    'format': (spoil_format, r"CocoDataset: '/.*json' \(ann_file\) is no JSON, or cut short \(Expecting value"),
    'identities': (repeat_annotation, r'CocoDataset: Annotation ids in .* are not unique'),
}


@pytest.mark.parametrize('case', BAD_ANNOTATIONS)
@pytest.mark.parametrize('wrapped', [False, True], ids=['', 'wrapped'])
def test_annotations_that_cannot_be_trained_on(case, wrapped, odd):
    spoil, sentence = BAD_ANNOTATIONS[case]
    spoil(odd)
    loader = Config.fromfile(MASK_RCNN).train_dataloader
    loader.update(num_workers=0, batch_sampler=None)
    loader.dataset.data_root = str(odd)
    if wrapped:
        loader.dataset = dict(type='RepeatDataset', times=2, dataset=loader.dataset)
        sentence = sentence.replace('CocoDataset: ', 'RepeatDataset: ')
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises((ConfigError, DataError), match=sentence):
        data = Runner.build_dataloader(loader).dataset
        for index in range(len(data)):
            data[index]


def test_a_bad_mask_of_a_file_that_is_not_small_names_its_image(odd, monkeypatch):
    monkeypatch.setattr(annotations, 'SMALL_FILE', 0)
    change_object(segmentation=[1, 1, 9, 1, 9, 9])(odd)
    loader = Config.fromfile(MASK_RCNN).train_dataloader
    loader.update(num_workers=0, batch_sampler=None)
    loader.dataset.data_root = str(odd)
    sentence = r'train2017/3.jpg has an object with a segmentation of \[1, 1, 9, 1, 9, 9\], and not a list of polygons'
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(DataError, match=sentence):
        list(Runner.build_dataloader(loader).dataset)


def test_detectors_of_boxes_do_not_mind_masks(odd):
    change_object(segmentation=[1, 1, 9, 1, 9, 9])(odd)
    loader = Config.fromfile(MASK_RCNN).train_dataloader
    loader.update(num_workers=0, batch_sampler=None)
    loader.dataset.data_root = str(odd)
    loader.dataset.pipeline[1].with_mask = False
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert all(len(sample['data_samples'].gt_instances) for sample in Runner.build_dataloader(loader).dataset)


def test_objects_on_images_that_are_not_listed_are_told(odd, monkeypatch):
    """As in a list of images that was made shorter; mmdet leaves them out."""
    said = []
    monkeypatch.setattr(annotations, 'print_log', lambda text, **_: said.append(text))
    change_file(lambda found: found['annotations'][0].update(image_id=99))(odd)
    loader = Config.fromfile(MASK_RCNN).train_dataloader
    loader.update(num_workers=0, batch_sampler=None)
    loader.dataset.data_root = str(odd)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert len(Runner.build_dataloader(loader).dataset) == 1
    assert len(said) == 1 and re.search(r'^1 of 3 annotations .* such as 99, .*: they are left out$', said[0])


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


def test_a_file_that_is_not_small_is_read_once(odd, monkeypatch):
    monkeypatch.setattr(annotations, 'SMALL_FILE', 0)
    monkeypatch.setattr(annotations, 'load', None)
    loader = Config.fromfile(MASK_RCNN).train_dataloader
    loader.update(num_workers=0, batch_sampler=None)
    loader.dataset.data_root = str(odd)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert len(Runner.build_dataloader(loader).dataset) == 2  # and only where something is suspicious again
        change_file(lambda found: found['categories'].pop())(odd)
        with pytest.raises(TypeError):
            Runner.build_dataloader(loader)


def test_one_class_is_no_string(odd):
    loader = Config.fromfile(MASK_RCNN).train_dataloader
    loader.update(num_workers=0, batch_sampler=None)
    loader.dataset.update(data_root=str(odd), metainfo=dict(classes='disc'))
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(ConfigError, match=r"write \('disc',\) for one"):
        Runner.build_dataloader(loader)


PANOPTIC = dict(
    images=[dict(id=1, file_name='1.jpg', height=4, width=4)], categories=[dict(id=1, name='disc', isthing=1)],
    annotations=[dict(image_id=1, file_name='1.png', segments_info=[
        dict(id=1, category_id=1, area=16, bbox=[0, 0, 4, 4], iscrowd=0)])])


def test_panoptic_annotations_are_left_alone(tmp_path):
    from mmdet.datasets import CocoPanopticDataset
    from mmdet.datasets.api_wrappers import COCOPanoptic
    (tmp_path / 'panoptic.json').write_text(json.dumps(PANOPTIC))
    file = str(tmp_path / 'panoptic.json')
    data = CocoPanopticDataset(ann_file=file, data_prefix=dict(img=str(tmp_path), seg=str(tmp_path)), pipeline=[],
                               metainfo=dict(classes=('disc',), thing_classes=('disc',), stuff_classes=()))
    check_categories(data)
    metric = SimpleNamespace(_coco_api=COCOPanoptic(file))
    check_metrics(SimpleNamespace(metrics=[metric]), metric_configs(dict(ann_file=file), 'val_evaluator'), True, data,
                  data)
    assert metric._coco_api.dataset['info'] == {}


def test_each_metric_of_several_data_sets_has_its_own(odd):
    """As mmdet's MultiDatasetsEvaluator pairs them; one evaluator without prefixes judges all of them."""
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO
    files = [str(odd / 'annotations' / f'instances_{split}2017.json') for split in ('train', 'val')]
    data = ConcatDataset([CocoDataset(ann_file=file, data_prefix=dict(img=str(odd)), pipeline=[],
                                      metainfo=dict(classes=objects.CLASSES)) for file in files])
    metrics = [SimpleNamespace(_coco_api=COCO(file)) for file in files]
    configs = metric_configs(dict(metrics=[dict(ann_file=file) for file in files]), 'val_evaluator')
    check_metrics(SimpleNamespace(metrics=metrics, dataset_prefixes=('a', 'b')), configs, True, data, None)
    lacks = r"^val_evaluator.metrics.1.ann_file='.*val2017.json' lacks \d of the 4 images"
    turned = SimpleNamespace(metrics=metrics[::-1], dataset_prefixes=('a', 'b'))
    with pytest.raises(ConfigError, match=lacks):
        check_metrics(turned, configs[::-1], True, data, None)
    with pytest.raises(ConfigError, match=r"^val_evaluator.metrics.\d.ann_file='.*' lacks \d of the \d images"):
        check_metrics(SimpleNamespace(metrics=metrics), configs, True, data, None)


WRONG = {
    'a metric': (['val_evaluator.metric=mAP'], r"the evaluator cannot be built: metric should be one of 'bbox', "),
    'batch': (['train_dataloader.batch_size=0'], 'train_dataloader.batch_size=0 must be a whole number of at least 1'),
    'channels of the neck': (['model.neck.out_channels=48'],
                             r'model.rpn_head.in_channels=\d+, but model.neck.out_channels=48: make them equal'),
    'classes of the metric': (lambda root: spoil_metric(root, fewer_classes),
                              r"val_evaluator.ann_file='.*other.json' has no category 'ring' .*, or name the file of"),
    'order of the metric': (lambda root: spoil_metric(root, turn_categories),
                            r"the categories of .*train2017.json and val_evaluator.ann_file='.*other.json' are in "
                            r"different orders; the first that differs, at place 0, is 'disc' and 'cross': mmdet"),
    'name of the metric': (['val_evaluator.type=mmtok.Acuracy'],
                           r"'mmtok.Acuracy' \(val_evaluator.type\) is the name of no class that is registered; is "
                           r"'mmtok.Accuracy' meant\? Else correct it, or have custom_imports"),
    'categories from 0': (lambda root: spoil_metric(root, from_zero),
                          r"\d+ of \d+ annotations in val_evaluator.ann_file='.*other.json' have a category_id, such "
                          r"as 0, that is none of the file's \(1, 2, 3, 4, 5\)"),
    'images of the metric': (lambda root: spoil_metric(root, other_images),
                             r"val_evaluator.ann_file='.*other.json' lacks 3 of the 3 images of .*val2017.json, "
                             'such as the id 1: name the same file'),
    'checkpoint': (['load_from=gone.pth'], "checkpoint 'gone.pth' does not exist: put it there or name another"),
    'image': (spoil_image, r'train2017/2.jpg is not there, but the data set lists it'),
    'list': (spoil_list, r'CocoDataset: .*instances_train2017.json is not there; name the right folder'),
    'padding before the preprocessor': (
        ['train_dataloader.dataset.pipeline.2.type=Pad'],
        r'train_dataloader.dataset.pipeline.2 \(Pad\) pads images before they are normalised'),
    'annotations of the metric': (['val_evaluator.ann_file=/no.json'],
                                  r"'/no.json' \(val_evaluator.ann_file\) is not there: name the file"),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_missing_is_said_in_one_sentence(case, odd, fork_tool, tmp_path):
    spoil, sentence = WRONG[case]
    changed = spoil(odd) or [] if callable(spoil) else spoil
    run = fork_tool('mmdet/train', MASK_RCNN, '--work-dir', tmp_path / 'work', '--cfg-options', *options(odd),
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
    run = fork_tool('mmdet/train', MASK_RCNN, '--work-dir', tmp_path / 'work', '--cfg-options', *options(root),
                    'train_cfg.val_interval=1', 'model.test_cfg.rcnn.score_thr=0.0', cwd=tmp_path)
    assert run.returncode == 0 and 'coco/bbox_mAP' in run.stdout, run.stdout[-3000:]
    assert 'in the order of the annotation file, which is cross, triangle, ' in run.stdout
    assert f'{bad} cannot be decoded' in run.stdout and 'another image takes its place' in run.stdout
