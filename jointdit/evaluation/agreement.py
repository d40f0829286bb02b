"""Agreement of images with depth maps, by estimating depth from the image.

In depth-to-image the map is the condition (depth fidelity). In joint samples it is the map that was generated with the
image (self-consistency). `depth_agreement` scores a set, and the same set with shuffled images as the baseline.
`pair_agreement` scores one pair, for filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.evaluation.alignment import Alignment, FloatArray, fit_scale_shift
from jointdit.evaluation.ensemble import ensemble_maps
from jointdit.evaluation.metrics import SCENE_RANGE, depth_metrics, metrics_of_pixels
from jointdit.geometry.depth import metric_depth

if TYPE_CHECKING:
    from jointdit.evaluation.scenes import EstimateDepth
    from jointdit.scenes import Scene

ASSUMED_RANGE = (1.0, 10.0)  # metres: range of relative disparity in the scores of single pairs
DETAIL = 0.01  # share of the range below which differences do not count as detail
DEGREE = 6  # of the smooth surface that is removed before details are compared
FLAT = 1e-6  # a map is constant if its standard deviation over its largest value is below this


@dataclass(frozen=True)
class Agreement:
    """Mean AbsRel and delta1 over samples, for matching pairs and for shuffled ones (each map with the next image)."""

    abs_rel: float
    delta1: float
    shuffled_abs_rel: float
    shuffled_delta1: float
    samples: int

    @property
    def error_ratio(self) -> float:
        """AbsRel divided by that of the shuffled pairs: 0 is perfect agreement, 1 is none."""
        return self.abs_rel / self.shuffled_abs_rel


def depth_agreement(
    estimate: EstimateDepth,
    images: Sequence[NDArray[np.uint8]],
    depths: Sequence[FloatArray],
    alignment: Alignment = "disparity",
) -> Agreement:
    """Estimate depth from images (H, W, 3), align it to their maps (H, W) in metres, and compare.

    `alignment` is the space in which the estimator's maps are affine. Raises InputError for fewer than two pairs, which
    cannot be shuffled.
    """
    if len(images) != len(depths) or len(images) < 2:
        raise InputError(f"{len(images)} images and {len(depths)} depth maps: give at least two pairs.")
    estimates = estimate(list(images))
    own, others = _scores(estimates, depths, alignment), _scores([*estimates[1:], estimates[0]], depths, alignment)
    return Agreement(own[0], own[1], others[0], others[1], len(images))


class PairAgreement(NamedTuple):
    """AbsRel, the share of pixels whose depth is within 25 %, and the correlation of details.

    The values are 0, 1 and 1 for equal maps.
    """

    abs_rel: float
    delta1: float
    correlation: float


def pair_agreement(
    estimated: FloatArray, disparity: FloatArray, alignment: Alignment = "disparity"
) -> PairAgreement | None:
    """Compare an estimate (H, W) with a relative disparity (H, W) in [0, 1], 1 nearest.

    Returns None if a map is constant or has values that are not finite.

    The disparity is converted to depth over ASSUMED_RANGE, whatever range it is published with, so that scores of
    different jobs are comparable. The estimate is fitted to it by least squares in the space `alignment`. Unlike in
    benchmarks the scale may not be negative, so an inverted map does not agree.

    Floor and wall are similar in many images and fill most of them, so AbsRel and delta1 can be good for the map of
    another image. `correlation` compares what remains of both maps after removing the best-fitting polynomial surface.
    Differences below DETAIL of the range count as zero, and two maps without detail count as equal. A surface of degree
    2 cannot follow the crease between floor and wall, which all scenes share; one of degree 10 removes objects.

    ROC AUC of correct against swapped maps, estimates of the tiny checkpoint on 32 scenes: 0.979 at degree 2, 0.989 at
    4, 0.994 at 6, 0.993 at 8, 0.988 at 10; on 40 of its joint samples: 0.943 at 2, 0.980 at 4, 0.988 at 6, 0.983 at 8.
    Details are compared at equal standard deviation of both maps, not after the fit, because a fitted scale of 0 would
    remove the details of an inverted map (inverted against correct joint samples: 0.911 after the fit, 1.000 so).
    """
    if not (np.isfinite(estimated).all() and np.isfinite(disparity).all()):
        return None
    spread = float(estimated.std())
    if spread <= FLAT * float(np.abs(estimated).max()) or float(disparity.std()) <= FLAT:
        return None
    truth = metric_depth(np.clip(disparity, 0, 1), *ASSUMED_RANGE)
    target: FloatArray = truth if alignment == "depth" else (1 / truth).astype(np.float32)
    standard = (estimated - estimated.mean()) / spread  # the estimate's unit is arbitrary
    scale, shift = fit_scale_shift(standard, target, np.ones(target.shape, bool))
    fitted: FloatArray = standard * scale + shift if scale > 0 else np.full_like(target, target.mean())
    near, far = ASSUMED_RANGE
    depth = np.clip(fitted, near, far) if alignment == "depth" else np.reciprocal(np.clip(fitted, 1 / far, 1 / near))
    metrics = metrics_of_pixels(depth, truth)
    span = far - near if alignment == "depth" else 1 / near - 1 / far
    correlation = _correlation(_details(standard * target.std() / span), _details(target / span))
    return PairAgreement(metrics["abs_rel"], metrics["delta1"], correlation)


def _details(values: FloatArray) -> NDArray[np.float64]:
    """Remove the smooth surface of a map (H, W); returns (H * W,)."""
    surfaces = _smooth_surfaces(*values.shape)
    flat = values.ravel().astype(np.float64)
    left: NDArray[np.float64] = flat - surfaces @ (surfaces.T @ flat)
    return left


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlate the details of two maps (H * W,), in units of their range."""
    noise = DETAIL**2
    return float((np.mean(a * b) + noise) / np.sqrt((np.mean(a * a) + noise) * (np.mean(b * b) + noise)))


@lru_cache(maxsize=8)
def _smooth_surfaces(height: int, width: int) -> NDArray[np.float64]:
    """Return an orthonormal basis (H * W, 28) of the polynomials in x and y up to DEGREE."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    columns = [x**i * y**j for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    basis: NDArray[np.float64] = np.linalg.qr(np.stack([column.ravel() for column in columns], axis=1))[0]
    return basis


def ensemble_spread(maps: FloatArray) -> float | None:
    """Return the spread of estimates (N, H, W) of one image: the mean over pixels of median |z - z_median| / z_median.

    The estimates are aligned and merged (ensemble.py), and the merged map is converted to depth over ASSUMED_RANGE. To
    first order dz / z = B dd / (A + B d) for z = 1 / (A + B d). Returns None if the merged map is constant or a value
    is not finite.
    """
    if not np.isfinite(maps).all():
        return None
    merged, uncertainty = ensemble_maps(maps)
    if merged.std() <= FLAT:
        return None
    near, far = ASSUMED_RANGE
    slope = 1 / near - 1 / far
    return float(np.mean(slope * uncertainty.astype(np.float64) / (1 / far + slope * merged)))


def ensemble_correlation(maps: FloatArray) -> float:
    """Return the mean correlation of details over all pairs of estimates (N, H, W) of one image, in [0, 1].

    It is the correlation of `pair_agreement`, so the smooth part of floors and walls does not count.
    """
    details = [_details(each) for each in maps]
    return float(np.mean([_correlation(a, b) for a, b in combinations(details, 2)]))


def typical_range(scenes: Sequence[Scene]) -> tuple[float, float]:
    """Return (z_near, z_far) in metres: medians over scenes of the nearest and the farthest pixel."""
    near, far = (np.median([reduce(scene.depth) for scene in scenes]) for reduce in (np.min, np.max))
    return float(near), float(far)


def assumed_depth(disparities: Sequence[FloatArray], range_metres: tuple[float, float]) -> list[FloatArray]:
    """Convert generated relative disparities (H, W) to metres over one assumed range.

    A generated map has no true scale, and AbsRel needs one. See `typical_range`.
    """
    return [metric_depth(disparity, *range_metres) for disparity in disparities]


def _scores(estimates: Sequence[FloatArray], depths: Sequence[FloatArray], alignment: Alignment) -> tuple[float, float]:
    low, high = SCENE_RANGE
    rows = [
        depth_metrics(one, depth, None, alignment, min_depth=low, max_depth=high)
        for one, depth in zip(estimates, depths, strict=True)
    ]
    return float(np.mean([row["abs_rel"] for row in rows])), float(np.mean([row["delta1"] for row in rows]))
