"""Operators: `moto` and `moto_from_logits`. The reference stands beside the fast ones."""

from .dispatch import moto, moto_from_logits

__all__ = ['moto', 'moto_from_logits']
