"""Sharded data sets that are read one after the other, through timm's readers: wds/, hfids/, tfds/."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import DistSamplerSeedHook
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import IterableDataset

from ..engine.samples import is_about_content, why_undecodable
from ..errors import ConfigError, DataError
from ..registry import DATASETS, HOOKS
from .images import STREAMS, make_transform

EXTRAS = {'wds/': 'webdataset', 'hfids/': 'datasets', 'tfds/': 'tensorflow_datasets'}


@DATASETS.register_module()
class ImageStream(IterableDataset):
    """A data set in shards, for images that have outgrown one disk. Its dataloader has `sampler=None`.

    timm's readers shuffle shards and images, and share shards among processes and data workers. In training each
    worker gives as many images as any other, whole batches of them, and begins its shards again where they are fewer.
    To be evaluated, each image is read once, by one worker. The order of the shards follows from seed and epoch; that
    of the images, and what their augmentation draws, depend on the data worker and on what it has read before.
    `mmtok.Runner` tells the reader the dataloader's batch size, workers and seed (`follow`).

    Args:
        name: 'wds/' (webdataset; `data_root` holds the shards, `split` names them, as in
            'train-{0000..0099}.tar|100000'), 'hfids/NAME' (Hugging Face, streamed) or 'tfds/NAME'.
        data_root: Folder of the shards or of the cache.
        split: Of the reader.
        transform: Options of timm's `create_transform`; `is_training` makes the reader shuffle too.
        reader: More options of timm's `create_dataset`, such as `num_samples`.

    Raises:
        ConfigError: When the reader cannot be made, with the package that it lacks; for a shard that is not there, and
            when the number of images is not known.
        DataError: While reading, for an image that cannot be decoded; timm's reader of wds/ leaves those out.
    """

    def __init__(self, name: str, data_root: str | None, split: str, transform: dict | None = None,
                 reader: dict | None = None):
        kind = next((kind for kind in STREAMS if name.startswith(kind)), None)
        if kind is None:
            raise ConfigError(f'name={name!r} is no stream; mmtok.ImageStream takes {", ".join(STREAMS)}, '
                              'mmtok.ImageDataset the others')
        self.where, transform = f'{name} with split={split!r}', transform or {}
        self.is_training = transform.get('is_training', False)
        try:
            self.images = create_dataset(name, data_root, split, is_training=self.is_training, **(reader or {}))
            reader, self.shards, self.split_by_shards = self.images.reader, 0, True
            if kind == 'hfids/' and self.is_training and not reader.download:  # downloaded, it has as many as it needs
                self.shards = getattr(reader.builder.as_streaming_dataset(split=split), 'num_shards', 0)
                # Where processes cannot have as many each, each reads all of them and takes its share of the images
                self.split_by_shards = self.shards % reader.dist_num_replicas == 0
        except (RuntimeError, ImportError, AttributeError, OSError, ValueError) as error:
            text = ' '.join(str(error).split())
            lacks = isinstance(error, ImportError) or importlib.util.find_spec(EXTRAS[kind]) is None
            raise ConfigError(f'{name} with data_root={data_root!r} and split={split!r} cannot be read ({text})'
                              + (f'; it needs the package {EXTRAS[kind]}' if lacks else '')) from error
        if kind == 'wds/':
            shards = reader.split_info.filenames
            self.shards = len(shards)
            lost = [path for path in (Path(data_root) / name for name in shards if ':' not in name)
                    if not path.is_file()]
            if lost:
                raise ConfigError(f'{len(lost)} of the {len(shards)} shards that split={split!r} names are not there, '
                                  f'such as {lost[0]}')
        if not len(self):
            raise ConfigError(f"split={split!r} does not tell its number of images: write it behind the shards, as in "
                              "'train-{0000..0099}.tar|100000', or set reader=dict(num_samples=...)")
        self.images.transform = make_transform(transform)

    def follow(self, batch_size: int, num_workers: int, seed: int) -> None:
        """Count steps, and shuffle, as the dataloader does.

        Raises:
            ConfigError: When a data worker would have nothing to train on.
        """
        reader = self.images.reader
        readers = max(1, num_workers) * (reader.dist_num_replicas if self.split_by_shards else 1)
        if self.is_training and self.shards and self.shards < readers:
            owner = 'all processes' if self.split_by_shards else 'each process'
            raise ConfigError(f'{self.shards} shards cannot be shared by {readers} data workers of {owner}: set '
                              'train_dataloader.num_workers to less, or write more shards')
        reader.batch_size, reader.common_seed, reader.worker_seed = batch_size, seed, seed
        self.images.set_loader_cfg(num_workers=num_workers)

    def set_epoch(self, epoch: int) -> None:
        """Another order of shards; reaches the data workers."""
        self.images.set_epoch(epoch)

    def __len__(self) -> int:
        """Images that this process trains on in an epoch; of an evaluation, those of all processes."""
        return len(self.images) if self.is_training else self.images.reader.num_samples or 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        reader = self.images.reader
        if not self.is_training and reader.ds is None:
            reader._lazy_init()  # shares the shards among processes and workers
            reader.dist_num_replicas = 1  # or it would repeat some to give each process as many
        count = 0
        try:
            for image in self.images:
                yield image
                count += 1
        except Exception as error:
            if not is_about_content(error):
                raise
            raise DataError(f'{self.where}: an image cannot be decoded ({why_undecodable(error)}), the next after '
                            f'{count} that this data worker has read: replace it, or take it out of the data set'
                            ) from error


def check_count(data: IterableDataset, count: int, stated: int) -> None:
    """A stream gave all processes together as many images as it states; `count` is this process's.

    Raises:
        DataError: More or fewer.
    """
    all_reduce(total := torch.tensor(count))
    if total != stated:
        where = getattr(data, 'where', type(data).__name__)
        left_out = '; or mend what the log above names, which wds/ leaves out' if where.startswith(
            'wds/') and total < stated else ''
        raise DataError(f'{total} images were evaluated, but {where} states {stated}: correct this number (behind the '
                        f'shards, or reader.num_samples){left_out}')


@HOOKS.register_module()
class EpochHook(DistSamplerSeedHook):
    """mmengine's, which tells the sampler the epoch; a data set that is a stream is told too.

    Raises:
        DataError: After an epoch in which nothing could be read.
    """

    def before_train_epoch(self, runner) -> None:
        super().before_train_epoch(runner)
        dataset = runner.train_loop.dataloader.dataset
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(runner.epoch)
        self.begun = runner.iter

    def after_train_epoch(self, runner) -> None:
        if runner.iter == self.begun:
            raise DataError(f'epoch {runner.epoch + 1} had no iteration: of the images of train_dataloader.dataset '
                            'none could be read')
