"""Rejects images of one colour, which show nothing."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipelines.quality.filter import Filter, Fraction, pixels
from pipelines.records import SampleResult


class BlankPicture(Filter):
    """rgb_span: 99th minus 1st percentile of the channel with the largest span, over 255, so that specks do not count.

    Channels are used and not luminance, in which a red ball on a green floor can be invisible.
    """

    kind: ClassVar[str] = "blank_picture"
    scores: ClassVar[tuple[str, ...]] = ("rgb_span",)
    reasons: ClassVar[tuple[str, ...]] = ("colours span {0:.3f}, less than {1:g}",)
    looks_at: ClassVar[frozenset[str]] = frozenset({"rgb"})

    min_span: Fraction = 0.08

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        rgb, _ = pixels(result)
        spans = []
        for channel in range(3):
            reached = np.cumsum(np.bincount(rgb[..., channel].ravel(), minlength=256)) / rgb[..., channel].size
            low, high = np.searchsorted(reached, (0.01, 0.99))
            spans.append(int(high) - int(low))
        return {"rgb_span": max(spans) / 255}
