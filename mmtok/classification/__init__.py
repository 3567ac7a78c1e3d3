"""Image classification: what pretrains the backbones. Data, augmentation and recipe are timm's, the loop mmengine's."""

from .classifier import ImageClassifier
from .preprocessor import ImagePreprocessor

__all__ = ['ImageClassifier', 'ImagePreprocessor']
