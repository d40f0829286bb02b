"""How good the model is. README.md says what is measured, how, and which file does it."""

from jointdit.evaluation.metrics import depth_metrics

__all__ = ["depth_metrics"]
