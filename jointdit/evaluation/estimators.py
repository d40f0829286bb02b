"""The interface of depth estimators, and JointDiT as one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.evaluation.alignment import Alignment, FloatArray
from jointdit.geometry.depth import fit_to_model, restore_size, working_size

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.evaluation.ensemble import Ensemble, Reduction


class DepthEstimator(Protocol):
    """Estimates a map (H, W) for an image (H, W, 3) of any size.

    `name` appears in tables. `space` is the space in which its maps are affine.
    """

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> Alignment: ...

    def estimate(self, image: NDArray[np.uint8], long_side: int | None = None) -> FloatArray:
        """Return depth or disparity (see `space`) at the image's size.

        long_side: working size in pixels that a benchmark's protocol asks for, None for the image's own. A model with a
        fixed size ignores it.
        """
        ...


@dataclass(frozen=True)
class JointDiTEstimator:
    """JointDiT's depth task. With ensemble > 1 it merges the estimates of seeds seed, seed + 1, ...

    long_side: working size in pixels; overrides the benchmark's protocol.
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

    def estimate(self, image: NDArray[np.uint8], long_side: int | None = None) -> FloatArray:
        """Estimate relative disparity (H, W) in [0, 1]. See `DepthEstimator`."""
        return self.estimate_with_uncertainty(image, long_side).merged

    def estimate_with_uncertainty(self, image: NDArray[np.uint8], long_side: int | None = None) -> Ensemble:
        """Return the merged disparity (H, W) and the spread of the ensemble (H, W), zeros for a single estimate."""
        from jointdit.evaluation.ensemble import Ensemble, ensemble_maps

        height, width = working_size(image.shape[:2], self.long_side or long_side)
        fitted, mapping = fit_to_model(image, height, width)
        seeds = range(self.seed, self.seed + self.ensemble)
        members: list[FloatArray] = []
        for start in range(0, len(seeds), self.batch_size):
            members.extend(self._sample(fitted, seeds[start : start + self.batch_size]))
        merged, uncertainty = ensemble_maps(np.stack(members), self.reduction)
        return Ensemble(restore_size(merged, mapping), restore_size(uncertainty, mapping))

    def _sample(self, image: NDArray[np.uint8], seeds: Sequence[int]) -> list[FloatArray]:
        out = self.pipe(image=image, task="depth", seeds=list(seeds), num_inference_steps=self.steps)
        if not out.finite.all():
            raise InputError(f"{self.name} returned values that are not finite: try another dtype, such as float32.")
        return list(out.disparity)
