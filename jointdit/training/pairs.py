"""Training pairs: what a source of them gives, by number, and scenes rendered on the fly as the first source.

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
    """A pair as the network sees it: packed latents (N, C) of both, the caption's T5 states (T, D) and CLIP pooled (P).

    height and width are those of the pixels that were encoded.
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
        """Pairs that lie together and are read best together, in order; their sum is the number of pairs."""

    def sizes(self) -> Sequence[Bucket] | None:
        """(height, width) in pixels of each pair; None where each pair can be made at any size."""

    def read(self, numbers: Sequence[int], bucket: Bucket) -> Sequence[Pair | EncodedPair]:
        """The pairs of these numbers at a bucket's size, in this order. Raises InputError for one that is bad."""


class ScenePairs:
    """Scenes 0 .. count - 1, rendered at the bucket's size when they are read. Evaluation draws from seed 1e9 on."""

    def __init__(self, count: int) -> None:
        self.count = count

    def blocks(self) -> Sequence[int]:
        """Each scene alone."""
        return [1] * self.count

    def sizes(self) -> None:
        """A scene has any size."""

    def read(self, numbers: Sequence[int], bucket: Bucket) -> Sequence[Pair]:
        """Render."""
        height, width = bucket
        scenes = [render_scene(int(number), width, height) for number in numbers]
        return [Pair(scene.rgb, disparity_from_depth(scene.depth), scene.caption) for scene in scenes]


def fit_to_bucket(pair: Pair, bucket: Bucket) -> Pair:
    """The largest centred window of the bucket's aspect, at its size; disparity spans [0, 1] again afterwards.

    Raises:
        ValueError: the window's disparity is constant.
    """
    rgb, _ = fit_to_model(pair.rgb, *bucket, "crop")
    disparity, _ = fit_to_model(pair.disparity, *bucket, "crop")
    low, high = disparity.min(), disparity.max()
    if high <= low:
        raise ValueError("depth is constant within the window that is trained on")
    return Pair(rgb, ((disparity - low) / (high - low)).astype(np.float32), pair.caption)
