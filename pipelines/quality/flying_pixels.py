"""Rejects depth maps whose edges are ramps: as points, such pixels fly between two surfaces.

Blurred or upsampled maps and averages of several estimates have them. The filter measures the blur of depth edges by
their width, as in Marziliano et al. (A no-reference perceptual blur metric, ICIP 2002). Against a true map this would
be the depth boundary error of Koch et al. (Evaluation of CNN-based single-image depth estimation methods, ECCV
workshops 2018).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.quality.filter import Filter, Fraction, pixels
from pipelines.records import SampleResult

JUMP = 0.05  # of disparity, across two arms
STEEPER = 4  # times as steep as the surfaces on both sides, so that slopes are no edges
SHARP = 0.4  # share of the jump that the step of one pixel must have


class FlyingPixels(Filter):
    """flying_pixel_fraction: among the places where disparity jumps, the share without a single step that is the jump.

    Jumps are searched in rows and columns over 1/16 of the longer side. 0 where there is no jump.
    """

    kind: ClassVar[str] = "flying_pixels"
    scores: ClassVar[tuple[str, ...]] = ("flying_pixel_fraction",)
    reasons: ClassVar[tuple[str, ...]] = ("{0:.3f} of depth edges are ramps, more than {1:g}",)
    looks_at: ClassVar[frozenset[str]] = frozenset({"depth"})

    max_flying: Fraction = 0.6

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        _, disparity = pixels(result)
        arm = max(2, max(disparity.shape) // 32)
        jumps, ramps = map(sum, zip(_count(disparity, arm), _count(disparity.T, arm), strict=True))
        return {"flying_pixel_fraction": ramps / jumps if jumps else 0.0}


def _count(values: NDArray[np.float32], arm: int) -> tuple[int, int]:
    """Return (jumps, ramps among them) along the first axis."""
    length = len(values) - 4 * arm
    if length < 1:
        return 0, 0
    at = [values[number * arm : number * arm + length] for number in range(5)]
    jump = np.abs(at[3] - at[1])
    beside = np.maximum(np.abs(at[1] - at[0]), np.abs(at[4] - at[3]))
    is_jump = (jump > JUMP) & (jump > STEEPER * beside)
    steps = np.abs(np.diff(values, axis=0))
    steepest = _running_maximum(steps[arm:], 2 * arm)[:length]
    return int(np.count_nonzero(is_jump)), int(np.count_nonzero(is_jump & (steepest < SHARP * jump)))


def _running_maximum(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return the maximum over `width` rows starting at each row, by doubling: log2(width) passes."""
    done = 1
    while done < width:
        more = min(done, width - done)
        values = np.maximum(values[:-more], values[more:])
        done += more
    return values
