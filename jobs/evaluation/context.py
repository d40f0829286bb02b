"""What the parts of an evaluation share: checkpoint, sizes, held-out scenes, and results that are computed once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.evaluation.baselines import mean_training_disparity
from jointdit.evaluation.estimators import DepthEstimator
from jointdit.evaluation.scenes import EstimateDepth, depth_estimator, held_out_scenes
from jointdit.geometry.depth import disparity_from_depth
from jointdit.scenes import Scene

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.evaluation.features import Clip, FeatureNetwork

BATCH = 9
PROMPTS_AFTER = 1000  # held-out scenes between those whose images and those whose captions are used
SHOWN = 12  # scenes on a sheet


class Sizes(NamedTuple):
    """Numbers of scenes and prompts, sampling steps of depth and images, and estimates merged into one."""

    scenes: int = 200
    prompts: int = 36
    depth_steps: int = 4
    steps: int = 20
    ensemble: int = 1


class Images(NamedTuple):
    """Generated images (H, W, 3) with their disparities (H, W) and prompts."""

    rgb: list[NDArray[np.uint8]]
    disparity: list[NDArray[np.float32]]
    prompts: list[str]
    seconds: float  # per image


@dataclass
class SceneEvaluation:
    """A checkpoint on held-out scenes. `features` is the feature network of FID, "vae" for the checkpoint's own VAE."""

    pipe: JointDiTPipeline
    name: str
    sizes: Sizes
    output: Path
    baselines: Sequence[DepthEstimator] = ()
    features: FeatureNetwork | str | None = None
    clip: Clip | None = None
    details: dict[str, Any] = field(default_factory=dict)  # content of report.json beside the tables

    @property
    def label(self) -> str:
        """The checkpoint's name in tables."""
        return Path(self.name).name

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pipe.config.default_width, self.pipe.config.default_height

    @property
    def protocol(self) -> str:
        """The protocol of depth on scenes."""
        width, height = self.size
        merged = f", ensemble of {self.sizes.ensemble}" if self.sizes.ensemble > 1 else ""
        return (
            f"held-out rendered scenes of {width} x {height} pixels, scale and shift an image by least squares, "
            f"model at {self.sizes.depth_steps} steps{merged}"
        )

    @cached_property
    def scenes(self) -> list[Scene]:
        """Held-out scenes whose images and depth are used."""
        return held_out_scenes(self.sizes.scenes, *self.size)

    @cached_property
    def estimate(self) -> EstimateDepth:
        """The checkpoint as an estimator of depth."""
        return depth_estimator(self.pipe, self.sizes.depth_steps, BATCH, ensemble=self.sizes.ensemble)

    @cached_property
    def estimated(self) -> list[NDArray[np.float32]]:
        """The checkpoint's disparities (H, W) of the scenes' images."""
        return self.estimate([scene.rgb for scene in self.scenes])

    @cached_property
    def mean_disparity(self) -> NDArray[np.float32]:
        """Mean disparity of training scenes, (H, W): a baseline that sees no image."""
        width, height = self.size
        return mean_training_disparity(height, width)

    @cached_property
    def captions(self) -> list[str]:
        """Captions of held-out scenes whose images are not used."""
        return [scene.caption for scene in held_out_scenes(self.sizes.prompts, *self.size, skip=PROMPTS_AFTER)]

    @cached_property
    def generated(self) -> Images:
        """Joint samples of the captions."""
        return generate(self.pipe, self.captions, self.sizes.steps)


def generate(
    pipe: JointDiTPipeline, prompts: Sequence[str], steps: int, disparities: Sequence[NDArray[np.float32]] | None = None
) -> Images:
    """Generate one image with disparity for each prompt, with seeds 0, 1, ... Raises InputError if one has NaN."""
    images: list[NDArray[np.uint8]] = []
    maps: list[NDArray[np.float32]] = []
    start_time = time.perf_counter()
    for start in range(0, len(prompts), BATCH):
        part = slice(start, min(start + BATCH, len(prompts)))
        given: dict[str, Any] = (
            {} if disparities is None else {"task": "depth-to-image", "disparity": list(disparities[part])}
        )
        seeds = list(range(part.start, part.stop))
        out = pipe(prompt=list(prompts[part]), seeds=seeds, num_inference_steps=steps, **given)
        if not out.finite.all():
            raise InputError(f"{int((~out.finite).sum())} of {len(seeds)} samples are not finite: try --dtype float32.")
        images.extend(out.rgb)
        maps.extend(out.disparity)
    return Images(images, maps, list(prompts), (time.perf_counter() - start_time) / len(prompts))


def exact(scene: Scene) -> NDArray[np.float32]:
    """Return the scene's exact relative disparity (H, W)."""
    return disparity_from_depth(scene.depth)
