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


class HashIndex:
    """An index of the hashes of kept images that finds near ones without comparing all of them.

    The bits are divided into max_distance + 1 bands. Two hashes that differ in at most max_distance bits agree in at
    least one band, so only hashes that share a band are compared. Neighbouring bits go to different bands, because low
    frequencies alone differ little between similar images.
    """

    def __init__(self, max_distance: int) -> None:
        self.max_distance = max_distance
        bands = max_distance + 1
        self._masks = [sum(1 << bit for bit in range(band, BITS, bands)) for band in range(bands)]
        self._buckets: list[dict[int, list[tuple[int, str, str]]]] = [{} for _ in self._masks]

    def add(self, value: int, identifier: str, row: str) -> None:
        """Add the hash of a kept sample, with its id and its row's id."""
        for mask, buckets in zip(self._masks, self._buckets, strict=True):
            buckets.setdefault(value & mask, []).append((value, identifier, row))

    def nearest(self, value: int, not_of: str | None = None) -> tuple[int, str] | None:
        """Return (distance in bits, id) of the nearest hash within max_distance, or None. Ties are deterministic.

        Samples of the row `not_of` are ignored.
        """
        best: tuple[int, str] | None = None
        limit = self.max_distance + 1
        for mask, buckets in zip(self._masks, self._buckets, strict=True):
            for other, identifier, row in buckets.get(value & mask, ()):
                distance = (value ^ other).bit_count()
                if distance < limit and row != not_of:
                    best, limit = (distance, identifier), distance
        return best
