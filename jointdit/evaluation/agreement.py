"""Do a picture and a depth map belong together? Depth is estimated from the picture again and compared with the map.

Depth-to-image: the map is the condition (depth fidelity). Joint samples: the map is the one generated with the picture
(self-consistency). Beside each stands the same score with pictures and maps shuffled: what no agreement at all costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jointdit.depth import metric_depth
from jointdit.errors import InputError
from jointdit.evaluation.alignment import Alignment, FloatArray
from jointdit.evaluation.metrics import depth_metrics

if TYPE_CHECKING:
    from jointdit.evaluation.scenes import EstimateDepth
    from jointdit.scenes import Scene

DEPTH_RANGE = (1e-3, 80.0)  # metres


@dataclass(frozen=True)
class Agreement:
    """Mean AbsRel and delta1 over samples; the same with each map beside the next picture; pairs that were compared."""

    abs_rel: float
    delta1: float
    shuffled_abs_rel: float
    shuffled_delta1: float
    samples: int

    @property
    def error_ratio(self) -> float:
        """AbsRel over that of the shuffled pairs: 0 is perfect, 1 is none."""
        return self.abs_rel / self.shuffled_abs_rel


def depth_agreement(
    estimate: EstimateDepth,
    pictures: Sequence[NDArray[np.uint8]],
    depths: Sequence[FloatArray],
    alignment: Alignment = "disparity",
) -> Agreement:
    """Estimate depth from pictures (H, W, 3), align it to their maps (H, W) in metres, and compare.

    `alignment` is the space that the estimator's maps are affine in. Raises InputError for less than two pairs: nothing
    could be shuffled.
    """
    if len(pictures) != len(depths) or len(pictures) < 2:
        raise InputError(f"{len(pictures)} pictures and {len(depths)} depth maps: give at least two pairs.")
    found = estimate(list(pictures))
    own, others = _scores(found, depths, alignment), _scores([*found[1:], found[0]], depths, alignment)
    return Agreement(own[0], own[1], others[0], others[1], len(pictures))


def typical_range(scenes: Sequence[Scene]) -> tuple[float, float]:
    """(z_near, z_far) in metres: medians over scenes of the nearest and the farthest pixel."""
    near, far = (np.median([reduce(scene.depth) for scene in scenes]) for reduce in (np.min, np.max))
    return float(near), float(far)


def assumed_depth(disparities: Sequence[FloatArray], range_metres: tuple[float, float]) -> list[FloatArray]:
    """Generated relative disparities (H, W) as metres, every one spread over the same assumed range.

    A generated map has no true scale; AbsRel needs one. See `typical_range`.
    """
    return [metric_depth(disparity, *range_metres) for disparity in disparities]


def _scores(found: Sequence[FloatArray], depths: Sequence[FloatArray], alignment: Alignment) -> tuple[float, float]:
    low, high = DEPTH_RANGE
    rows = [
        depth_metrics(one, depth, None, alignment, min_depth=low, max_depth=high)
        for one, depth in zip(found, depths, strict=True)
    ]
    return float(np.mean([row["abs_rel"] for row in rows])), float(np.mean([row["delta1"] for row in rows]))
