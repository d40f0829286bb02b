"""Rejects samples in whose picture the model sees another depth with each seed: it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipelines.quality.model_scored import JOINT_TASKS, ModelScored, ScoredBatch, Scorer


class EnsembleSpread(ModelScored):
    """Depth is estimated from the picture with several seeds; the estimates are brought onto each other and merged.

    ensemble_abs_rel_spread: mean over pixels of the median relative distance to the merged depth, read from 1 to 10 m
    (`ensemble_spread` of jointdit/evaluation/agreement.py). It says how sure the model is of the picture's depth, not
    how good the sample's own is. For task depth the sample's own depth is one estimate of the same kind.
    """

    kind: ClassVar[str] = "ensemble_spread"
    scores: ClassVar[tuple[str, ...]] = ("ensemble_abs_rel_spread",)
    measured_with: ClassVar[tuple[str, ...]] = ("estimates", "steps")

    max_spread: float = Field(0.15, ge=0)
    estimates: int = Field(4, ge=2, le=100)
    steps: int = Field(4, ge=1, le=1000)

    @classmethod
    def refusal(cls, task: str) -> str | None:
        return None if task in JOINT_TASKS else f"needs the joint model, which task {task} does not load"

    def cost(self) -> str:
        return f"depth estimated from the picture {self.estimates} times, {self.steps} steps each"

    def load(self, device: str) -> Scorer:
        from jointdit.evaluation.agreement import ensemble_spread

        def score(batch: ScoredBatch) -> list[dict[str, float]]:
            members = zip(*(batch.estimate(number, self.steps) for number in range(self.estimates)), strict=True)
            spreads = [ensemble_spread(np.stack(maps)) for maps in members]
            return [{} if spread is None else {self.scores[0]: spread} for spread in spreads]

        return score

    def reject(self, scores: Mapping[str, Any]) -> str | None:
        spread = scores[self.scores[0]]
        if spread <= self.max_spread:
            return None
        return f"{self.estimates} estimates of its depth differ by {spread:.3f}, more than {self.max_spread:g}"
