"""What estimates depth: JointDiT, and any transformers depth model, behind one small interface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.evaluation.alignment import Alignment, FloatArray
from jointdit.geometry.depth import MODEL_MULTIPLE, fit_to_model, restore_size

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.evaluation.ensemble import Ensemble, Reduction


class DepthEstimator(Protocol):
    """A name for tables; the space its maps are affine in; a map (H, W) for an image (H, W, 3) of any size."""

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> Alignment: ...

    def estimate(self, picture: NDArray[np.uint8], long_side: int | None = None) -> FloatArray:
        """Depth or disparity, as `space` says, at the image's size.

        long_side: pixels that a benchmark's protocol has the model work at, None for the image's own; a model with a
        size of its own keeps that.
        """
        ...


@dataclass(frozen=True)
class JointDiTEstimator:
    """JointDiT's depth task. With ensemble > 1 the estimates of seeds seed, seed + 1, ... are merged.

    long_side: pixels it works at, instead of what the benchmark's protocol says.
    """

    pipe: JointDiTPipeline
    name: str = "JointDiT"
    steps: int = 20
    seed: int = 0
    ensemble: int = 1
    reduction: Reduction = "median"
    long_side: int | None = None
    batch_size: int = 8
    space: Alignment = "disparity"

    def estimate(self, picture: NDArray[np.uint8], long_side: int | None = None) -> FloatArray:
        """Relative disparity (H, W) in [0, 1]. See `DepthEstimator`."""
        return self.estimate_with_uncertainty(picture, long_side).merged

    def estimate_with_uncertainty(self, picture: NDArray[np.uint8], long_side: int | None = None) -> Ensemble:
        """The merged disparity (H, W), and how far the members of the ensemble differ; zeros for a single one."""
        from jointdit.evaluation.ensemble import Ensemble, ensemble_maps

        height, width = working_size(picture.shape[:2], self.long_side or long_side)
        fitted, mapping = fit_to_model(picture, height, width)
        seeds = range(self.seed, self.seed + self.ensemble)
        members: list[FloatArray] = []
        for start in range(0, len(seeds), self.batch_size):
            members.extend(self._sample(fitted, seeds[start : start + self.batch_size]))
        merged, uncertainty = ensemble_maps(np.stack(members), self.reduction)
        return Ensemble(restore_size(merged, mapping), restore_size(uncertainty, mapping))

    def _sample(self, picture: NDArray[np.uint8], seeds: Sequence[int]) -> list[FloatArray]:
        out = self.pipe(image=picture, task="depth", seeds=list(seeds), num_inference_steps=self.steps)
        if not out.finite.all():
            raise InputError(f"{self.name} gave values that are not finite: try another dtype, such as float32.")
        return list(out.disparity)


def working_size(shape: tuple[int, ...], long_side: int | None) -> tuple[int, int]:
    """(height, width), multiples of 16, of a box for an image (H, W) whose longer side becomes `long_side` pixels."""
    scale = 1.0 if long_side is None else long_side / max(shape)
    height, width = (math.ceil(round(size * scale) / MODEL_MULTIPLE) * MODEL_MULTIPLE for size in shape)
    return max(height, MODEL_MULTIPLE), max(width, MODEL_MULTIPLE)
