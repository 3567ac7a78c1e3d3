"""TokenProp: reconstruct the image from its tokens while training."""

from .hook import TokenPropHook
from .token_prop import TokenProp

__all__ = ['TokenProp', 'TokenPropHook']
