"""A small network that learns to fine-tune a frozen, pretrained model to a new task, in a few steps."""

from metafast.adapt._backbone import Backbone, freeze

__all__ = ["Backbone", "freeze"]
