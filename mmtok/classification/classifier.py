"""A backbone and a linear head, as mmengine's Runner trains and tests it."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..errors import ConfigError, check_positive_int, is_number
from ..registry import MODELS


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Images -> class scores, from a backbone of mmtok with `classifier=True`.

    Args:
        backbone: Config of the backbone; `classifier=True` is added.
        num_classes: Number of classes.
        label_smoothing: Share of a label that goes to all classes; with Mixup it is the preprocessor's part.
        data_preprocessor: Config of `mmtok.ImagePreprocessor`, the default type, which gets `num_classes` and
            `label_smoothing`.
        init_cfg: mmengine's.

    Raises:
        ConfigError: For a value that cannot work.
    """

    def __init__(self, backbone: dict, num_classes: int, label_smoothing: float = 0.0,
                 data_preprocessor: dict | nn.Module | None = None, init_cfg: dict | None = None):
        check_positive_int('model.num_classes', num_classes)
        if not is_number(label_smoothing) or not 0 <= label_smoothing < 1:
            raise ConfigError(f'model.label_smoothing={label_smoothing!r} must be a number from 0 to below 1')
        if data_preprocessor is None:
            data_preprocessor = {}
        if isinstance(data_preprocessor, dict):
            data_preprocessor = {'type': 'mmtok.ImagePreprocessor', 'num_classes': num_classes,
                                 'label_smoothing': label_smoothing, **data_preprocessor}
        super().__init__(data_preprocessor, init_cfg)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.backbone = MODELS.build({'classifier': True, **backbone})
        if not getattr(self.backbone, 'classifier', False):
            raise ConfigError(f'model.backbone {type(self.backbone).__name__} has classifier=False and gives maps, but '
                              'mmtok.ImageClassifier takes a vector: remove classifier')
        self.head = nn.Linear(self.backbone.out_channels[-1], num_classes)

    def init_weights(self) -> None:
        """timm's start of a head, and the backbone's."""
        trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        super().init_weights()  # last: an init_cfg of the whole model has a head too

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor'):
        """Normalised images (B,3,H,W) -> scores, losses or predictions.

        Args:
            labels: (B,) class indices, or (B,K) their shares in a mixed image.
            mode: 'tensor' for the scores (B,K) before softmax, 'loss' for a dict of losses, 'predict' for a list of
                dicts, each with the scores (K,) of an image and its label.
        """
        scores = self.head(self.backbone(inputs)[-1])
        if mode == 'tensor':
            return scores
        if mode == 'loss':
            smoothing = self.label_smoothing if labels.ndim == 1 else 0.0  # mixed labels are smoothed already
            with torch.autocast(scores.device.type, enabled=False):
                return dict(loss_cls=F.cross_entropy(scores.float(), labels, label_smoothing=smoothing))
        if mode == 'predict':
            labels = [None] * len(scores) if labels is None else labels.tolist()
            return [dict(scores=score, label=label) for score, label in zip(scores.float().cpu(), labels, strict=True)]
        raise ConfigError(f"mode={mode!r} is unknown; choose from 'tensor', 'loss', 'predict'")
