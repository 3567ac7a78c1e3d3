"""Layers that tokenizers are made of."""

from .moto import MoTo

__all__ = ['MoTo']
