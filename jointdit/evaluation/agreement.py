"""Do an image and a depth map belong together? Depth is estimated from the image again and compared with the map.

Depth-to-image: the map is the condition (depth fidelity). Joint samples: the map is the one generated with the image
(self-consistency). `depth_agreement` is of a set, and gives the same score with images and maps shuffled: what no
agreement at all costs. `pair_agreement` is of one pair, for filters.
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
from jointdit.evaluation.metrics import depth_metrics, metrics_of_pixels
from jointdit.geometry.depth import metric_depth

if TYPE_CHECKING:
    from jointdit.evaluation.scenes import EstimateDepth
    from jointdit.scenes import Scene

DEPTH_RANGE = (1e-3, 80.0)  # metres
ASSUMED_RANGE = (1.0, 10.0)  # metres: what relative disparity is spread over for the scores of single pairs
DETAIL = 0.01  # of the range: what is smaller is no detail
DEGREE = 6  # of the smooth surface that is no detail either
FLAT = 1e-6  # a standard deviation below it, over the largest value, is none


@dataclass(frozen=True)
class Agreement:
    """Mean AbsRel and delta1 over samples; the same with each map beside the next image; pairs that were compared."""

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
    images: Sequence[NDArray[np.uint8]],
    depths: Sequence[FloatArray],
    alignment: Alignment = "disparity",
) -> Agreement:
    """Estimate depth from images (H, W, 3), align it to their maps (H, W) in metres, and compare.

    `alignment` is the space that the estimator's maps are affine in. Raises InputError for less than two pairs: nothing
    could be shuffled.
    """
    if len(images) != len(depths) or len(images) < 2:
        raise InputError(f"{len(images)} images and {len(depths)} depth maps: give at least two pairs.")
    found = estimate(list(images))
    own, others = _scores(found, depths, alignment), _scores([*found[1:], found[0]], depths, alignment)
    return Agreement(own[0], own[1], others[0], others[1], len(images))


class PairAgreement(NamedTuple):
    """AbsRel, the share of pixels whose depth is within 25 %, and the correlation of details.

    0, 1 and 1 where both maps say the same.
    """

    abs_rel: float
    delta1: float
    correlation: float


def pair_agreement(
    estimated: FloatArray, disparity: FloatArray, alignment: Alignment = "disparity"
) -> PairAgreement | None:
    """Compare an estimate (H, W) with a relative disparity (H, W) in [0, 1], 1 nearest; None where neither can be said.

    The disparity is read as depth over ASSUMED_RANGE, whatever range it is published with: so scores of all jobs
    compare. The estimate is fitted to it by least squares in the space that `alignment` names. Unlike in benchmarks its
    scale may not be negative: an inverted map is not to agree. None: a map is constant, or a value is not finite.

    Floor and wall are much the same in many images and fill most of them, so that AbsRel and delta1 forgive a map of
    another image. `correlation` is of what is left of both maps once each has lost the polynomial surface that fits
    it best; what is left below DETAIL of the range counts as nothing, and nothing agrees with nothing. One of degree
    2 cannot follow the crease where floor and wall meet, which then looks like a detail that all scenes share; one of
    degree 10 takes objects away. Right against swapped maps of 32 scenes, ROC AUC of the tiny checkpoint's estimates:
    0.979 by degree 2, 0.989 by 4, 0.994 by 6, 0.993 by 8, 0.988 by 10; of 40 joint samples of its own: 0.943 by degree
    2, 0.980 by 4, 0.988 by 6, 0.983 by 8. Details are compared at equal spread of both maps, not after the fit: its
    scale of 0 would leave an inverted map without details (inverted against right joint samples: 0.911 so, 1.000 now).
    """
    if not (np.isfinite(estimated).all() and np.isfinite(disparity).all()):
        return None
    spread = float(estimated.std())
    if spread <= FLAT * float(np.abs(estimated).max()) or float(disparity.std()) <= FLAT:
        return None
    truth = metric_depth(np.clip(disparity, 0, 1), *ASSUMED_RANGE)
    target: FloatArray = truth if alignment == "depth" else (1 / truth).astype(np.float32)
    standard = (estimated - estimated.mean()) / spread  # an estimate may have any unit
    scale, shift = fit_scale_shift(standard, target, np.ones(target.shape, bool))
    fitted: FloatArray = standard * scale + shift if scale > 0 else np.full_like(target, target.mean())
    near, far = ASSUMED_RANGE
    found = np.clip(fitted, near, far) if alignment == "depth" else np.reciprocal(np.clip(fitted, 1 / far, 1 / near))
    metrics = metrics_of_pixels(found, truth)
    span = far - near if alignment == "depth" else 1 / near - 1 / far
    correlation = _correlation(_details(standard * target.std() / span), _details(target / span))
    return PairAgreement(metrics["abs_rel"], metrics["delta1"], correlation)


def _details(values: FloatArray) -> NDArray[np.float64]:
    """What is left of a map (H, W) without its smooth surface, (H * W,)."""
    surfaces = _smooth_surfaces(*values.shape)
    flat = values.ravel().astype(np.float64)
    left: NDArray[np.float64] = flat - surfaces @ (surfaces.T @ flat)
    return left


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of the details of two maps, in units of their range."""
    noise = DETAIL**2
    return float((np.mean(a * b) + noise) / np.sqrt((np.mean(a * a) + noise) * (np.mean(b * b) + noise)))


@lru_cache(maxsize=8)
def _smooth_surfaces(height: int, width: int) -> NDArray[np.float64]:
    """An orthonormal basis (H * W, 28) of the polynomials in x and y up to DEGREE."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    columns = [x**i * y**j for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    basis: NDArray[np.float64] = np.linalg.qr(np.stack([column.ravel() for column in columns], axis=1))[0]
    return basis


def ensemble_spread(maps: FloatArray) -> float | None:
    """How far estimates (N, H, W) of one image differ: mean over pixels of the median |z - z_median| / z_median.

    The estimates are brought onto each other and merged (ensemble.py), and what is merged is read as depth over
    ASSUMED_RANGE. To first order: dz / z = B dd / (A + B d) for z = 1 / (A + B d). None: the merged map is constant, or
    a value is not finite.
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
    """How far estimates (N, H, W) of one image, in [0, 1], agree in their details: the mean over all pairs.

    By the correlation of `pair_agreement`: floors and walls, which an estimator knows before it looks, are left out.
    """
    details = [_details(each) for each in maps]
    return float(np.mean([_correlation(a, b) for a, b in combinations(details, 2)]))


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
