"""Rejects pairs whose depth edges are not on edges of the image.

Such depth is shifted, or belongs to another image. Where depth jumps, another surface begins, and an image shows it by
its colour. The reverse does not hold (texture), so only depth edges are tested. The measure is the cross-correlation of
edge maps, as in image registration (Anuta, Spatial registration of multispectral imagery using FFT techniques, IEEE
Trans. Geoscience Electronics 8(4), 1970).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.quality.filter import Filter, Fraction, pixels
from pipelines.records import SampleResult

FloatArray = NDArray[np.float32]

JUMP = 0.06  # of disparity: a depth edge
STRONG_JUMP = 0.3  # edges are weighted by their jump up to this value
STRONG_CONTRAST = 60.0  # of 255, in one channel: a certain edge of the image
FEWEST = 20  # pixels of depth edges at 128 pixels a side; fewer are not enough to judge
SEARCH = 8  # shifts are tried up to this fraction of the longer side: 1/8


class EdgeAlignment(Filter):
    """edge_alignment: the share of depth edges on edges of the image, in [0, 1], weighted by both contrasts.

    edge_peak: edge_alignment over the best that any shift of up to 1/8 of the longer side would give; 1 if the map is
    already at its best position. Both tolerate 1/128 of the longer side and are 1 where depth has no sharp edge,
    because flying_pixels judges soft ones. Inverted depth has the same edges.
    """

    kind: ClassVar[str] = "edge_alignment"
    scores: ClassVar[tuple[str, ...]] = ("edge_alignment", "edge_peak")
    reasons: ClassVar[tuple[str, ...]] = (
        "{0:.3f} of depth edges are the image's, less than {1:g}",
        "shifted depth would fit better: peak ratio {0:.3f}, less than {1:g}",
    )

    min_alignment: Fraction = 0.5
    min_peak: Fraction = 0.75

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        rgb, disparity = pixels(result)
        side = max(disparity.shape)
        step = max(1, side // 128)
        reach = min(side // SEARCH, (min(disparity.shape) - 1) // 2)
        depth_edges = np.minimum(_second_difference(disparity, step), STRONG_JUMP)
        depth_edges[depth_edges < JUMP] = 0
        if reach <= step or not np.count_nonzero(depth_edges) >= FEWEST * step * step:
            return {"edge_alignment": 1.0, "edge_peak": 1.0}
        image_edges = np.minimum(_contrast(rgb, step) / np.float32(STRONG_CONTRAST), np.float32(1))
        correlation = _correlation(depth_edges, image_edges, reach) / depth_edges.sum()
        here = float(correlation[reach - step : reach + step + 1, reach - step : reach + step + 1].max())
        best = float(correlation.max())
        return {"edge_alignment": min(max(here, 0.0), 1.0), "edge_peak": here / best if best > 1e-3 else 0.0}


def _second_difference(values: FloatArray, step: int) -> FloatArray:
    """Return (h, w) the larger absolute second difference of both directions: 0 on planes, the jump beside a jump."""
    largest = np.zeros_like(values)
    inner = 2 * values[step:-step]
    largest[step:-step] = np.abs(values[2 * step :] - inner + values[: -2 * step])
    inner = 2 * values[:, step:-step]
    across = np.abs(values[:, 2 * step :] - inner + values[:, : -2 * step])
    np.maximum(largest[:, step:-step], across, out=largest[:, step:-step])
    return largest


def _contrast(rgb: NDArray[np.uint8], step: int) -> FloatArray:
    """Return (h, w) the largest difference over 2 * step pixels, of both directions and all channels, in 0..255."""
    largest = np.zeros(rgb.shape[:2], np.float32)
    for channel in range(3):
        values = rgb[..., channel].astype(np.float32)
        np.maximum(largest[step:-step], np.abs(values[2 * step :] - values[: -2 * step]), out=largest[step:-step])
        across = np.abs(values[:, 2 * step :] - values[:, : -2 * step])
        np.maximum(largest[:, step:-step], across, out=largest[:, step:-step])
    return largest


def _correlation(edges: FloatArray, image: FloatArray, reach: int) -> FloatArray:
    """Return (2 reach + 1, 2 reach + 1) sums of edges(p) * image(p + shift), with shift (0, 0) in the centre."""
    whole = np.fft.irfft2(np.conj(np.fft.rfft2(edges)) * np.fft.rfft2(image), s=edges.shape)
    around = np.arange(-reach, reach + 1)
    return np.asarray(whole[np.ix_(around, around)], np.float32)
