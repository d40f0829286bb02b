"""Evaluation on held-out scenes: depth, colours of generated images, and the VAE.

Depth is aligned in disparity by least squares over the whole image. Floor and wall fill most of the image and saturate
delta1, so the share of pixels within 5 % and the error on objects are reported too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jointdit.evaluation.alignment import Alignment
from jointdit.evaluation.images import opponent_r2, psnr
from jointdit.evaluation.metrics import SCENE_RANGE, clipped_depth, metrics_of_pixels
from jointdit.scenes import Scene, render_scene
from jointdit.scenes.colours import ColourReport, check_colours, colours_kept
from jointdit.scenes.sampling import HELD_OUT_SEED

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline

ENSEMBLE_STRIDE = 1_000_000  # more than the images of any call, so that all estimates have different seeds

EstimateDepth = Callable[[list[NDArray[np.uint8]]], list[NDArray[np.float32]]]
"""Images (H, W, 3) -> relative disparity (H, W), 1 nearest."""


@dataclass(frozen=True)
class DepthScore:
    """Means over scenes: AbsRel, shares of pixels within 25 % and 5 %, AbsRel over the pixels of objects."""

    abs_rel: float
    delta1: float
    within_5_percent: float
    object_abs_rel: float


@dataclass(frozen=True)
class VaeReport:
    """Mean PSNR in dB, R^2 on the opponent axes, and the share of pixels that keep each named colour."""

    psnr_db: float
    opponent_r2: dict[str, float]
    colours_kept: dict[str, float]


def held_out_scenes(count: int, width: int = 128, height: int = 128, skip: int = 0) -> list[Scene]:
    """Render `count` held-out scenes, after the first `skip` ones."""
    first = HELD_OUT_SEED + skip
    return [render_scene(seed, width, height) for seed in range(first, first + count)]


def score_depth(
    maps: Sequence[NDArray[np.float32]], scenes: Sequence[Scene], alignment: Alignment = "disparity"
) -> DepthScore:
    """Return the mean scores of one map (H, W) per scene; maps are affine in the space `alignment`."""
    rows = []
    for found, scene in zip(maps, scenes, strict=True):
        everywhere = np.ones(scene.depth.shape, bool)
        aligned = clipped_depth(found, scene.depth, everywhere, alignment, *SCENE_RANGE)
        metrics = metrics_of_pixels(aligned, scene.depth)
        error = np.abs(aligned - scene.depth) / scene.depth
        ratio = np.maximum(aligned / scene.depth, scene.depth / aligned)
        on_objects = error[scene.object_mask].mean() if scene.object_mask.any() else np.nan
        rows.append((metrics["abs_rel"], metrics["delta1"], (ratio < 1.05).mean(), on_objects))
    return DepthScore(*(float(value) for value in np.nanmean(rows, axis=0)))


def depth_estimator(
    pipe: JointDiTPipeline, num_inference_steps: int = 20, batch_size: int = 8, seed: int = 0, ensemble: int = 1
) -> EstimateDepth:
    """Return a function that estimates depth with a pipeline, in batches of images of one size.

    Image i has seed `seed + i`. With ensemble > 1 that many estimates with seeds ENSEMBLE_STRIDE apart are merged.
    """

    def estimate(images: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        from jointdit.evaluation.ensemble import ensemble_maps

        disparities: list[NDArray[np.float32]] = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            members = []
            for member in range(ensemble):
                first = seed + start + member * ENSEMBLE_STRIDE
                seeds = list(range(first, first + len(batch)))
                members.append(
                    pipe(image=batch, task="depth", seeds=seeds, num_inference_steps=num_inference_steps).disparity
                )
            if ensemble == 1:
                disparities.extend(members[0])
            else:
                disparities.extend(ensemble_maps(maps).merged for maps in np.stack(members, axis=1))
        return disparities

    return estimate


def evaluate_prompts(images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> tuple[ColourReport, ColourReport]:
    """Check colours in generated images (H, W, 3), and with shuffled prompts as the baseline."""
    swapped = [*prompts[1:], prompts[0]]
    return check_colours(images, prompts), check_colours(images, swapped)


def evaluate_vae(reconstruct: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], images: NDArray[np.uint8]) -> VaeReport:
    """Score a VAE on images (N, H, W, 3); `reconstruct` encodes and decodes such a batch."""
    after = reconstruct(images)
    return VaeReport(
        psnr_db=float(np.mean([psnr(one, other) for one, other in zip(images, after, strict=True)])),
        opponent_r2=opponent_r2(images, after),
        colours_kept=colours_kept(images, after),
    )
