"""Rejects images that look like an earlier one, by perceptual hash.

One sample alone cannot be a duplicate, so `measure` and `reject` return nothing. dataset/decisions.py compares the
whole dataset in the order of its plan, whatever the order in which shards were made. The first of several similar
images stays.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pipelines.quality.filter import Filter
from pipelines.records import SampleResult

BITS = 64
SIDE = 32  # pixels a side that the cosine transform uses
KEPT = 8  # frequencies a side that become bits
ROUNDED = 3  # decimals of the coefficients; further decimals differ between machines


class NearDuplicate(Filter):
    """`max_distance`: two images are duplicates if at most so many of the 64 bits of their hashes differ."""

    kind: ClassVar[str] = "near_duplicate"
    scores: ClassVar[tuple[str, ...]] = ()

    max_distance: int = Field(4, ge=0, le=10)

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        return {}


def perceptual_hash(rgb: NDArray[np.uint8]) -> str:
    """Return the pHash of an image (H, W, 3) as 16 hexadecimal digits: which of 64 low frequencies exceed their median.

    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), as in the Python package
    imagehash: 32 x 32 grey values, a two-dimensional DCT-II, the 8 x 8 lowest coefficients.
    """
    grey = Image.fromarray(rgb).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = np.round(COSINES @ np.asarray(grey, np.float64) @ COSINES.T, ROUNDED)
    bits = (low > np.median(low)).ravel()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):0{BITS // 4}x}"


def _cosines() -> NDArray[np.float64]:
    """Return the first rows of the DCT-II of SIDE values: (KEPT, SIDE)."""
    frequency, place = np.arange(KEPT)[:, None], np.arange(SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))


COSINES = _cosines()
