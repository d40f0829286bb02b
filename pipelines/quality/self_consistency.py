"""Rejects samples whose depth differs from the joint model's estimate from their image."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipelines.quality.depth_agreement import DepthAgreement
from pipelines.quality.model_scored import JOINT_TASKS, ScoredBatch, Scorer


class SelfConsistency(DepthAgreement):
    """Depth is estimated from the sample's image again, with the same weights in a few steps, and compared."""

    kind: ClassVar[str] = "self_consistency"
    scores: ClassVar[tuple[str, ...]] = (
        "self_consistency_abs_rel",
        "self_consistency_delta1",
        "self_consistency_correlation",
    )
    measured_with: ClassVar[tuple[str, ...]] = ("steps",)
    estimate_name: ClassVar[str] = "what the model sees in its image"

    steps: int = Field(4, ge=1, le=1000)

    @classmethod
    def refusal(cls, task: str) -> str | None:
        if task == "depth":
            return "compares depth with depth estimated from the image, all that task depth makes: use ensemble_spread"
        return None if task in JOINT_TASKS else f"needs the joint model, which task {task} does not load"

    def cost(self) -> str:
        return f"depth estimated from the image again, {self.steps} steps"

    def load(self, device: str) -> Scorer:
        def score(batch: ScoredBatch) -> list[dict[str, float]]:
            return self.compare(batch.estimate(0, self.steps), batch.disparities())

        return score
