"""Quality of reconstructed images: PSNR, and R^2 on opponent colour axes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

OPPONENT_AXES = {
    "lightness": (1 / 3, 1 / 3, 1 / 3),
    "red_green": (1.0, -1.0, 0.0),
    "yellow_blue": (0.5, 0.5, -1.0),
}


def psnr(reference: NDArray[np.uint8], image: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB of uint8 arrays of one shape; infinite if they are equal."""
    error = float(np.mean((reference.astype(np.float64) - image.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def opponent_r2(reference: NDArray[np.uint8], image: NDArray[np.uint8]) -> dict[str, float]:
    """Return R^2 on each opponent axis of images (..., 3): lightness, red-green, yellow-blue.

    These axes show when a VAE with a good PSNR loses red and purple. NaN for a constant reference.
    """
    kept = {}
    for name, axis in OPPONENT_AXES.items():
        truth, found = reference.astype(np.float64) @ np.array(axis), image.astype(np.float64) @ np.array(axis)
        variance = float(truth.var())
        kept[name] = 1 - float(np.mean((truth - found) ** 2)) / variance if variance else math.nan
    return kept
