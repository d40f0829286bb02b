"""Rejects depth maps that are almost completely at one distance, with few other pixels."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipelines.quality.filter import Filter, Fraction, pixels
from pipelines.records import SampleResult

BINS = 64


class FlatDepth(Filter):
    """depth_flat_fraction: the largest share of pixels within 1/32 of disparity (two neighbouring bins of 64).

    An open sky or a far wall legitimately fills much of that; the default rejects maps with hardly anything else.
    """

    kind: ClassVar[str] = "flat_depth"
    scores: ClassVar[tuple[str, ...]] = ("depth_flat_fraction",)
    reasons: ClassVar[tuple[str, ...]] = ("{0:.3f} of depth is at one distance, more than {1:g}",)
    looks_at: ClassVar[frozenset[str]] = frozenset({"depth"})

    max_flat: Fraction = 0.8

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        _, disparity = pixels(result)
        inside = disparity[np.isfinite(disparity)]
        filled = np.bincount(np.clip(inside * BINS, 0, BINS - 1).astype(np.intp), minlength=BINS)
        return {"depth_flat_fraction": int((filled[1:] + filled[:-1]).max()) / disparity.size}
