"""What depth scores without looking at the image: a model must be well below both."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jointdit.scenes import render_scene
from jointdit.tiny.data import relative_disparity


def constant_disparity(height: int, width: int) -> NDArray[np.float32]:
    """A flat wall, (H, W): alignment puts it at the image's harmonic mean depth."""
    return np.ones((height, width), np.float32)


def mean_training_disparity(height: int, width: int, seeds: Iterable[int] = range(256)) -> NDArray[np.float32]:
    """Mean relative disparity (H, W) of training scenes: what can be known from where a pixel lies."""
    maps = [relative_disparity(render_scene(seed, width, height).depth) for seed in seeds]
    return np.stack(maps).mean(axis=0, dtype=np.float64).astype(np.float32)
