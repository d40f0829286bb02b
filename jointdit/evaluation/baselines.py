"""Depth baselines that do not use the image; a model's error must be well below both."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.depth import disparity_from_depth
from jointdit.scenes import render_scene


def constant_disparity(height: int, width: int) -> NDArray[np.float32]:
    """Return a constant map (H, W); alignment moves it to the image's harmonic mean depth."""
    return np.ones((height, width), np.float32)


def mean_training_disparity(height: int, width: int, seeds: Iterable[int] = range(256)) -> NDArray[np.float32]:
    """Return the mean relative disparity (H, W) of training scenes, which depends only on the pixel's position."""
    maps = [disparity_from_depth(render_scene(seed, width, height).depth) for seed in seeds]
    return np.stack(maps).mean(axis=0, dtype=np.float64).astype(np.float32)
