"""Test-time ensembling: align estimates of one image, merge them, measure their spread.

Each estimate is known up to scale and shift. The estimates are aligned by least squares to their consensus, which is
the merged map of the aligned estimates. Both steps are repeated until the scales converge. With the mean as consensus
this minimises the squared differences between all pairs, at a fixed standard deviation of the consensus.

After Marigold (arXiv 2312.02145, section 3.3). Its code (prs-eth/Marigold b1dffaa, marigold/util/ensemble.py) minimises
the differences between pairs plus a weak penalty outside the range [0, 1] by BFGS. That cost decreases when all scales
shrink together, so the standard deviation is fixed here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.evaluation.alignment import FloatArray, nearest_indices

Reduction = Literal["median", "mean"]

MAX_ROUNDS = 50
ENOUGH = 1e-6  # relative change of the scales that ends the iteration
MAX_RESOLUTION = 1024  # pixels per side of the maps that are aligned
FLAT = 1e-12  # a map with a smaller standard deviation is constant


class Ensemble(NamedTuple):
    """The merged map (H, W) in [0, 1], and the spread (H, W) of the aligned estimates around it, in the same unit."""

    merged: FloatArray
    uncertainty: FloatArray


def ensemble_maps(maps: FloatArray, reduction: Reduction = "median") -> Ensemble:
    """Merge estimates (N, H, W) of one image, each known up to a positive scale and a shift.

    reduction: "median" with the median absolute deviation as uncertainty, or "mean" with the standard deviation. A
    single estimate is only scaled to [0, 1]. Raises InputError for another shape, an unknown reduction, or values that
    are not finite.
    """
    if reduction not in get_args(Reduction):
        raise InputError(f"reduction is {reduction!r}: use one of {', '.join(get_args(Reduction))}.")
    if maps.ndim != 3 or maps.size == 0:
        raise InputError(f"maps have shape {maps.shape}: give estimates of one image as (N, H, W).")
    if not np.isfinite(maps).all():
        raise InputError("maps hold NaN or infinite values: remove these estimates.")
    estimates = maps.astype(np.float64)
    height, width = maps.shape[1:]
    ratio = min(1.0, MAX_RESOLUTION / max(height, width))
    seen = estimates[:, nearest_indices(height, ratio)][:, :, nearest_indices(width, ratio)]
    scale, shift = align_to_consensus(seen.reshape(len(maps), -1), reduction)
    aligned = estimates * scale[:, None, None] + shift[:, None, None]
    merged = _merge(aligned, reduction)
    uncertainty = aligned.std(axis=0) if reduction == "mean" else np.median(np.abs(aligned - merged), axis=0)
    low, span = merged.min(), max(float(np.ptp(merged)), FLAT)
    return Ensemble(((merged - low) / span).astype(np.float32), (uncertainty / span).astype(np.float32))


def align_to_consensus(
    estimates: NDArray[np.float64], reduction: Reduction
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scales >= 0 and shifts (N,) that align estimates (N, P) to their consensus of mean 0 and deviation 1.

    A constant estimate, or one that is inverted relative to the others, gets scale 0.
    """
    mean, spread = estimates.mean(axis=1), estimates.std(axis=1)
    relief = spread > FLAT
    inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=relief)
    standard = (estimates - mean[:, None]) * inverse[:, None]
    scale = relief.astype(np.float64)
    for _ in range(MAX_ROUNDS):
        consensus = _merge(standard * scale[:, None], reduction)
        consensus = consensus - consensus.mean()
        if consensus.std() <= FLAT:
            break
        before, scale = scale, np.maximum(standard @ (consensus / consensus.std()) / estimates.shape[1], 0.0)
        if np.abs(scale - before).max() <= ENOUGH:
            break
    # The least-squares shift of a standardised estimate to a consensus of mean 0 is 0.
    return scale * inverse, -scale * inverse * mean


def _merge(aligned: NDArray[np.float64], reduction: Reduction) -> NDArray[np.float64]:
    return np.asarray(aligned.mean(axis=0) if reduction == "mean" else np.median(aligned, axis=0))
