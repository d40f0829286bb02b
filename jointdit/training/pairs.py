"""Training pairs, the interface of their sources, and rendered scenes as a source.

A source has a fixed number of pairs in a fixed order, so that which pairs a step sees depends on its number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.geometry.depth import disparity_from_depth, fit_to_model
from jointdit.scenes import render_scene

Bucket = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Pair:
    """An image uint8 (H, W, 3), its relative disparity float32 (H, W) in [0, 1], 1 nearest, and its caption."""

    rgb: NDArray[np.uint8]
    disparity: NDArray[np.float32]
    caption: str


@dataclass(frozen=True)
class EncodedPair:
    """An encoded pair: packed latents (N, C) of RGB and disparity, T5 states (T, D) and CLIP pooled output (P,).

    height and width: of the encoded pixels.
    """

    rgb: torch.Tensor
    disparity: torch.Tensor
    states: torch.Tensor
    pooled: torch.Tensor
    height: int
    width: int


class PairSource(Protocol):
    """Pairs by number."""

    def blocks(self) -> Sequence[int]:
        """Return the number of pairs in each block, in order; pairs of a block are read together efficiently."""

    def sizes(self) -> Sequence[Bucket] | None:
        """Return (height, width) in pixels of each pair; None if pairs can have any size."""

    def read(self, numbers: Sequence[int], bucket: Bucket) -> Sequence[Pair | EncodedPair]:
        """Read pairs by number at a bucket's size, in this order. Raises InputError for a pair that is invalid."""


class ScenePairs:
    """Scenes 0 .. count - 1, rendered at the bucket's size when they are read. Evaluation uses seeds from 1e9 on."""

    def __init__(self, count: int) -> None:
        self.count = count

    def blocks(self) -> Sequence[int]:
        """Return one block per scene."""
        return [1] * self.count

    def sizes(self) -> None:
        """Return None, because scenes can have any size."""

    def read(self, numbers: Sequence[int], bucket: Bucket) -> Sequence[Pair]:
        """Render the scenes."""
        height, width = bucket
        scenes = [render_scene(int(number), width, height) for number in numbers]
        return [Pair(scene.rgb, disparity_from_depth(scene.depth), scene.caption) for scene in scenes]


def fit_to_bucket(pair: Pair, bucket: Bucket) -> Pair:
    """Crop a pair to the bucket's aspect, resize it to the bucket, and rescale the disparity to [0, 1].

    Raises:
        ValueError: the disparity is constant in the crop.
    """
    rgb, _ = fit_to_model(pair.rgb, *bucket, "crop")
    disparity, _ = fit_to_model(pair.disparity, *bucket, "crop")
    low, high = disparity.min(), disparity.max()
    if high <= low:
        raise ValueError("depth is constant in the window that is used for training")
    return Pair(rgb, ((disparity - low) / (high - low)).astype(np.float32), pair.caption)
