"""Annotation files in COCO's format whose categories, images or masks are not what the data set or the metric takes."""

import logging
import os
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from mmengine.dataset import BaseDataset
from mmengine.fileio import load
from mmengine.logging import print_log
from torch.utils.data import Dataset

from ..errors import ConfigError
from .objects import check_boxes, check_masks
from .preflight import compare_classes
from .samples import base_datasets

SMALL_FILE = 1 << 26  # bytes: half a second to read


def first_of(names: Iterable[str], count: int = 10) -> str:
    """A list of names for a sentence."""
    names = list(names)
    return ', '.join(names[:count]) + ', ...' * (len(names) > count)


def is_small(file: str) -> bool:
    """Whether an annotation file may be read once more, to be looked at."""
    return os.path.isfile(file) and os.path.getsize(file) <= SMALL_FILE


def read_annotations(dataset: BaseDataset) -> dict:
    """The annotation file of a data set of mmdet's in COCO's format."""
    return load(dataset.ann_file, backend_args=getattr(dataset, 'backend_args', None))


def names_of(annotations: dict) -> dict[int, str]:
    """The names of categories by id."""
    return {category['id']: category['name'] for category in annotations['categories']}


def categories_of(annotations: dict) -> list[int]:
    """The category of each object of a file in COCO's format; what belongs to panoptic maps is no object."""
    return [one['category_id'] for one in annotations.get('annotations', ()) if 'segments_info' not in one]


def check_annotation_files(dataset: Dataset) -> None:
    """Data sets of mmdet's in COCO's format find all of their classes in their annotation file, and those of objects.

    mmdet leaves out what it does not find, and gives the labels of the classes after it to others. A file that is not
    small is read again only where the data set gives reason to.

    Raises:
        ConfigError: Names the classes, images or masks.
    """
    for base in base_datasets(dataset):
        found, classes = getattr(base, 'cat_ids', None), base.metainfo.get('classes') or ()
        if found is None:
            continue
        agree = len(found) == len(classes) and set(getattr(base, 'cat_img_map', ())) <= set(found)
        if not agree or is_small(base.ann_file):
            annotations = read_annotations(base)
            check_listed(names_of(annotations), categories_of(annotations), found, classes, base.ann_file)
            check_images(annotations, base.ann_file)
            check_boxes(annotations, base.ann_file)
        if is_small(base.ann_file):
            check_masks(base)


def check_images(annotations: dict, file: str) -> None:
    """The objects of a file are on images that it lists; mmdet leaves out what is on others."""
    images = {image['id'] for image in annotations['images']}
    used = [one['image_id'] for one in annotations.get('annotations', ())]
    others = [number for number in used if number not in images]
    if not others:
        return
    sentence = (f'{len(others)} of {len(used)} annotations in {file} have an image_id, such as {others[0]!r}, that is '
                f'none of the file\'s ({first_of(map(repr, images), 3)})')
    if len(others) == len(used) or type(others[0]) is not type(next(iter(images), others[0])):
        raise ConfigError(f'{sentence}: mmdet would leave them out; write the ids of images alike')
    print_log(f'{sentence}: they are left out', logger='current', level=logging.WARNING)


def check_listed(names: dict[int, str], used: Sequence[int], found: Sequence[int], classes: Sequence[str],
                 file: str) -> None:
    """What mmdet `found (ids)` of the `classes` among the categories of a file, and what its objects `used`."""
    unknown = [number for number in used if number not in names]
    if unknown:
        raise ConfigError(f'{len(unknown)} of {len(used)} annotations in {file} have a category_id, such as '
                          f'{unknown[0]!r}, that is none of the file\'s ({first_of(map(repr, names))}): mmdet would '
                          'leave them out; mend the file')
    listed = [names[number] for number in found]
    repeated = [name for name in listed if listed.count(name) > 1]
    if repeated:
        raise ConfigError(f'{file} has the category {repeated[0]!r} {listed.count(repeated[0])} times: give the '
                          'objects of both one id, and list it once')
    if len(found) < len(classes):
        there = list(names.values())
        missing = [name for name in classes if name not in there]
        raise ConfigError(f'{file} has no category {first_of(map(repr, missing), 5)} of the {len(classes)} in the '
                          f'data set\'s metainfo.classes; it has {first_of(map(repr, there))}: write the names alike, '
                          'leave out what it does not have, or name the file of these data')


def check_annotations(annotations: object, dataset: Dataset, name: str, training: Dataset | None = None) -> None:
    """A metric's annotation file, a `COCO` of mmdet's, holds the classes and images of the data that it judges.

    `name` is what the config calls it, `training` what the model is trained on.

    Raises:
        ConfigError: It is that of others, or annotations have a category that is none of the file's, or it has the
            categories in another order than the file of the training images, so that mmdet would confuse them.
    """
    names, used = {number: found['name'] for number, found in annotations.cats.items()}, categories_of(
        annotations.dataset)
    for base in base_datasets(dataset):
        classes = base.metainfo.get('classes') or ()
        found = annotations.get_cat_ids(cat_names=classes)
        check_listed(names, used, found, classes, name)
        in_file = [names[number] for number in found]
        for trained in base_datasets(training) if training is not None else ():
            # Their order is that of the files; data in other formats may name more than is judged
            if hasattr(trained, 'cat_ids') and set(trained.metainfo.get('classes') or ()) != set(classes):
                compare_classes(trained.metainfo, 'train_dataloader.dataset', base.metainfo, f'the data set of {name}',
                                ' (metainfo.classes)')
            check_order(trained, found, in_file, name)
        if in_file != list(classes):
            print_log(f'mmdet numbers classes in the order of the annotation file, which is {first_of(in_file)}, '
                      'and not in that of metainfo.classes: pictures will show wrong names; put metainfo.classes in '
                      'this order', logger='current', level=logging.WARNING)
        images = [base.get_data_info(index).get('img_id') for index in range(len(base))]
        others = [image for image in images if image not in annotations.imgs]
        if others:
            raise ConfigError(f'{name} lacks {len(others)} of the {len(images)} images of {base.ann_file}, such as the '
                              f'id {others[0]!r}: name the same file in the evaluator as in the dataset')


def check_order(trained: BaseDataset, judged: Sequence[int], names: Sequence[str], file: str) -> None:
    """The file of the training images has its categories in the order of the metric's `file`: `judged (ids)`, `names`.

    mmdet numbers classes in that order, in each file for itself.
    """
    found = getattr(trained, 'cat_ids', None)
    if found is None or (list(found) == list(judged) and not is_small(trained.ann_file)):
        return
    listed = names_of(read_annotations(trained))
    ours = [listed[number] for number in found]
    if ours != list(names):
        here, there = next(pair for pair in zip_longest(ours, names) if pair[0] != pair[1])
        raise ConfigError(f'the categories of {trained.ann_file} and {file} are in different orders; the first that '
                          f'differs is {here!r} there and {there!r} here: mmdet numbers classes in the order of each '
                          'file, and would take one for another; write both in one order')
