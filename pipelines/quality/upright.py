"""Rejects upside-down depth: inverted maps (far as near), and maps of an image that lies on its head.

One map alone cannot say which end is near. What helps is where people hold cameras: of two points one above the other,
the lower is mostly the nearer (which is why Chen et al., Single-Image Depth Perception in the Wild, NeurIPS 2016, ask
about points beside each other too), and networks lean on the same cue (van Dijk and de Croon, How do neural networks
see depth in single images?, ICCV 2019). Images from above, of ceilings or of single things close up need not follow
it: leave the filter out for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from pipelines.quality.filter import Filter, pixels
from pipelines.records import SampleResult

Correlation = Annotated[float, Field(ge=-1, le=1)]


class Upright(Filter):
    """depth_ground_correlation: Pearson's, of disparity with the row counted from the top. 0 for a constant map."""

    kind: ClassVar[str] = "upright"
    scores: ClassVar[tuple[str, ...]] = ("depth_ground_correlation",)
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

    def reject(self, scores: Mapping[str, Any]) -> str | None:
        found = scores["depth_ground_correlation"]
        if found >= self.min_correlation:
            return None
        return f"depth is nearest at the top: correlation {found:.3f}, less than {self.min_correlation:g}"
