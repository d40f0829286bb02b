"""Rejects samples whose depth does not agree with the metric depth model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from pipelines.quality.filter import Filter, Fraction
from pipelines.records import SampleResult


class MetricFit(Filter):
    """calibration_residual: median of |z / z_fit - 1|. calibration_inlier_ratio: share of pixels within 10 %.

    The worker measures both if the spec has `output.points.calibrate`. A sample without a fit has ratio 0 and no
    residual, and is rejected.
    """

    kind: ClassVar[str] = "metric_fit"
    scores: ClassVar[tuple[str, ...]] = ("calibration_residual", "calibration_inlier_ratio")

    max_residual: float = Field(0.25, ge=0)
    min_inlier_ratio: Fraction = 0.3

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        """Return nothing, because pixels alone are not enough."""
        return {}

    def reject(self, scores: Mapping[str, Any]) -> str | None:
        residual, ratio = (scores[name] for name in self.scores)
        if not residual <= self.max_residual:
            return f"its depth is {residual:.0%} off the metric model's, more than {self.max_residual:.0%}"
        if not ratio >= self.min_inlier_ratio:
            return f"{ratio:.0%} of its depth agrees with the metric model, less than {self.min_inlier_ratio:.0%}"
        return None
