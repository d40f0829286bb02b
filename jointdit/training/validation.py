"""Validation during training: depth of held-out scenes, and a sheet of unselected samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.depth import disparity_from_depth, grey_image
from jointdit.training.adapter_spec import ValidationSpec

if TYPE_CHECKING:
    from jointdit.pipeline import JointDiTPipeline


def validate(
    pipe: JointDiTPipeline, spec: ValidationSpec, size: tuple[int, int]
) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """Score the first held-out scenes at `size` (height, width); return scores and a sheet (H, W, 3).

    The sheet has one column per sample. From top to bottom: the scene's image, its exact disparity, the estimated one,
    and the image and disparity that the model generates from the caption. Seeds are fixed, so that sheets of different
    steps can be compared.
    """
    from jointdit.evaluation.scenes import depth_estimator, held_out_scenes, score_depth

    height, width = spec.height or size[0], spec.width or size[1]
    scenes = held_out_scenes(spec.scenes, width, height)
    estimates = depth_estimator(pipe, spec.steps)([scene.rgb for scene in scenes])
    score = score_depth(estimates, scenes)
    shown = scenes[: spec.samples]
    generated = pipe(
        prompt=[scene.caption for scene in shown],
        seeds=list(range(len(shown))),
        height=height,
        width=width,
        num_inference_steps=spec.steps,
    )
    columns = [
        np.concatenate(
            [scene.rgb, grey_image(disparity_from_depth(scene.depth)), grey_image(estimate), rgb, grey_image(disparity)]
        )
        for scene, estimate, rgb, disparity in zip(shown, estimates, generated.rgb, generated.disparity, strict=False)
    ]
    names = ("abs_rel", "object_abs_rel", "within_5_percent")
    return {name: getattr(score, name) for name in names}, np.concatenate(columns, axis=1)
