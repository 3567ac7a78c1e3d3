"""Batches on their device: normalisation, random erasing, Mixup and CutMix, all but the first in training alone."""

import torch
from mmengine.model import BaseDataPreprocessor
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ..errors import ConfigError, check_options
from ..registry import FUNCTIONS, MODELS


@FUNCTIONS.register_module()
def stack_images(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """[(image (3,H,W) uint8, label)] -> images (B,3,H,W), labels (B,): torch's `default_collate`, faster.

    They go into shared memory in the thread that sends the batch, while the data worker reads the next one.
    """
    return torch.stack([image for image, _ in batch]), torch.tensor([label for _, label in batch])


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """What timm does behind its loader: uint8 images and class indices -> normalised images and labels.

    Args:
        mean, std: Of each channel, in units of 0 to 255.
        erase: Options of timm's RandomErasing, None for none.
        mixup: Options of timm's Mixup (`mixup_alpha`, `cutmix_alpha`, `prob`, `switch_prob`, `mode`, ...), None for
            none.
        num_classes, label_smoothing: Of the mixed labels; the classifier gives them.
        non_blocking: Copy batches in pinned memory to a GPU while it works.

    Raises:
        ConfigError: For an option that timm does not know, an odd batch with Mixup, a label beyond the classes.
    """

    def __init__(self, mean: tuple[float, ...] = (123.675, 116.28, 103.53),
                 std: tuple[float, ...] = (58.395, 57.12, 57.375), erase: dict | None = None,
                 mixup: dict | None = None, num_classes: int = 1000, label_smoothing: float = 0.0,
                 non_blocking: bool = True):
        super().__init__(non_blocking)
        self.num_classes = num_classes
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.erase = self.mixup = None
        if erase is not None:
            check_options('model.data_preprocessor.erase', erase, RandomErasing)
            self.erase = RandomErasing(**erase)
        if mixup is not None:
            check_options('model.data_preprocessor.mixup', mixup, Mixup)
            if not mixup.get('mixup_alpha', 1.0) and not mixup.get('cutmix_alpha') and not mixup.get('cutmix_minmax'):
                raise ConfigError('model.data_preprocessor.mixup mixes nothing: give it a mixup_alpha or cutmix_alpha '
                                  'above 0, or set it to None')
            self.mixup = Mixup(**{'label_smoothing': label_smoothing, 'num_classes': num_classes, **mixup})

    def forward(self, data: tuple[Tensor, Tensor], training: bool = False) -> dict[str, Tensor]:
        """(images (B,3,H,W) uint8, labels (B,)) -> inputs (B,3,H,W) float32, labels (B,), or (B,K) when mixed."""
        if data[1].device.type == 'cpu' and data[1].max() >= self.num_classes:
            raise ConfigError(f'an image has the label {int(data[1].max())}, but with model.num_classes='
                              f'{self.num_classes} the labels end at {self.num_classes - 1}')
        images, labels = self.cast_data(data)
        images = images.to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).div_(self.std)
        if training and self.erase is not None:
            self.erase.device = images.device
            images = self.erase(images)
        if training and self.mixup is not None:
            if len(images) % 2:
                raise ConfigError(f'Mixup pairs the images of a batch, but this one has {len(images)}: set '
                                  'train_dataloader.batch_size to an even number and drop_last=True')
            images, labels = self.mixup(images, labels)
        return dict(inputs=images, labels=labels)
