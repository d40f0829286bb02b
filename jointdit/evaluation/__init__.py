"""Evaluation of depth, images and point clouds; see README.md."""

from jointdit.evaluation.metrics import depth_metrics

__all__ = ["depth_metrics"]
