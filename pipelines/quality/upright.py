"""Rejects upside-down depth: inverted maps, and maps of upside-down images.

One map alone does not show which end is near. The filter uses how people hold cameras: of two points one above the
other, the lower one is mostly nearer (therefore Chen et al., Single-Image Depth Perception in the Wild, NeurIPS 2016,
also ask about points side by side). Networks rely on the same cue (van Dijk and de Croon, How do neural networks see
depth in single images?, ICCV 2019). Images from above, of ceilings, or of single close objects need not follow it: do
not use the filter for them.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipelines.quality.filter import Correlation, Filter, pixels
from pipelines.records import SampleResult


class Upright(Filter):
    """depth_ground_correlation: Pearson's, of disparity with the row number from the top. 0 for a constant map."""

    kind: ClassVar[str] = "upright"
    scores: ClassVar[tuple[str, ...]] = ("depth_ground_correlation",)
    reasons: ClassVar[tuple[str, ...]] = ("depth is nearest at the top: correlation {0:.3f}, less than {1:g}",)
    looks_at: ClassVar[frozenset[str]] = frozenset({"depth"})

    min_correlation: Correlation = -0.35

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        _, disparity = pixels(result)
        rows = np.arange(len(disparity)) - (len(disparity) - 1) / 2
        means = disparity.mean(axis=1, dtype=np.float64)
        spread = float(disparity.std(dtype=np.float64) * rows.std())
        if spread < 1e-9:
            return {"depth_ground_correlation": 0.0}
        return {"depth_ground_correlation": float(np.mean((means - means.mean()) * rows)) / spread}
