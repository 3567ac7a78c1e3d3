from .loading import load_pretrained
from .reading import read_checkpoint

__all__ = ['load_pretrained', 'read_checkpoint']
