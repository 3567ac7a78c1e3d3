"""Data sets whose bad files are named: what cannot be decoded, masks that do not fit, labels out of range."""

import contextlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from mmengine.dataset import BaseDataset, Compose
from mmengine.logging import print_log
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError
from .objects import explained_objects, fault_of_sample
from .preflight import dicts_with, is_local

# What OpenCV, Pillow and mmcv raise about the bytes of a file
CONTENT_ERRORS = (cv2.error, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def is_about_content(error: Exception) -> bool:
    """Whether a loading step failed on what is in the file, and not on settings, packages or the file system."""
    if isinstance(error, OSError):
        return error.errno is None  # Pillow's own; the system's have a number
    if isinstance(error, AssertionError):
        return 'failed to load image' in str(error)  # mmcv's
    if isinstance(error, AttributeError):
        return error.obj is None and error.name in ('squeeze', 'shape', 'ndim', 'astype')  # OpenCV's None for an array
    return isinstance(error, CONTENT_ERRORS)


def why_undecodable(error: Exception) -> str:
    """On one line."""
    if isinstance(error, UnidentifiedImageError):  # it would name an address in memory
        return 'Pillow knows no such kind of image'
    return ' '.join(f'{type(error).__name__}: {error}'.split())


KEYS = ('images', 'annotations', 'categories', 'id', 'name', 'image_id', 'category_id', 'bbox', 'area', 'segmentation',
        'height', 'width', 'file_name')  # of COCO's format


class SkippedFiles:
    """The files that a data set could not decode, as far as this process or data worker has met them."""

    def __init__(self, images: int):
        self.bearable, self.files = min(max(10, images // 100), images // 4), set()

    def add(self, file: str, error: Exception, may_skip: bool) -> None:
        """Says which file cannot be decoded, once.

        Raises:
            DataError: It must not be skipped, or is one too many (over 10 and over 1 % of the data set, or over a
                quarter of it).
        """
        empty = os.path.isfile(file) and os.path.getsize(file) == 0
        reason = 'it is empty' if empty else why_undecodable(error)
        sentence = f'{file} cannot be decoded ({reason})'
        if not may_skip:
            raise DataError(f'{sentence}: replace it, or take it out of the data set') from error
        if file not in self.files:
            self.files.add(file)
            if len(self.files) > self.bearable:
                raise DataError(f'{sentence}, as {self.bearable} others before it: mend the data set') from error
            print_log(f'{sentence}: skipped, another image takes its place', logger='current', level=logging.WARNING)


class CheckedPipeline(Compose):
    """The pipeline of a built data set, which names the file that a step fails on.

    With `skip_undecodable`, for training, a file that cannot be decoded costs one warning from each data worker that
    meets it, and the data set draws another sample in its place (mmengine's rule for a pipeline that returns None).

    Raises:
        DataError: For a file that is missing, or that cannot be decoded (see `SkippedFiles`); for a semantic map of
            mmseg's data sets of another size than its image, or with a label that the data set does not have; for an
            image of another size than its annotations in COCO's format say, or with a mask that cannot be read.
    """

    def __init__(self, dataset: BaseDataset, skip_undecodable: bool) -> None:
        super().__init__(dataset.pipeline.transforms)
        self.skip_undecodable = skip_undecodable
        self.is_mmseg, self.is_coco = hasattr(dataset, 'reduce_zero_label'), hasattr(dataset, 'cat_ids')
        self.num_classes = len(dataset.metainfo.get('classes') or ())
        self.ignore_index = getattr(dataset, 'ignore_index', 255)
        self.skipped = SkippedFiles(len(dataset))

    def __call__(self, sample: dict) -> dict | None:
        image, semantic_map = sample.get('img_path'), sample.get('seg_map_path')
        for transform in self.transforms:
            name, loaded = type(transform).__name__, 'img' in sample
            file = semantic_map if loaded and semantic_map else image
            try:
                sample = transform(sample)
            except FileNotFoundError as error:
                raise DataError(f'{error.filename or file} is not there, but the data set lists it: put it there, or '
                                'name the right folder in data_root or data_prefix') from error
            except Exception as error:
                if name.startswith('Load') and is_about_content(error):
                    return self.skipped.add(file, error, self.skip_undecodable)
                if isinstance(error, KeyError) and error.args == ('mask',):  # mmdet's
                    raise DataError(f'{image} has an object without a segmentation, but this pipeline loads masks: '
                                    'add it to the annotations, take the object out, or train a detector without '
                                    'masks') from error
                if self.is_coco and (fault := fault_of_sample(sample, transform)):
                    raise DataError(f'{image} has an object with {fault}: mend the annotations') from error
                print_log(f'{name} failed on {file}', logger='current', level=logging.ERROR)
                raise
            if sample is None:
                return None
            if self.is_coco and not loaded and 'img' in sample:
                self.check_size(sample, image)
            if self.is_mmseg and name == 'LoadAnnotations':
                self.check_map(sample['gt_seg_map'], semantic_map, sample.get('ori_shape'), image,
                               getattr(transform, 'reduce_zero_label', None) or sample.get('reduce_zero_label', False))
        return sample

    def check_size(self, sample: dict, image: str) -> None:
        """The image just loaded has the size for which its boxes and masks were drawn."""
        said, found = (sample.get('height'), sample.get('width')), sample['img'].shape[:2]
        if None not in said and said != tuple(found):
            raise DataError(
                f'{image} is {found[1]}x{found[0]} pixels, but its annotations are for {said[1]}x{said[0]} (width and '
                'height in ann_file): they must be of one size; a photo that an EXIF tag turns is loaded turned, so '
                'write it anew without the tag')

    def check_map(self, labels: np.ndarray, file: str, image_shape: tuple | None, image: str, reduced: bool) -> None:
        """`labels`: as loaded, (H,W), 1 less than in the file if `reduced`; `image_shape`: the image's (H,W)."""
        if labels.ndim != 2:
            raise DataError(f'{file} loads as an array of shape {labels.shape}: a semantic map has one channel, which '
                            'holds the labels, and is more than one pixel high and wide')
        if image_shape is not None and labels.shape != tuple(image_shape[:2]):
            raise DataError(f'{file} is {labels.shape[1]}x{labels.shape[0]} pixels, but its image {image} is '
                            f'{image_shape[1]}x{image_shape[0]}: they must be of one size')
        if self.num_classes and labels.size and labels.max() >= self.num_classes:
            beyond = labels[(labels >= self.num_classes) & (labels != self.ignore_index)]
            if beyond.size:
                raise DataError(
                    f'{file} holds the label {int(beyond.max()) + reduced}, but the data set has {self.num_classes} '
                    f'classes (labels {int(reduced)} to {self.num_classes - 1 + reduced}; reduce_zero_label={reduced}; '
                    'labels are read as 8 bits): mend the file, reduce_zero_label or metainfo.classes')


def base_datasets(dataset: Dataset) -> list[BaseDataset]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if isinstance(dataset, BaseDataset):
        return [dataset]
    inner = [*(getattr(dataset, name, None) for name in ('dataset', '_dataset')),
             *(getattr(dataset, 'datasets', None) or ())]
    return [found for child in inner if child is not None for found in base_datasets(child)]


def check_samples(dataset: Dataset, skip_undecodable: bool) -> None:
    """Make the built data sets name their bad files, and refuse empty ones.

    Raises:
        ConfigError: Nothing was found, for which an infinite sampler would wait for ever; a folder is not there.
    """
    for base in base_datasets(dataset):
        if len(base) == 0:
            raise ConfigError(nothing_found(vars(base), type(base).__name__))
        check_first_image(base)
        maps = base.data_prefix.get('seg_map_path')
        if hasattr(base, 'reduce_zero_label') and maps and '://' not in maps and not os.path.isdir(maps):
            raise ConfigError(f'{type(base).__name__}: {maps} is not there; name the right folder in data_root or '
                              'data_prefix.seg_map_path')
        if isinstance(base.pipeline, Compose):
            base.pipeline = CheckedPipeline(base, skip_undecodable)


def check_first_image(dataset: BaseDataset) -> None:
    """An image folder that is not there is found before training, and not when it is due, as a file is.

    Raises:
        ConfigError: The first image is not there.
    """
    image = dataset.get_data_info(0).get('img_path')
    if is_local(image, getattr(dataset, 'backend_args', None)) and not os.path.exists(image):
        raise ConfigError(f'{type(dataset).__name__}: {image}, the first of {len(dataset)} images, is not there, but '
                          'the data set lists it: put it there, or name the right folder in data_root or data_prefix')


@contextlib.contextmanager
def explained_data(cfg: object, name: str = '') -> Iterator[None]:
    """One sentence where mmengine builds the data set, or the evaluator, of this config and cannot find its files.

    Raises:
        ConfigError: A folder or list is missing, empty, or not in the format that it should have.
    """
    kind = name or (cfg.get('type') if isinstance(cfg, dict) else type(cfg).__name__)
    for _, one in dicts_with(cfg, 'metainfo', kind):
        classes = (one['metainfo'] or {}).get('classes')
        # mmengine reads a file of them
        if isinstance(classes, str) and '://' not in classes and not os.path.isfile(classes):
            raise ConfigError(f'{one.get("type")}: metainfo.classes={classes!r} is a string, of which each letter '
                              f'would be a class: write ({classes!r},) for one class')
    files = ' or '.join(dict.fromkeys(repr(os.path.join(one.get('data_root') or '', one['ann_file']))
                                      for _, one in dicts_with(cfg, 'ann_file', kind) if one['ann_file']))
    try:
        with explained_objects():
            yield
    except FileNotFoundError as error:
        raise ConfigError(f'{kind}: {error.filename or error} is not there; name the right folder or file in '
                          'data_root, data_prefix or ann_file') from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        if not files:
            raise
        raise ConfigError(f'{kind}: {files} (ann_file) is no JSON, or cut short ({error}): name the right '
                          'file') from error
    except ValueError as error:
        if 'need at least one array to concatenate' not in str(error):  # numpy's, from serializing an empty list
            raise
        inner = next((one for _, one in dicts_with(cfg, 'ann_file', kind)), cfg)
        raise ConfigError(nothing_found(inner, inner.get('type', kind))) from error
    except KeyError as error:
        if not files or error.args[0] not in KEYS:
            raise
        raise ConfigError(f'{kind}: {files} (ann_file) lacks {error.args[0]!r}, in its images or '
                          'annotations or beside them: complete it, see the format of the data set') from error
    except AssertionError as error:
        if not str(error):
            raise
        raise ConfigError(f'{kind}: {error}') from error


@contextlib.contextmanager
def explained_anchors() -> Iterator[None]:
    """One sentence where mmdet finds no anchor inside a training image, which its `allowed_border=0` asks for.

    Raises:
        DataError: Names the image.
    """
    try:
        yield
    except ValueError as error:
        if 'no valid anchor inside the image' not in str(error):
            raise
        last = error.__traceback__
        while last.tb_next:
            last = last.tb_next
        meta = last.tb_frame.f_locals.get('img_meta') or {}
        name, shape = meta.get('img_path', 'an image of the batch'), meta.get('img_shape')
        raise DataError(
            f'{name}, scaled to (height, width) {shape}, is so narrow that no anchor lies inside: leave such images '
            'out (train_dataloader.dataset.filter_cfg.min_size), or let anchors reach beyond their images '
            '(model.train_cfg.rpn.allowed_border=-1)') from error


def nothing_found(options: dict, kind: str) -> str:
    """The sentence for an empty data set."""
    names = ('data_root', 'data_prefix', 'ann_file', 'img_suffix')
    places = ', '.join(f'{key}={options[key]!r}' for key in names if options.get(key))
    remedy = ('see whether ann_file lists images there, and whether metainfo.classes and filter_cfg leave any over'
              if options.get('ann_file') else 'put the images there, or name another folder or img_suffix')
    return f'{kind} found no image with {places}: {remedy}'
