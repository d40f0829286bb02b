"""Rejects samples whose depth is not what an independent depth model sees in their image."""

from __future__ import annotations

from typing import ClassVar

from pipelines.quality.depth_agreement import DepthAgreement
from pipelines.quality.foreign_model import ForeignModel
from pipelines.quality.model_scored import ScoredBatch, Scorer

CLOSEST = 0.1  # metres: what a model puts nearer weighs as much


class DepthCritic(ForeignModel, DepthAgreement):
    """Any depth model of transformers estimates depth from the sample's image, and it is compared.

    A model of disparity is fitted in disparity, one of relative depth in depth. Metres are read as 1 / z first: that is
    affine in relative disparity whatever the true range is, where z itself is not affine in depth over an assumed one.
    The model's processor decides the size it works at. Unlike self-consistency it does not share the joint model's
    errors, and it judges task depth as well.
    """

    kind: ClassVar[str] = "depth_critic"
    scores: ClassVar[tuple[str, ...]] = ("critic_abs_rel", "critic_delta1", "critic_correlation")
    found: ClassVar[str] = "what the critic sees in its image"
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

        def estimate(image: np.ndarray) -> np.ndarray:
            try:
                found = critic.estimate(image)
                return 1 / np.maximum(found, CLOSEST) if critic.is_metric else found
            except InputError:  # not finite: there is no score, and the filter says so
                return np.full(image.shape[:2], np.nan, np.float32)

        def score(batch: ScoredBatch) -> list[dict[str, float]]:
            estimates = [estimate(image) for image in batch.images()]  # one by one, as for text_agreement
            return self.compare(estimates, batch.disparities(), "disparity" if critic.is_metric else critic.space)

        return score
