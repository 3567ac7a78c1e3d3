"""Annotation files in COCO's format that a user has: what mmdet would read wrongly, and what it takes."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.dataset import ConcatDataset
from mmengine.registry import DefaultScope
from PIL import Image

from conftest import ROOT
from mmtok.engine import annotations
from mmtok.engine import objects as kept_objects
from mmtok.engine.annotations import check_annotation_files
from mmtok.engine.loops import check_metrics, metric_configs
from mmtok.engine.runner import Runner
from mmtok.errors import ConfigError, DataError

sys.path.insert(0, str(ROOT / 'tools' / 'demo'))
import objects

DEMO, = (ROOT / 'configs' / 'demo').glob('mask-rcnn*.py')


def loader_of(root):
    """The training images of a Mask R-CNN, in this process."""
    loader = Config.fromfile(DEMO).train_dataloader
    loader.update(num_workers=0, batch_sampler=None)
    loader.dataset.data_root = str(root)
    return loader


def dataset_of(loader):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return Runner.build_dataloader(loader).dataset


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


def repeat_category(found):
    found['categories'][1]['name'] = 'disc'


def shrink_boxes(found):
    for item in found['annotations']:
        item['bbox'] = [value / 1000 for value in item['bbox']]


def corners_for_sizes(found):
    for item in found['annotations']:
        item['bbox'] = [10, 10, 1000, 90]


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
    'a box without numbers': (change_object(bbox=[1, 2, float('nan'), 9]),
                              r'an annotation \(id 2, bbox=\[1, 2, NaN, 9\], .*\) whose bbox or area is no finite'),
    'boxes in parts of an image': (change_file(shrink_boxes),
                                   '3 of 3 annotations in .* less than a pixel wide or high.*: mmdet would leave them'),
    'no image folder': (lambda root: shutil.rmtree(root / 'train2017'),
                        'Dataset: .*2.jpg, the first of 2 images, is not there, but the data set lists it'),
    'a box that is none': (change_object(bbox=None), 'annotation with id 2 has bbox=null and area=2400, on'),
    'a box of three numbers': (change_object(bbox=[1, 2, 3]), r'annotation with id 2 has bbox=\[1, 2, 3\] and'),
    'an area that is none': (change_object(area=None), 'id 2 has .* and area=null, .*: bbox must be four'),
    'a code of words': (change_object(segmentation=dict(size=[96, 128], counts=['1', '2'])),
                        r'an object with a run-length code of \["1", "2"\], which are no numbers'),
    'a flat polygon': (change_object(segmentation=[1, 1, 9, 1, 9, 9]),
                       '3.jpg has an object with a segmentation of .1, 1, 9, 1, 9, 9., and not a list of polygons'),
    'a polygon of words': (change_object(segmentation=[['1', '1', '9', '1', '9', '9']]),
                           '/3.jpg has an object with a polygon with "1"'),
    'a code of another size': (change_object(segmentation=dict(size=[9, 9], counts=[80, 1])),
                               r'an object with a run-length code for \[9, 9\] .*, while the image has \[96, 128\]'),
    'a code that is too long': (change_object(segmentation=dict(size=[96, 128], counts=[96 * 128, 5])),
                                r'an object with a run-length code of 12293 pixels in all, while its size is \[96'),
    'areas': (without('annotations', 'area'), r"instances_train2017.json' \(ann_file\) lacks 'area', in its images or"),
    'sizes': (without('images', 'height'), r"instances_train2017.json' \(ann_file\) lacks 'height'"),
    'format': (spoil_format, r"CocoDataset: '/.*json' \(ann_file\) is no JSON, or cut short \(Expecting value"),
    'identities': (repeat_annotation, r'CocoDataset: Annotation ids in .* are not unique'),
}


@pytest.mark.parametrize('case', BAD_ANNOTATIONS)
@pytest.mark.parametrize('wrapped', [False, True], ids=['', 'wrapped'])
def test_annotations_that_cannot_be_trained_on(case, wrapped, odd_coco):
    spoil, sentence = BAD_ANNOTATIONS[case]
    spoil(odd_coco)
    loader = loader_of(odd_coco)
    if wrapped:
        loader.dataset = dict(type='RepeatDataset', times=2, dataset=loader.dataset)
        sentence = sentence.replace('CocoDataset: ', 'RepeatDataset: ')
    with pytest.raises((ConfigError, DataError), match=sentence):
        data = dataset_of(loader)
        for index in range(len(data)):
            data[index]


FLAT, WRONG_RUNS = [1, 1, 9, 1, 9, 9], dict(size=[9, 9], counts=[81])
NO_OBJECT = dict(bbox=[0, 0, 0, 0], area=None, segmentation=FLAT)
# What becomes of the second object, and what else is set of the data set
TAKEN = {
    'ignored': (dict(ignore=1, bbox=None, segmentation=FLAT), {}),
    'of a class that is left out': (dict(segmentation=FLAT), {'dataset.metainfo.classes': ('ring', 'triangle')}),
    'of no extent': (NO_OBJECT, {}),
    'on an image that is not listed': (dict(image_id=99, bbox=None), {}),
    'a code': (dict(iscrowd=1, segmentation=dict(size=[96, 128], counts=[96 * 128 - 10, 10])), {}),
    'a compressed code': (dict(segmentation=dict(size=[96, 128], counts='`0`0P1P0')), {}),
    'a code without runs': (dict(segmentation=dict(size=[96, 128])), {}),
    'parts that are no polygons': (dict(segmentation=[[12, None], [1, 2, 3], [10, 10, 60, 10, 60, 40]]), {}),
    'a code where polygons are read': (dict(segmentation=WRONG_RUNS), {'dataset.pipeline.1.poly2mask': False})}


@pytest.mark.parametrize('case', TAKEN)
def test_what_mmdet_takes_is_not_refused(case, odd_coco):
    """It leaves some objects out, and some masks."""
    values, more = TAKEN[case]
    change_object(**values)(odd_coco)
    loader = Config(loader_of(odd_coco).to_dict())
    loader.merge_from_dict({'dataset.filter_cfg.filter_empty_gt': False, **more})
    for sample in dataset_of(loader.to_dict()):
        assert sample['inputs'].ndim == 3


def test_a_bad_mask_of_a_file_that_is_not_small_names_its_image(odd_coco, monkeypatch):
    monkeypatch.setattr(annotations, 'SMALL_FILE', 0)
    change_object(segmentation=FLAT)(odd_coco)
    data = dataset_of(loader_of(odd_coco))
    with pytest.raises(DataError, match=r'/3.jpg has an object with a segmentation of \[1, 1, 9, 1, 9, 9\], and not a'):
        list(data)


def test_detectors_of_boxes_do_not_mind_masks(odd_coco):
    change_object(segmentation=FLAT)(odd_coco)
    loader = loader_of(odd_coco)
    loader.dataset.pipeline[1].with_mask = False
    assert all(len(sample['data_samples'].gt_instances) for sample in dataset_of(loader))


@pytest.mark.parametrize('change, sentence', [
    (lambda found: found['annotations'][1].update(bbox=[-50, 0, 20, 20]),
     r'^1 of 3 annotations in .* such as that with id 2, bbox=\[-50, 0, 20, 20\], .*: mmdet leaves them out$'),
    (corners_for_sizes, r'^3 of 3 boxes in .* reach beyond their image, such as .*, not a second corner$')])
def test_objects_that_mmdet_leaves_out_or_cuts_are_told(change, sentence, odd_coco, monkeypatch):
    said = []
    monkeypatch.setattr(kept_objects, 'print_log', lambda text, **_: said.append(text))
    dataset_of(loader_of(odd_coco))
    assert not said
    change_file(change)(odd_coco)
    dataset_of(loader_of(odd_coco))
    assert sum(bool(re.search(sentence, text)) for text in said) == 1, said


def test_objects_on_images_that_are_not_listed_are_told(odd_coco, monkeypatch):
    """As in a list of images that was made shorter; mmdet leaves them out."""
    said = []
    monkeypatch.setattr(annotations, 'print_log', lambda text, **_: said.append(text))
    change_file(lambda found: found['annotations'][0].update(image_id=99))(odd_coco)
    assert len(dataset_of(loader_of(odd_coco))) == 1
    assert len(said) == 1 and re.search(r'^1 of 3 annotations .* such as 99, .*: they are left out$', said[0])


def test_a_file_that_is_not_small_is_read_once(odd_coco, monkeypatch):
    monkeypatch.setattr(annotations, 'SMALL_FILE', 0)
    monkeypatch.setattr(annotations, 'load', None)
    assert len(dataset_of(loader_of(odd_coco))) == 2  # and only where something is suspicious again
    change_file(lambda found: found['categories'].pop())(odd_coco)
    with pytest.raises(TypeError):
        dataset_of(loader_of(odd_coco))


def test_one_class_is_no_string(odd_coco):
    loader = loader_of(odd_coco)
    loader.dataset.metainfo = dict(classes='disc')
    with pytest.raises(ConfigError, match=r"write \('disc',\) for one"):
        dataset_of(loader)


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
    check_annotation_files(data)
    metric = SimpleNamespace(_coco_api=COCOPanoptic(file))
    check_metrics(SimpleNamespace(metrics=[metric]), metric_configs(dict(ann_file=file), 'val_evaluator'), True, data,
                  data)
    assert metric._coco_api.dataset['info'] == {}


def test_each_metric_of_several_data_sets_has_its_own(odd_coco):
    """As mmdet's MultiDatasetsEvaluator pairs them; one evaluator without prefixes judges all of them."""
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO
    files = [str(odd_coco / 'annotations' / f'instances_{split}2017.json') for split in ('train', 'val')]
    data = ConcatDataset([CocoDataset(ann_file=file, data_prefix=dict(img=str(odd_coco)), pipeline=[],
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
