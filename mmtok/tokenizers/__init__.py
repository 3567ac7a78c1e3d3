"""Tokenizers: modules that turn an image (B,3,H,W) into a token map (B,D,H/p,W/p)."""

from .moto import MoToTokenizer
from .patch import FrozenTokenizer, PatchTokenizer
from .t2t import T2TTokenizer

__all__ = ['FrozenTokenizer', 'MoToTokenizer', 'PatchTokenizer', 'T2TTokenizer']
