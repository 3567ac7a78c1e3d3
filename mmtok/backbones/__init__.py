"""Backbones: a tokenizer before a trunk from timm, giving a tuple of feature maps."""

from .deit import DeiT
from .swin import Swin

__all__ = ['DeiT', 'Swin']
