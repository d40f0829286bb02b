"""Rejects images that look like an earlier one: nearly the same perceptual hash. Decided when a version is published.

A sample alone cannot be a duplicate, so `measure` and `reject` say nothing; decisions.py looks at the whole dataset in
the order of its plan, whatever the order in which shards were made. The first of some like images stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pipelines.quality.filter import Filter
from pipelines.records import SampleResult

BITS = 64
SIDE = 32  # pixels that the cosine transform sees
KEPT = 8  # frequencies a side that become bits
ROUNDED = 3  # decimals of the coefficients: below it is rounding of the transform, which machines do differently


class NearDuplicate(Filter):
    """`max_distance`: at most so many of the 64 bits of two hashes differ in images that count as the same."""

    kind: ClassVar[str] = "near_duplicate"
    scores: ClassVar[tuple[str, ...]] = ()

    max_distance: int = Field(4, ge=0, le=10)

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        return {}

    def reject(self, scores: Mapping[str, Any]) -> str | None:
        return None


def perceptual_hash(rgb: NDArray[np.uint8]) -> str:
    """The pHash of an image (H, W, 3), 16 hexadecimal digits: which of its 64 lowest frequencies exceed their median.

    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), in the form of the Python
    package imagehash: 32 x 32 grey values, a two-dimensional DCT-II, the 8 x 8 lowest coefficients.
    """
    grey = Image.fromarray(rgb).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = np.round(COSINES @ np.asarray(grey, np.float64) @ COSINES.T, ROUNDED)
    bits = (low > np.median(low)).ravel()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):0{BITS // 4}x}"


def _cosines() -> NDArray[np.float64]:
    """The first rows of the DCT-II of SIDE values: (KEPT, SIDE)."""
    frequency, place = np.arange(KEPT)[:, None], np.arange(SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))


COSINES = _cosines()


class HashIndex:
    """Hashes of kept images, found by how near they are without a look at each of them.

    The bits are dealt to max_distance + 1 bands. Two hashes that differ in at most max_distance bits agree in a whole
    band at least, so only hashes that share a band are compared. Neighbouring bits go to different bands: low
    frequencies alone differ little between images of one kind.
    """

    def __init__(self, max_distance: int) -> None:
        self.max_distance = max_distance
        bands = max_distance + 1
        self._masks = [sum(1 << bit for bit in range(band, BITS, bands)) for band in range(bands)]
        self._buckets: list[dict[int, list[tuple[int, str, str]]]] = [{} for _ in self._masks]

    def add(self, value: int, identifier: str, row: str) -> None:
        """Remember the hash of a kept sample, with its id and its row's."""
        for mask, buckets in zip(self._masks, self._buckets, strict=True):
            buckets.setdefault(value & mask, []).append((value, identifier, row))

    def nearest(self, value: int, not_of: str | None = None) -> tuple[int, str] | None:
        """(distance in bits, id) of the nearest hash within max_distance, or None; of equals always the same.

        Samples of the row `not_of` are passed over.
        """
        best: tuple[int, str] | None = None
        limit = self.max_distance + 1
        for mask, buckets in zip(self._masks, self._buckets, strict=True):
            for other, identifier, row in buckets.get(value & mask, ()):
                distance = (value ^ other).bit_count()
                if distance < limit and row != not_of:
                    best, limit = (distance, identifier), distance
        return best
