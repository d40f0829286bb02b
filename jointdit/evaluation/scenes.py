"""A model on scenes it has never seen: depth against exact depth, images against their prompts, the VAE alone.

Depth is aligned in disparity by least squares over the whole image. Floor and wall fill most of it and saturate
delta1, so the share within 5 % and the error on objects alone are reported too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jointdit.evaluation.alignment import Alignment
from jointdit.evaluation.baselines import constant_disparity, mean_training_disparity
from jointdit.evaluation.images import opponent_r2, psnr
from jointdit.evaluation.metrics import clipped_depth, metrics_of_pixels
from jointdit.scenes import Scene, render_scene
from jointdit.scenes.colours import ColourReport, check_colours, colours_kept
from jointdit.tiny.data import HELD_OUT_SEED

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline

DEPTH_RANGE = (1e-3, 80.0)  # metres; a scene's farthest wall is nearer

ENSEMBLE_STRIDE = 1_000_000  # more than the images of any call, so that no two estimates share a seed

EstimateDepth = Callable[[list[NDArray[np.uint8]]], list[NDArray[np.float32]]]
"""Images (H, W, 3) -> relative disparity (H, W), 1 nearest."""


@dataclass(frozen=True)
class DepthScore:
    """Means over scenes: AbsRel, the shares of pixels within 25 % and 5 %, AbsRel over the pixels of objects."""

    abs_rel: float
    delta1: float
    within_5_percent: float
    object_abs_rel: float


@dataclass(frozen=True)
class DepthReport:
    """One estimator, the same with each image swapped for another's, and two baselines that see no image."""

    scenes: int
    model: DepthScore
    wrong_image: DepthScore
    constant: DepthScore
    mean_disparity: DepthScore

    @property
    def error_ratio(self) -> float:
        """AbsRel over the better baseline's."""
        return self.model.abs_rel / min(self.constant.abs_rel, self.mean_disparity.abs_rel)


@dataclass(frozen=True)
class VaeReport:
    """Mean PSNR in dB, R^2 of the opponent axes, and for each named colour the share of pixels that keep it."""

    psnr_db: float
    opponent_r2: dict[str, float]
    colours_kept: dict[str, float]


def held_out_scenes(count: int, width: int = 128, height: int = 128, skip: int = 0) -> list[Scene]:
    """`count` scenes that no training set holds, after the first `skip` of them."""
    first = HELD_OUT_SEED + skip
    return [render_scene(seed, width, height) for seed in range(first, first + count)]


def evaluate_depth(
    estimate: EstimateDepth, scenes: Sequence[Scene], mean_disparity: NDArray[np.float32] | None = None
) -> DepthReport:
    """Score an estimator on scenes of one size, beside its own scores with wrong images and both baselines.

    `mean_disparity` (H, W) saves rendering training scenes for that baseline again.
    """
    height, width = scenes[0].depth.shape
    if mean_disparity is None:
        mean_disparity = mean_training_disparity(height, width)
    found = estimate([scene.rgb for scene in scenes])
    return DepthReport(
        scenes=len(scenes),
        model=score_depth(found, scenes),
        # What was estimated from the next scene's image: equal in everything but the image.
        wrong_image=score_depth([*found[1:], found[0]], scenes),
        constant=score_depth([constant_disparity(height, width)] * len(scenes), scenes),
        mean_disparity=score_depth([mean_disparity] * len(scenes), scenes),
    )


def score_depth(
    maps: Sequence[NDArray[np.float32]], scenes: Sequence[Scene], alignment: Alignment = "disparity"
) -> DepthScore:
    """Mean scores of one map (H, W) a scene, relative disparity or what else `alignment` says."""
    rows = []
    for found, scene in zip(maps, scenes, strict=True):
        everywhere = np.ones(scene.depth.shape, bool)
        aligned = clipped_depth(found, scene.depth, everywhere, alignment, *DEPTH_RANGE)
        metrics = metrics_of_pixels(aligned, scene.depth)
        error = np.abs(aligned - scene.depth) / scene.depth
        ratio = np.maximum(aligned / scene.depth, scene.depth / aligned)
        on_objects = error[scene.object_mask].mean() if scene.object_mask.any() else np.nan
        rows.append((metrics["abs_rel"], metrics["delta1"], (ratio < 1.05).mean(), on_objects))
    return DepthScore(*(float(value) for value in np.nanmean(rows, axis=0)))


def depth_estimator(
    pipe: JointDiTPipeline, num_inference_steps: int = 20, batch_size: int = 8, seed: int = 0, ensemble: int = 1
) -> EstimateDepth:
    """Depth estimation by a pipeline, in batches of images of one size.

    Image i gets seed `seed + i`; with ensemble > 1 it is estimated so often, with seeds ENSEMBLE_STRIDE apart, and
    the estimates are merged.
    """

    def estimate(pictures: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        from jointdit.evaluation.ensemble import ensemble_maps

        disparities: list[NDArray[np.float32]] = []
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
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


def evaluate_prompts(
    pictures: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
) -> tuple[ColourReport, ColourReport]:
    """Colours found in generated images (H, W, 3), and in the same images under each other's prompts (chance)."""
    swapped = [*prompts[1:], prompts[0]]
    return check_colours(pictures, prompts), check_colours(pictures, swapped)


def evaluate_vae(
    reconstruct: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], pictures: NDArray[np.uint8]
) -> VaeReport:
    """Score a VAE's round trip on images (N, H, W, 3); `reconstruct` takes and gives such a batch."""
    after = reconstruct(pictures)
    return VaeReport(
        psnr_db=float(np.mean([psnr(one, other) for one, other in zip(pictures, after, strict=True)])),
        opponent_r2=opponent_r2(pictures, after),
        colours_kept=colours_kept(pictures, after),
    )
