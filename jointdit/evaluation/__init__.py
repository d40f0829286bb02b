"""How good the model is: metrics.py (depth), scenes.py (held-out scenes), colours.py (are the named colours there)."""

from jointdit.evaluation.metrics import depth_metrics

__all__ = ["depth_metrics"]
