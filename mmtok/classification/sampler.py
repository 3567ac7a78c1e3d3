"""The order of a training's images, and the random numbers of each."""

from collections.abc import Iterator, Sized
from typing import NamedTuple

import torch
from mmengine.dataset import DefaultSampler
from timm.data.distributed_sampler import RepeatAugSampler

from ..errors import check_positive_int
from ..registry import DATA_SAMPLERS


class Draw(NamedTuple):
    """One image to augment.

    Attributes:
        index: Which image of the data set.
        seed: Of the random numbers of its augmentation.
    """

    index: int
    seed: int


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """mmengine's DefaultSampler for training, which gives each image of an epoch random numbers of its own.

    They depend on the seed, the epoch and the place in the epoch, not on the process or data worker that reads the
    image: an epoch is the same with any number of workers, after resuming, and, summed over processes, with any number
    of processes.

    Args:
        dataset, shuffle, seed, round_up: Of mmengine's DefaultSampler.
        num_repeats: How often an image that is drawn comes in a row, each time augmented anew; an epoch then takes
            `1 / num_repeats` of the images. This is timm's repeated augmentation (Berman et al., 2019; DeiT), where
            the repeats of an image are spread over the processes.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None, round_up: bool = True,
                 num_repeats: int = 1):
        super().__init__(dataset, shuffle, seed, round_up)
        check_positive_int('num_repeats', num_repeats)
        self.repeated = None
        if num_repeats > 1:
            self.repeated = RepeatAugSampler(dataset, self.world_size, self.rank, shuffle, num_repeats)
            self.num_samples = len(self.repeated)

    def __iter__(self) -> Iterator[Draw]:
        if self.repeated is None:
            indices = list(super().__iter__())
        else:
            self.repeated.set_epoch(self.seed + self.epoch)  # what it seeds its order with
            indices = list(self.repeated)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        seeds = torch.randint(2**31, (len(indices), self.world_size), generator=generator)
        return map(Draw._make, zip(indices, seeds[:, self.rank].tolist(), strict=True))
