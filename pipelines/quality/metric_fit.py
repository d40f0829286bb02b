"""Rejects samples whose depth does not agree with the metric depth model."""

from __future__ import annotations

from typing import ClassVar

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
    reasons: ClassVar[tuple[str, ...]] = (
        "its depth is {0:.0%} off the metric model's, more than {1:.0%}",
        "{0:.0%} of its depth agrees with the metric model, less than {1:.0%}",
    )

    max_residual: float = Field(0.25, ge=0)
    min_inlier_ratio: Fraction = 0.3

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        """Return nothing, because pixels alone are not enough."""
        return {}
