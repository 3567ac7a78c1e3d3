"""Backbones: a tokenizer before a trunk from timm, giving a tuple of feature maps."""

from .deit import DeiT

__all__ = ['DeiT']
