"""Scale and shift of a relative prediction, by least squares against the true map.

Source: prs-eth/Marigold b1dffaa, src/util/alignment.py and script/depth/eval.py.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError

Alignment = Literal["depth", "disparity"]
FloatArray = NDArray[np.float32]

MIN_DISPARITY = (
    1e-3  # 1/m: an aligned disparity is clipped here before it is inverted, so nothing lies beyond a kilometre
)


class ScaleShift(NamedTuple):
    """prediction * scale + shift fits the truth."""

    scale: float
    shift: float


def fit_scale_shift(
    pred: FloatArray, truth: FloatArray, mask: NDArray[np.bool_], max_resolution: int | None = None
) -> ScaleShift:
    """Least-squares scale and shift of `pred` (H, W) against `truth` (H, W) over `mask` (H, W).

    Args:
        pred, truth: maps in the same space, both depth or both disparity.
        mask: True where both are known.
        max_resolution: fit on maps of at most this many pixels a side, by nearest neighbour; None fits on all pixels.

    Raises:
        InputError: no pixel is left to fit on.
    """
    if max_resolution is not None:
        rows, columns = (nearest_indices(size, min(1.0, max_resolution / max(pred.shape))) for size in pred.shape)
        kept = np.ix_(rows, columns)
        pred, truth, mask = pred[kept], truth[kept], mask[kept]
    if not mask.any():
        raise InputError("the mask leaves no pixel to align the prediction on: check the true map and the mask.")
    columns_of_fit = np.stack([pred[mask], np.ones(int(mask.sum()), pred.dtype)], axis=1)
    scale, shift = np.linalg.lstsq(columns_of_fit, truth[mask], rcond=None)[0]
    return ScaleShift(scale, shift)


def align(
    pred: FloatArray,
    truth: FloatArray,
    mask: NDArray[np.bool_],
    alignment: Alignment | None,
    max_resolution: int | None = None,
) -> FloatArray:
    """The prediction as depth in metres, (H, W), not yet clipped to a range.

    Args:
        pred: metres where `alignment` is None, depth of any scale and shift where "depth", disparity where "disparity".
        truth: depth in metres.
        mask: True where `truth` is known.
        alignment: the space the fit is made in. In disparity only pixels with a positive prediction are fitted, and the
            fit is clipped at 1e-3 before it is inverted.
        max_resolution: see `fit_scale_shift`.

    Raises:
        InputError: unknown alignment, or no pixel to fit on.
    """
    if alignment is None:
        return pred
    if alignment == "depth":
        fit = fit_scale_shift(pred, truth, mask, max_resolution)
        return pred * fit.scale + fit.shift
    if alignment == "disparity":
        known = mask & (truth > 0) & (pred > 0)
        true_disparity = np.divide(1.0, truth, out=np.zeros_like(truth), where=truth > 0)
        fit = fit_scale_shift(pred, true_disparity, known, max_resolution)
        return 1.0 / np.maximum(pred * fit.scale + fit.shift, MIN_DISPARITY)
    raise InputError(f"alignment is {alignment!r}: use None or one of {', '.join(get_args(Alignment))}.")


def nearest_indices(size: int, scale: float) -> NDArray[np.intp]:
    """Rows or columns that nearest-neighbour scaling keeps: floor(i / scale), as torch.nn.Upsample(mode="nearest")."""
    return np.minimum(np.floor(np.arange(int(size * scale)) / scale).astype(np.intp), size - 1)
