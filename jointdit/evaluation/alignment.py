"""Alignment of a relative prediction to the ground truth: scale and shift by least squares.

Source: prs-eth/Marigold b1dffaa, src/util/alignment.py and script/depth/eval.py.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError

Alignment = Literal["depth", "disparity"]
FloatArray = NDArray[np.float32]

MIN_DISPARITY = 1e-3  # 1/m: an aligned disparity is clipped to this before it is inverted, so depth is at most 1 km


class ScaleShift(NamedTuple):
    """prediction * scale + shift fits the ground truth."""

    scale: float
    shift: float


def fit_scale_shift(
    pred: FloatArray, truth: FloatArray, mask: NDArray[np.bool_], max_resolution: int | None = None
) -> ScaleShift:
    """Fit scale and shift of `pred` (H, W) to `truth` (H, W) over `mask` (H, W) by least squares.

    Args:
        pred, truth: maps in the same space, both depth or both disparity.
        mask: True where both are known.
        max_resolution: fit on maps of at most this many pixels per side, by nearest neighbour; None uses all pixels.

    Raises:
        InputError: the mask is empty.
    """
    if max_resolution is not None:
        rows, columns = (nearest_indices(size, min(1.0, max_resolution / max(pred.shape))) for size in pred.shape)
        kept = np.ix_(rows, columns)
        pred, truth, mask = pred[kept], truth[kept], mask[kept]
    if not mask.any():
        raise InputError("the mask has no pixel to align the prediction on: check the ground truth and the mask.")
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
    """Align the prediction; returns depth in metres, (H, W), not yet clipped to a range.

    Args:
        pred: (H, W), in metres if `alignment` is None, relative depth for "depth", relative disparity for "disparity".
        truth: (H, W), depth in metres.
        mask: (H, W), True where `truth` is known.
        alignment: the space of the fit. In disparity only pixels with a positive prediction are fitted, and the result
            is clipped at 1e-3 before it is inverted.
        max_resolution: see `fit_scale_shift`.

    Raises:
        InputError: the alignment is unknown, or there is no pixel to fit on.
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
    """Return the indices that nearest-neighbour scaling keeps: floor(i / scale), as torch.nn.Upsample("nearest")."""
    return np.minimum(np.floor(np.arange(int(size * scale)) / scale).astype(np.intp), size - 1)
