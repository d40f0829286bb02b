"""Evaluation of depth, images and point clouds; README.md lists the measurements and their files."""

from jointdit.evaluation.metrics import depth_metrics

__all__ = ["depth_metrics"]
