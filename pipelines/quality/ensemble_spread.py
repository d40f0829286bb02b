"""Rejects samples for whose image the depth estimate depends on the seed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from pipelines.quality.filter import Correlation
from pipelines.quality.model_scored import JOINT_TASKS, ModelScored, ScoredBatch, Scorer


class EnsembleSpread(ModelScored):
    """Depth is estimated from the image with several seeds, and the estimates are compared with each other.

    ensemble_abs_rel_spread: estimates are aligned and merged; mean over pixels of the median relative distance to the
    merged depth, read from 1 to 10 m. ensemble_correlation: mean over pairs of estimates of the correlation of their
    details, without the floor and walls that a model puts into any image. It detects unreadable images best (both are
    in jointdit/evaluation/agreement.py). The scores say how certain the model is about the image's depth, not how good
    the sample's own depth is. For task depth the sample's own depth is such an estimate.
    """

    kind: ClassVar[str] = "ensemble_spread"
    scores: ClassVar[tuple[str, ...]] = ("ensemble_abs_rel_spread", "ensemble_correlation")
    reasons: ClassVar[tuple[str, ...]] = (
        "{filter.estimates} estimates of its depth differ by {0:.3f}, more than {1:g}",
        "details of {filter.estimates} estimates of its depth correlate by {0:.2f}, less than {1:g}",
    )
    measured_with: ClassVar[tuple[str, ...]] = ("estimates", "steps")

    max_spread: float = Field(0.1, ge=0)
    min_correlation: Correlation = 0.58
    estimates: int = Field(4, ge=2, le=100)
    steps: int = Field(4, ge=1, le=1000)

    @classmethod
    def refusal(cls, task: str) -> str | None:
        return None if task in JOINT_TASKS else f"needs the joint model, which task {task} does not load"

    def cost(self) -> str:
        return f"depth estimated from the image {self.estimates} times, {self.steps} steps each"

    def load(self, device: str) -> Scorer:
        from jointdit.evaluation.agreement import ensemble_correlation, ensemble_spread

        def compare(maps: np.ndarray) -> dict[str, float]:
            spread = ensemble_spread(maps)
            return {} if spread is None else dict(zip(self.scores, (spread, ensemble_correlation(maps)), strict=True))

        def score(batch: ScoredBatch) -> list[dict[str, float]]:
            members = zip(*(batch.estimate(number, self.steps) for number in range(self.estimates)), strict=True)
            return [compare(np.stack(maps)) for maps in members]

        return score
