"""Fused optimizers that adapt their own learning rate in the same memory pass."""

from .adam import Adam, AdamW
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW"]
