"""Rejects samples with values that are not finite or at an end of their range."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipelines.quality.filter import Filter, Fraction
from pipelines.records import SampleResult


class Saturated(Filter):
    """Fractions of pixels: disparity NaN or infinite; at 0 or 1; at 1 alone; all colours at 0 or all at 255.

    A sky is legitimately at 0, and a white wall at 255; the defaults reject samples with little else. The nearest point
    is at 1: many pixels there mean that nearer depth was clipped.
    """

    kind: ClassVar[str] = "saturated"
    scores: ClassVar[tuple[str, ...]] = (
        "depth_nonfinite_fraction",
        "depth_saturated_fraction",
        "depth_near_saturated_fraction",
        "rgb_saturated_fraction",
    )
    reasons: ClassVar[tuple[str, ...]] = (
        "depth nonfinite fraction is {0:.3f}, more than {1:g}",
        "depth saturated fraction is {0:.3f}, more than {1:g}",
        "depth near saturated fraction is {0:.3f}, more than {1:g}",
        "rgb saturated fraction is {0:.3f}, more than {1:g}",
    )

    max_nonfinite: Fraction = 0.0
    max_depth: Fraction = 0.9
    max_near: Fraction = 0.1
    max_rgb: Fraction = 0.9

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        assert result.rgb is not None
        assert result.disparity is not None
        disparity, rgb = result.disparity, result.rgb
        near = disparity >= 1
        red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
        at_an_end = (red == green) & (green == blue) & ((blue == 0) | (blue == 255))
        return {
            "depth_nonfinite_fraction": float(np.mean(~np.isfinite(disparity))),
            "depth_saturated_fraction": float(np.mean((disparity <= 0) | near)),
            "depth_near_saturated_fraction": float(np.mean(near)),
            "rgb_saturated_fraction": float(np.mean(at_an_end)),
        }
