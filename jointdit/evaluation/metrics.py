"""Depth metrics by the protocol of Marigold's evaluation code.

Most published tables use this protocol.

    align (optional) -> clip to the data set's range -> metrics over the mask

Source: prs-eth/Marigold b1dffaa, script/depth/eval.py and src/util/metric.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.evaluation.alignment import Alignment, FloatArray, align

SCENE_RANGE = (1e-3, 80.0)  # metres: rendered scenes are compared in this range; their farthest wall is nearer
SMALLEST_DEPTH = 1e-6  # metres; the last clip, so that logarithms and inverses exist


def depth_metrics(
    pred: FloatArray,
    gt: FloatArray,
    mask: NDArray[np.bool_] | None = None,
    alignment: Alignment | None = None,
    min_depth: float = 1e-3,
    max_depth: float = math.inf,
    max_resolution: int | None = None,
) -> dict[str, float]:
    """Compute the metrics of one predicted map. For a set, take the mean over its images.

    Args:
        pred: (H, W) metres, or relative depth with `alignment="depth"`, or relative disparity with "disparity".
        gt: (H, W) depth in metres.
        mask: (H, W) True where `gt` counts; None uses every finite pixel above 0.
        alignment: space of the least-squares fit of scale and shift; None for a metric prediction.
        min_depth, max_depth: metres; the prediction is clipped to them, `gt` is not (mask pixels outside the range).
        max_resolution: align on maps of at most this many pixels per side (Marigold uses 1024 for ETH3D).

    Returns:
        abs_rel, sq_rel (m), rmse (m), rmse_log, log10; delta1, delta2, delta3: shares of pixels whose ratio to `gt` is
        below 1.25, 1.25^2, 1.25^3; i_rmse (1/m), silog (x 100).

    Raises:
        InputError: shapes differ, the mask is empty, or a map holds NaN where the mask is True.
    """
    known = known_pixels(pred, gt, mask)
    aligned = clipped_depth(pred, gt, known, alignment, min_depth, max_depth, max_resolution)
    return metrics_of_pixels(aligned[known], gt[known])


def known_pixels(pred: FloatArray, gt: FloatArray, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return the mask (H, W) of compared pixels, after the checks of `depth_metrics`. Raises InputError."""
    known = np.isfinite(gt) & (gt > 0) if mask is None else np.asarray(mask, dtype=bool)
    if pred.shape != gt.shape or known.shape != gt.shape or gt.ndim != 2:
        raise InputError(
            f"pred is {pred.shape}, gt {gt.shape}, mask {known.shape}: give three maps of one shape (H, W)."
        )
    if not known.any():
        raise InputError("the mask is empty: give one with at least one pixel to compare.")
    for name, array in (("pred", pred), ("gt", gt)):
        if not np.isfinite(array[known]).all():
            raise InputError(f"{name} holds NaN or infinite values where the mask is True: mask them or repair them.")
    return known


def clipped_depth(
    pred: FloatArray,
    gt: FloatArray,
    mask: NDArray[np.bool_],
    alignment: Alignment | None,
    min_depth: float,
    max_depth: float,
    max_resolution: int | None = None,
) -> FloatArray:
    """Return the aligned and clipped prediction, (H, W) metres. Arguments as in `depth_metrics`."""
    aligned = align(pred, gt, mask, alignment, max_resolution)
    return np.maximum(np.clip(aligned, min_depth, max_depth), SMALLEST_DEPTH)


def metrics_of_pixels(pred: FloatArray, gt: FloatArray) -> dict[str, float]:
    """Compute all metrics over two lists of pixels (N,), metres, both above 0."""
    p, g = pred.astype(np.float64), gt.astype(np.float64)
    difference, log_ratio = p - g, np.log(p / g)
    ratio = np.maximum(p / g, g / p)
    return {
        "abs_rel": float(np.mean(np.abs(difference) / g)),
        "sq_rel": float(np.mean(difference**2 / g)),
        "rmse": _root_mean_square(difference),
        "rmse_log": _root_mean_square(log_ratio),
        "log10": float(np.mean(np.abs(log_ratio))) / math.log(10),
        "delta1": float(np.mean(ratio < 1.25)),
        "delta2": float(np.mean(ratio < 1.25**2)),
        "delta3": float(np.mean(ratio < 1.25**3)),
        "i_rmse": _root_mean_square(1 / p - 1 / g),
        "silog": 100 * float(np.std(log_ratio)),
    }


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return math.sqrt(float(np.mean(values**2)))
