"""What every filter is: named scores, and thresholds on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipelines.records import SampleResult

Fraction = Annotated[float, Field(ge=0, le=1)]
SIDE = 512  # pixels: longer images are read at every n-th pixel, so that scores cost about the same at any size


class Filter(BaseModel, ABC):
    """A frozen model whose fields are the thresholds. Every field has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: ClassVar[str]  # its name in the spec
    scores: ClassVar[tuple[str, ...]]  # what it measures, and decides by
    # Threshold -> the score that it bounds, from below (min_...) or above (max_...), where these are not the filter's
    # thresholds and scores in their order.
    bounds: ClassVar[Mapping[str, str] | None] = None
    looks_at: ClassVar[frozenset[str]] = frozenset({"prompt", "rgb", "depth"})  # of a sample, for its scores

    @staticmethod
    @abstractmethod
    def measure(result: SampleResult) -> dict[str, float]:
        """The scores of a sample with pixels, in the order of `scores`. Thresholds play no part."""

    @abstractmethod
    def reject(self, scores: Mapping[str, Any]) -> str | None:
        """What is wrong with a sample of these scores, in a few words; None keeps it. NaN is never kept."""

    def reject_caption(self, caption: str) -> str | None:
        """What is wrong with the caption itself; None keeps it. The caption is stored, as scores are."""
        return None


def pixels(result: SampleResult) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(rgb (h, w, 3), disparity (h, w)) of a sample with pixels, with at most SIDE pixels a side.

    Thinned by leaving pixels out, not by averaging: noise, specks, steps and plateaus of values stay what they are.
    """
    assert result.rgb is not None
    assert result.disparity is not None
    step = -(-max(result.disparity.shape) // SIDE)
    return result.rgb[::step, ::step], result.disparity[::step, ::step]


def luminance(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w) in 0..255, by the weights of ITU-R BT.601."""
    return rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def roughness(values: NDArray[np.float32]) -> float:
    """The standard deviation of white noise in (h, w) values, in their unit, whatever smooth surfaces lie below it.

    Immerkaer's 3x3 mask (Fast Noise Variance Estimation, CVIU 64(2), 1996) answers to no plane; the median of its
    absolute response over 0.6745 (Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika
    81(3), 1994) in place of his mean keeps edges and textures out as long as they cover less than half of the image.
    NaN below 3x3 pixels.
    """
    if min(values.shape) < 3:
        return float("nan")
    rows = values[:-2] - 2 * values[1:-1] + values[2:]
    response = np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:])
    return float(np.median(response)) / (6 * 0.6745)
