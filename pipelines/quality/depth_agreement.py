"""Base of filters that compare a sample's depth with an estimate from its image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.quality.filter import Correlation, Fraction
from pipelines.quality.model_scored import ModelScored

Maps = Sequence[NDArray[np.float32]]


class DepthAgreement(ModelScored):
    """Three scores: <name>_abs_rel, <name>_delta1 and <name>_correlation.

    AbsRel, and the share of pixels within 25 %, of depth from 1 to 10 m, after a least-squares fit with a non-negative
    scale; and the correlation of both maps after the best smooth surface was subtracted from each. The correlation
    separates right from wrong pairs best, because floors and walls are similar in all images (`pair_agreement` of
    jointdit/evaluation/agreement.py).
    """

    estimate_name: ClassVar[str]  # what a reason calls the estimate
    reasons: ClassVar[tuple[str, ...]] = (
        "AbsRel of its depth to {filter.estimate_name} is {0:.3f}, more than {1:g}",
        "{0:.0%} of its depth is within 25 % of {filter.estimate_name}, less than {1:.0%}",
        "its details correlate by {0:.2f} with {filter.estimate_name}, less than {1:g}",
    )

    max_abs_rel: float = Field(0.35, ge=0)
    min_delta1: Fraction = 0.4
    min_correlation: Correlation = 0.35

    def compare(
        self, estimates: Maps, disparities: Maps, alignment: Literal["depth", "disparity"] = "disparity"
    ) -> list[dict[str, float]]:
        """Return the three scores of each pair of maps (h, w); empty where a map is constant or not finite."""
        from jointdit.evaluation.agreement import pair_agreement

        pairs = zip(estimates, disparities, strict=True)
        compared = [pair_agreement(estimate, disparity, alignment) for estimate, disparity in pairs]
        return [dict(zip(self.scores, pair, strict=True)) if pair else {} for pair in compared]
