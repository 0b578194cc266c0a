"""What a run reached and how fast; for anything bigger, torchmetrics (`pip install 'metafast[metrics]'`)."""

from metafast.metrics._simple import accuracy, steps_to_threshold

__all__ = ["accuracy", "steps_to_threshold"]
