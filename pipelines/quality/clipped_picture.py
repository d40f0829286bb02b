"""Rejects over- and underexposed images, which lose shading and colour."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipelines.quality.filter import Filter, Fraction, pixels
from pipelines.records import SampleResult


class ClippedPicture(Filter):
    """rgb_clipped_fraction: the share of pixels with a channel at 0 or 255.

    Photographs of saturated objects and drawings legitimately have such pixels; the default allows for them.
    """

    kind: ClassVar[str] = "clipped_picture"
    scores: ClassVar[tuple[str, ...]] = ("rgb_clipped_fraction",)
    reasons: ClassVar[tuple[str, ...]] = ("{0:.3f} of the image is clipped, more than {1:g}",)
    looks_at: ClassVar[frozenset[str]] = frozenset({"rgb"})

    max_clipped: Fraction = 0.3

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        rgb, _ = pixels(result)
        clipped = np.zeros(rgb.shape[:2], bool)
        for channel in range(3):
            clipped |= (rgb[..., channel] == 0) | (rgb[..., channel] == 255)
        return {"rgb_clipped_fraction": float(np.mean(clipped))}
