"""What filters share that estimate depth from a sample's image and compare it with the sample's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.quality.filter import Fraction
from pipelines.quality.model_scored import ModelScored

Maps = Sequence[NDArray[np.float32]]


class DepthAgreement(ModelScored):
    """Three scores, <what>_abs_rel, <what>_delta1 and <what>_correlation.

    AbsRel, and the share of pixels within 25 %, of depth from 1 to 10 m, after a least-squares fit whose scale is not
    negative; and the correlation of the two maps once each has lost its best smooth surface. The last tells pairs
    apart by far the best: floors and walls are alike everywhere (`pair_agreement` of jointdit/evaluation/agreement.py).
    """

    found: ClassVar[str]  # what the estimate is, in a reason

    max_abs_rel: float = Field(0.35, ge=0)
    min_delta1: Fraction = 0.4
    min_correlation: float = Field(0.35, ge=-1, le=1)

    def compare(
        self, estimates: Maps, disparities: Maps, alignment: Literal["depth", "disparity"] = "disparity"
    ) -> list[dict[str, float]]:
        """The three scores of each pair of maps (h, w); none where a map is constant or not finite."""
        from jointdit.evaluation.agreement import pair_agreement

        pairs = zip(estimates, disparities, strict=True)
        compared = [pair_agreement(estimate, disparity, alignment) for estimate, disparity in pairs]
        return [dict(zip(self.scores, pair, strict=True)) if pair else {} for pair in compared]

    def reject(self, scores: Mapping[str, Any]) -> str | None:
        abs_rel, delta1, correlation = (scores[name] for name in self.scores)
        if not abs_rel <= self.max_abs_rel:
            return f"AbsRel of its depth to {self.found} is {abs_rel:.3f}, more than {self.max_abs_rel:g}"
        if not delta1 >= self.min_delta1:
            return f"{delta1:.0%} of its depth is within 25 % of {self.found}, less than {self.min_delta1:.0%}"
        if not correlation >= self.min_correlation:
            return f"its details correlate by {correlation:.2f} with {self.found}, less than {self.min_correlation:g}"
        return None
