"""Data sets whose bad files are named: what cannot be decoded, masks that do not fit, labels out of range."""

import logging
import os

import numpy as np
from mmengine.dataset import BaseDataset, Compose
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError


class CheckedPipeline(Compose):
    """The pipeline of a built data set, which names the file that a step fails on.

    With `skip_undecodable`, for training, a file that cannot be decoded costs one warning, and the data set draws
    another sample in its place (mmengine's rule for a pipeline that returns None).

    Raises:
        DataError: For a file that is missing, or that cannot be decoded and must not be skipped; for a semantic map
            of another size than its image, or with a label that the data set does not have.
    """

    def __init__(self, dataset: BaseDataset, skip_undecodable: bool) -> None:
        super().__init__(dataset.pipeline.transforms)
        self.skip_undecodable = skip_undecodable
        self.num_classes = len(dataset.metainfo.get('classes') or ())
        self.ignore_index = getattr(dataset, 'ignore_index', 255)
        self.skipped = set()

    def __call__(self, sample: dict) -> dict | None:
        image, semantic_map = sample.get('img_path'), sample.get('seg_map_path')
        for transform in self.transforms:
            name, mapped = type(transform).__name__, 'gt_seg_map' in sample
            file = semantic_map if 'img' in sample and semantic_map else image
            try:
                sample = transform(sample)
            except FileNotFoundError as error:
                raise DataError(f'{error.filename or file} is not there, but the data set lists it') from error
            except Exception as error:
                if not name.startswith('Load'):  # a fault of the step or its settings: its traceback matters
                    print_log(f'{name} failed on {image}', logger='current', level=logging.ERROR)
                    raise
                return self.skip(file, error)
            if sample is None:
                return None
            if not mapped and 'gt_seg_map' in sample:
                self.check_map(sample['gt_seg_map'], semantic_map, sample.get('ori_shape'), image)
        return sample

    def skip(self, file: str, error: Exception) -> None:
        """Says which file cannot be decoded, once a worker."""
        empty = os.path.isfile(file) and os.path.getsize(file) == 0
        reason = 'it is empty' if empty else ' '.join(f'{type(error).__name__}: {error}'.split())
        sentence = f'{file} cannot be decoded ({reason})'
        if not self.skip_undecodable:
            raise DataError(f'{sentence}: replace it, or take it out of the data set') from error
        if file not in self.skipped:
            self.skipped.add(file)
            print_log(f'{sentence}: skipped, another image takes its place', logger='current', level=logging.WARNING)

    def check_map(self, labels: np.ndarray, file: str, image_shape: tuple | None, image: str) -> None:
        """`labels`: as loaded, (H,W); `image_shape`: the image's (H,W) as loaded."""
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
                    f'{file} holds the label {beyond.max()}, but the data set has {self.num_classes} classes (labels '
                    f'0 to {self.num_classes - 1}, and {self.ignore_index} for pixels to ignore, as the pipeline loads '
                    'them): mend the file, reduce_zero_label or metainfo.classes')


def base_datasets(dataset: Dataset) -> list[BaseDataset]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if isinstance(dataset, BaseDataset):
        return [dataset]
    inner = [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())]
    return [found for child in inner if child is not None for found in base_datasets(child)]


def build_dataset(cfg: dict, skip_undecodable: bool = False) -> Dataset:
    """The data set of a config, not empty, whose bad files are named.

    Raises:
        ConfigError: A folder or list is missing, or nothing was found; an infinite sampler would wait for it for ever.
    """
    try:
        dataset = DATASETS.build(cfg)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    except FileNotFoundError as error:
        raise ConfigError(f'{cfg.get("type")}: {error.filename or error} is not there; name the right folder or file '
                          'in data_root, data_prefix or ann_file') from error
    except ValueError as error:
        if 'need at least one array to concatenate' not in str(error):  # numpy's, from serializing an empty list
            raise
        raise ConfigError(no_image(cfg)) from error
    for base in base_datasets(dataset):
        if len(base) == 0:
            raise ConfigError(no_image(cfg))
        if isinstance(base.pipeline, Compose):
            base.pipeline = CheckedPipeline(base, skip_undecodable)
    return dataset


def no_image(cfg: dict) -> str:
    """The sentence for an empty data set."""
    places = [f'{key}={cfg[key]!r}' for key in ('data_root', 'data_prefix', 'ann_file', 'img_suffix') if cfg.get(key)]
    return (f'{cfg.get("type")} found no image with {", ".join(places)}: put the images there, or name another folder '
            'or img_suffix')
