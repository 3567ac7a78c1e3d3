"""Backbones: a tokenizer before a trunk from timm or mmdet, giving a tuple of feature maps."""

from .deit import DeiT
from .pvt import PVT
from .pvt_v2 import PVTv2
from .swin import Swin
from .t2t_vit import T2TViT

__all__ = ['PVT', 'DeiT', 'PVTv2', 'Swin', 'T2TViT']
