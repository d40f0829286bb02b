"""Rejects samples whose depth is not what an independent depth model sees in their picture."""

from __future__ import annotations

from typing import ClassVar

from pipelines.quality.depth_agreement import DepthAgreement
from pipelines.quality.foreign_model import ForeignModel
from pipelines.quality.model_scored import ScoredBatch, Scorer


class DepthCritic(ForeignModel, DepthAgreement):
    """Any depth model of transformers estimates depth from the sample's picture, and it is compared.

    A model of disparity is fitted in disparity, one of depth in depth; the model's processor decides the size it works
    at. Unlike self-consistency it does not share the joint model's errors, and it judges task depth as well.
    """

    kind: ClassVar[str] = "depth_critic"
    scores: ClassVar[tuple[str, ...]] = ("critic_abs_rel", "critic_delta1", "critic_correlation")
    found: ClassVar[str] = "what the critic sees in its picture"
    wanted: ClassVar[str] = "a depth model"

    def check(self) -> None:
        from jointdit.evaluation.transformers_depth import check_depth_model

        super().check()
        check_depth_model(self.name())

    def load(self, device: str) -> Scorer:
        import numpy as np

        from jointdit.errors import InputError
        from jointdit.evaluation.transformers_depth import TransformersDepth

        critic = TransformersDepth(self.name(), device, revision=self.revision)

        def estimate(picture: np.ndarray) -> np.ndarray:
            try:
                return critic.estimate(picture)
            except InputError:  # not finite: there is no score, and the filter says so
                return np.full(picture.shape[:2], np.nan, np.float32)

        def score(batch: ScoredBatch) -> list[dict[str, float]]:
            estimates = [estimate(picture) for picture in batch.pictures()]  # one by one, as for text_agreement
            return self.compare(estimates, batch.disparities(), critic.space)

        return score
