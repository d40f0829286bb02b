"""Rejects flat depth maps: depth that does not vary says nothing about space."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipelines.quality.filter import Filter, Fraction, pixels
from pipelines.records import SampleResult


class DepthRange(Filter):
    """depth_span: the 99th minus the 1st percentile of disparity, in [0, 1], so that specks do not count."""

    kind: ClassVar[str] = "depth_range"
    scores: ClassVar[tuple[str, ...]] = ("depth_span",)
    reasons: ClassVar[tuple[str, ...]] = ("depth spans {0:.3f}, less than {1:g}",)
    looks_at: ClassVar[frozenset[str]] = frozenset({"depth"})

    min_span: Fraction = 0.1

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        _, disparity = pixels(result)
        low, high = np.percentile(disparity, (1, 99))
        return {"depth_span": float(high - low)}
