"""Rejects depth maps that are locally no surfaces: rough, speckled or quantised.

Single wrong pixels are specks. A plane is affine in disparity, so a small piece of any surface nearly is. Koch et al.
(ECCV workshops 2018) score planarity on masked planes. Here every 3x3 window counts as one, and the median decides.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.quality.filter import Filter, Fraction, pixels, roughness
from pipelines.records import SampleResult

FloatArray = NDArray[np.float32]

SPECK = 0.05  # of disparity, from all four neighbours
SLOPE = 1 / 1024  # of disparity, over 1/32 of the longer side: a quarter of an 8-bit level
ENOUGH = 1024  # distinct values, four times those of 8 bits; a plane repeats its own values
FEWEST = 50  # pixels on slopes; fewer are not enough to judge


class Planarity(Filter):
    """depth_roughness: standard deviation of white noise on the surfaces, for disparity in [0, 1] (see `roughness`).

    depth_speck_fraction: the share of pixels that differ from all four neighbours, in one direction, by 0.05.

    depth_distinct_fraction: distinct 16-bit values on surfaces that slope in both directions, divided by the number of
    their pixels, at most 1024. A map that went through 8 bits has at most 256. 1 if hardly any surface slopes so.
    """

    kind: ClassVar[str] = "planarity"
    scores: ClassVar[tuple[str, ...]] = ("depth_roughness", "depth_speck_fraction", "depth_distinct_fraction")
    reasons: ClassVar[tuple[str, ...]] = (
        "surfaces are rough by {0:.4f}, more than {1:g}",
        "{0:.4f} of depth are specks, more than {1:g}",
        "{0:.3f} of depths on slopes are distinct, less than {1:g}",
    )
    looks_at: ClassVar[frozenset[str]] = frozenset({"depth"})

    max_roughness: Fraction = 0.005
    max_specks: Fraction = 0.002
    min_distinct: Fraction = 0.4

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        _, disparity = pixels(result)
        return {
            "depth_roughness": roughness(disparity),
            "depth_speck_fraction": _specks(disparity),
            "depth_distinct_fraction": _distinct(disparity),
        }


def _specks(values: FloatArray) -> float:
    if min(values.shape) < 3:
        return 0.0
    middle = values[1:-1, 1:-1]
    up, down, left, right = values[:-2, 1:-1], values[2:, 1:-1], values[1:-1, :-2], values[1:-1, 2:]
    lowest = np.minimum(np.minimum(up, down), np.minimum(left, right))
    highest = np.maximum(np.maximum(up, down), np.maximum(left, right))
    return float(np.mean((middle > highest + SPECK) | (middle < lowest - SPECK)))


def _distinct(values: FloatArray) -> float:
    arm = max(1, max(values.shape) // 32)
    if min(values.shape) <= 2 * arm:
        return 1.0
    middle = slice(arm, -arm)
    here = values[middle, middle]
    down = _least(values[: -2 * arm, middle], here, values[2 * arm :, middle]) > SLOPE
    across = _least(values[middle, : -2 * arm], here, values[middle, 2 * arm :]) > SLOPE
    sloped = here[down & across]
    if len(sloped) < FEWEST:
        return 1.0
    levels = np.rint(np.clip(np.nan_to_num(sloped), 0, 1) * 65535).astype(np.intp)
    distinct = np.count_nonzero(np.bincount(levels, minlength=65536))
    return min(1.0, distinct / min(len(sloped), ENOUGH))


def _least(before: FloatArray, here: FloatArray, after: FloatArray) -> FloatArray:
    """Return the smaller step of both sides: beside an edge, one of them is the slope of the surface."""
    return np.minimum(np.abs(here - before), np.abs(after - here))
