"""Scale relative disparity to metres: a robust fit of 1/z = A + B d to a metric depth map.

The fit is robust, because the maps disagree where one of them is wrong, as in skies, mirrors and thin objects. Random
pairs of pixels propose lines, and the line with the largest support is chosen (RANSAC: Fischler and Bolles, Random
Sample Consensus, 1981; support as in MSAC: Torr and Zisserman, MLESAC, 2000). Least squares over its inliers refines
the line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

INLIER = 0.1  # an inlier's fitted depth is within 10 % of its metric depth
PROPOSALS = 256  # if half of the pixels are wrong, no pair is right with a probability below 1e-31
PIXELS_A_PROPOSAL = 4096  # pixels that score a proposal
REFINEMENTS = 10
FEWEST = 16  # pixels


@dataclass(frozen=True)
class Calibration:
    """The range of a relative disparity in metres, and how well it fits.

    z_near and z_far are in metres. residual: median over all pixels of |z / z_fit - 1|. inlier_ratio: share of pixels
    where that is at most INLIER. focal_pixels: focal length of the metric model's input image, if the model gives one.
    """

    z_near: float
    z_far: float
    residual: float
    inlier_ratio: float
    focal_pixels: float | None = None


def fit_inverse_depth(
    disparity: NDArray[np.float32], depth: NDArray[np.float32], valid: NDArray[np.bool_] | None = None
) -> Calibration | None:
    """Fit 1/z = A + B d to relative disparity (H, W) in [0, 1] and metric depth (H, W). Deterministic.

    B is positive (near is high), and z_far = 1 / A is at most 10 % beyond the farthest inlier. Returns None if no such
    line exists, as for a constant or an inverted map.
    """
    assert disparity.shape == depth.shape
    usable = np.isfinite(disparity) & np.isfinite(depth) & (depth > 0)
    if valid is not None:
        usable &= valid
    d, z = disparity[usable].astype(np.float64), depth[usable].astype(np.float64)
    if len(d) < FEWEST:
        return None
    line = _best_proposal(d, z)
    for _ in range(REFINEMENTS):
        if line is None:
            return None
        refined = _least_squares(d, z, _misfit(line, d, z) <= INLIER)
        if refined is None or np.allclose(refined, line, rtol=1e-9):
            break
        line = refined
    assert line is not None
    misfit = _misfit(line, d, z)
    far, span = line
    return Calibration(
        z_near=1.0 / (far + span),
        z_far=1.0 / far,
        residual=float(np.median(misfit)),
        inlier_ratio=float(np.mean(misfit <= INLIER)),
    )


Line = tuple[float, float]  # A, B


def _misfit(line: Line, d: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return |z / z_fit - 1| of each pixel (N,)."""
    return np.abs((line[0] + line[1] * d) * z - 1.0)


def _best_proposal(d: NDArray[np.float64], z: NDArray[np.float64]) -> Line | None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, len(d), (2, PROPOSALS))
    apart = np.abs(d[first] - d[second]) > 0.02 * (d.max() - d.min())
    first, second = first[apart], second[apart]
    if not len(first):
        return None
    spans = (1.0 / z[first] - 1.0 / z[second]) / (d[first] - d[second])
    fars = 1.0 / z[first] - spans * d[first]
    sensible = (spans > 0) & (fars > 0)
    fars, spans = fars[sensible], spans[sensible]
    if not len(fars):
        return None
    judges = slice(None, None, -(-len(d) // PIXELS_A_PROPOSAL))
    inverse = fars[:, None] + spans[:, None] * d[None, judges]
    costs = np.minimum(np.abs(inverse * z[None, judges] - 1.0), INLIER)
    best = int(np.argmin((costs**2).sum(axis=1)))
    return float(fars[best]), float(spans[best])


def _least_squares(d: NDArray[np.float64], z: NDArray[np.float64], support: NDArray[np.bool_]) -> Line | None:
    """Return the line of least relative misfit over the inliers, within the bounds; None if there is none."""
    d, z = d[support], z[support]
    if len(d) < FEWEST:
        return None
    design = np.stack([z, d * z], axis=1)
    (far, span), *_ = np.linalg.lstsq(design, np.ones(len(z)), rcond=None)
    lowest = 1.0 / (z.max() * (1.0 + INLIER))
    if far < lowest:
        far = lowest
        span = float((design[:, 1] @ (1.0 - far * z)) / max(float(design[:, 1] @ design[:, 1]), 1e-12))
    return (float(far), float(span)) if span > 0 else None
