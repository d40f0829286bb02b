"""Rejects samples whose depth differs from an independent depth model's."""

from __future__ import annotations

from typing import ClassVar

from pipelines.quality.depth_agreement import DepthAgreement
from pipelines.quality.foreign_model import ForeignModel
from pipelines.quality.model_scored import ScoredBatch, Scorer

CLOSEST = 0.1  # metres; nearer estimates are clipped to it


class DepthCritic(ForeignModel, DepthAgreement):
    """Any depth model of transformers estimates depth from the sample's image, and both depths are compared.

    A disparity model is fitted in disparity, a relative depth model in depth. Metres are first converted to 1 / z,
    which is affine in relative disparity whatever the true range is, while z itself is not affine in depth over an
    assumed range. The model's processor decides the working size. In contrast to self_consistency, it does not share
    the joint model's errors, and it judges task depth as well.
    """

    kind: ClassVar[str] = "depth_critic"
    scores: ClassVar[tuple[str, ...]] = ("critic_abs_rel", "critic_delta1", "critic_correlation")
    estimate_name: ClassVar[str] = "what the critic sees in its image"
    model_kind: ClassVar[str] = "a depth model"

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
                depth = critic.estimate(image)
                return 1 / np.maximum(depth, CLOSEST) if critic.is_metric else depth
            except InputError:  # not finite: there is no score, and the filter reports that
                return np.full(image.shape[:2], np.nan, np.float32)

        def score(batch: ScoredBatch) -> list[dict[str, float]]:
            estimates = [estimate(image) for image in batch.images()]  # one by one, as in text_agreement
            return self.compare(estimates, batch.disparities(), "disparity" if critic.is_metric else critic.space)

        return score
